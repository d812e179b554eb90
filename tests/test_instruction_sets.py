"""What other CPUs of the same family would do, told to the libraries here: they round otherwise, and no promise depends on it.

Only what a library lets be switched off is: kernels of PyTorch, oneDNN, MKL, NumPy, OpenBLAS and OpenCV. Not ONNX Runtime.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the switches are those of x86"),
]
ROOT = Path(__file__).resolve().parent.parent
PYTHONPATH = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
SETS = {
    "SSE4": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
        "OPENCV_CPU_DISABLE": "AVX,FP16,FMA3,AVX2,AVX512-SKX",
    },
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "OPENCV_CPU_DISABLE": "AVX512-SKX",
    },
}
PROGRAM = """
import json, sys, tempfile
from pathlib import Path
import torch
from numpy._core._multiarray_umath import __cpu_features__
from tests.test_train import fit, model
torch.set_num_threads(1)
losses = {}
for name in ("opt-nano", "mamba-nano"):
    losses[name] = seen = []
    with tempfile.TemporaryDirectory() as folder:
        fit(model(name, dropout=0.0), Path(folder), on_step=lambda step, loss: seen.append(loss))
wide = [name for name in ("X86_V3", "X86_V4") if __cpu_features__.get(name)]
print(json.dumps({"losses": losses, "torch": torch.backends.cpu.get_cpu_capability(), "numpy": wide}))
"""


def narrowed(name: str | None) -> dict[str, str]:
    """The environment in which libraries use no wider instructions than those of the set; None: as the machine has them."""
    if name is None:
        return {**os.environ, "PYTHONPATH": PYTHONPATH}
    kept = {"X86_V2", "X86_V3"} if name == "AVX2" else {"X86_V2"}
    beyond = [each for each in __cpu_dispatch__ if __cpu_features__.get(each) and each not in kept]
    return {**os.environ, **SETS[name], "NPY_DISABLE_CPU_FEATURES": " ".join(beyond), "PYTHONPATH": PYTHONPATH}


def trained(name: str | None) -> dict:
    """Losses of short trainings with equal seeds, and what the libraries say that they use."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=narrowed(name), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def has(name: str) -> None:
    if name == "AVX2" and not __cpu_features__.get("AVX2"):
        pytest.skip("this machine has no AVX2")


@pytest.mark.parametrize("name", SETS)
def test_every_tokenizer_keeps_its_promises_under_narrower_instructions(name) -> None:
    has(name)
    command = [sys.executable, "-m", "pytest", "tests/test_conformance.py", "-m", "not slow", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=narrowed(name), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("name", SETS)
def test_under_narrower_instructions_a_training_repeats_itself_and_differs_by_rounding_alone(name) -> None:
    has(name)
    own, first, second = trained(None), trained(name), trained(name)
    assert first["torch"] == ("DEFAULT" if name == "SSE4" else "AVX2")  # the switches work
    assert first["numpy"] == ([] if name == "SSE4" else ["X86_V3"])
    assert first["losses"] == second["losses"]
    for backbone, losses in own["losses"].items():
        assert first["losses"][backbone] == pytest.approx(losses, rel=1e-3), backbone
