"""Property tests must not fail because a machine is slow or busy; and idle threads sleep, which `dmlm` sees to."""

import subprocess
from pathlib import Path

import pytest
from grids import run_grid
from hypothesis import HealthCheck, settings

import dmlm  # noqa: F401  # before torch, whose threads read the environment once

settings.register_profile("dmlm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dmlm")


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """Where all tests of whole grids keep their corpus and trials: a name with a space and letters beyond ASCII."""
    return tmp_path_factory.mktemp("dmlm home é")


@pytest.fixture(scope="session")
def finished(home) -> subprocess.CompletedProcess[str]:
    """The smoke grid, run from nothing."""
    result = run_grid(home)
    assert result.returncode == 0, result.stderr[-2000:]
    return result


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No servers; and time to import large packages on a busy machine."""
    for variable in ("MLFLOW_TRACKING_URI", "TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID", "WANDB_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    home = tmp_path / "dmlm home é"
    monkeypatch.setenv("DMLM_HOME", str(home))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setattr("dmlm.training.loggers.CLOSE_S", 120.0)
    return home / "runs" / "trials" / "opt-nano_A+L_seed0-0123456789ab"
