"""Property tests must not fail because a machine is slow or busy; and idle threads sleep, which `dmlm` sees to."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock
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
def finished(home, tmp_path_factory) -> subprocess.CompletedProcess[str]:
    """The smoke grid, run from nothing; by one of several processes of pytest, of which each gets a copy to work on."""
    own = tmp_path_factory.getbasetemp()
    if not own.name.startswith("popen-"):  # the name that pytest-xdist gives
        return _ran(home)
    shared = own.parent / "shared é"
    with FileLock(shared.with_suffix(".lock")):
        if not (shared / "ran.json").is_file():
            shutil.rmtree(shared, ignore_errors=True)  # of one that failed
            result = _ran(shared)
            (shared / "ran.json").write_text(json.dumps([result.args, result.stdout, result.stderr]))
    shutil.copytree(shared, home, dirs_exist_ok=True)
    arguments, stdout, stderr = json.loads((home / "ran.json").read_text())
    return subprocess.CompletedProcess(arguments, 0, stdout.replace(str(shared), str(home)), stderr)


def _ran(home: Path) -> subprocess.CompletedProcess[str]:
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
