"""Property tests must not fail because a machine is slow or busy."""

from hypothesis import HealthCheck, settings

settings.register_profile("dmlm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dmlm")
