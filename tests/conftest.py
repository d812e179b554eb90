"""Property tests must not fail because a machine is slow or busy; and idle threads sleep, which `dmlm` sees to."""

from hypothesis import HealthCheck, settings

import dmlm  # noqa: F401  # before torch, whose threads read the environment once

settings.register_profile("dmlm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dmlm")
