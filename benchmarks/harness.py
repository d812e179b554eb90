"""What all benchmarks share: real lengths, stock models, alternating rounds, and the file that results go to."""

import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dmlm  # noqa: F401  # sets how idle threads wait, before torch is loaded

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from dmlm.model.backbones import build
from dmlm.model.family import BackboneSpec
from dmlm.sequence.template import Packed, Template, pack
from dmlm.tokens.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "performance.json"
VOCABULARY = Vocabulary(400, {"A": 400, "L": 100})  # the quickstart's
FULL = Vocabulary(50272, {"A": 10000, "L": 2000})  # OPT's own text, the tokenizers of arXiv 2406.06582
ROUNDS = 5
ON_A_GPU = "an NVIDIA GPU: not measured yet"
WANTED_ON_A_GPU = {  # rows that stay empty until a benchmark has run on one
    "training opt-tiny, batches of 16, against Trainer": ("tokens/s", 2.0),
    "training opt-125m, batches of 4, against Trainer": ("tokens/s", 2.0),
    "mamba-tiny training step, 4 x 512 tokens, against transformers without kernels": ("s", 20.0),
    "mamba-tiny training step, 4 x 512 tokens, against mamba-ssm kernels": ("s", 0.8),
    **{f"decoding opt-tiny, batch {batch}, against generate": ("utt/s", 5.0) for batch in (1, 32, 256)},
    "share of the matrix peak used by opt-125m training, batches of 8": ("GFLOP/s", 0.4),
    "peak memory, opt-125m training step of 16 x 2,048 tokens": ("GiB", 2.0),
}


def device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> str:
    """What the figures were measured on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{len(os.sched_getaffinity(0))} shared CPU cores ({platform.machine()}, {capability}), torch {torch.__version__}"


def items(vocabulary: Vocabulary, count: int, notation: str = "A+L -> T", target: bool = True) -> list[Packed]:
    """Sequences of random IDs with the lengths of real ones: of the 3-Equations corpus, preset tiny (lengths.csv)."""
    with (ROOT / "benchmarks" / "lengths.csv").open() as file:
        rows = list(csv.DictReader(file))
    random, template = np.random.default_rng(0), Template.parse(notation)
    columns = {"A": "audio", "L": "lips", "T": "text"}
    found = []
    for row in (rows * (count // len(rows) + 1))[:count]:
        streams = {k: random.integers(0, len(vocabulary.range(k)), int(row[name])) for k, name in columns.items()}
        found.append(pack(template, streams, vocabulary, {}, with_target=target))
    return found


def model(name: str, vocabulary: Vocabulary, context: int = 512) -> PreTrainedModel:
    """A model without dropout."""
    special = [vocabulary.special(token) for token in ("<pad>", "<bos>", "<eos>")]
    return build(BackboneSpec(name, vocabulary.text_size, vocabulary.size, context, *special, dropout=0.0), seed=0)


def synchronise() -> None:
    """Wait until the device has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


class Rival:
    """`contestant(side, case)` of a benchmark, in a process of its own (see rival.py)."""

    def __init__(self, module: str, side: str, case: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        command = [sys.executable, str(ROOT / "benchmarks" / "rival.py"), Path(module).stem, side, case]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def __call__(self) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            self._log.seek(0)
            raise RuntimeError(f"{' '.join(map(str, self._process.args))} failed:\n{self._log.read()[-3000:]}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def alternate(module: str, case: str, sides: Sequence[str] = ("ours", "theirs"), rounds: int = ROUNDS) -> list[float]:
    """Each side's median over rounds in which all take their turn; one round more comes first and is not counted."""
    rivals = [Rival(module, side, case) for side in sides]
    found: list[list[float]] = [[] for _ in rivals]
    for number in tqdm(range(rounds + 1), desc=case, unit="round"):
        for results, rival in zip(found, rivals, strict=True):
            value = rival()
            if number:
                results.append(value)
    for rival in rivals:
        rival.close()
    return [statistics.median(results) for results in found]


def row(
    name: str, ours: float, theirs: float | None, unit: str, at_least: float | None, note: str = ""
) -> dict[str, object]:
    """One line of the results; `ratio` says how many times better ours is, whichever way the unit points."""
    better = None if theirs is None else (ours / theirs if "/" in unit else theirs / ours)
    rounded = [None if value is None else float(f"{value:.4g}") for value in (ours, theirs, better)]
    return {
        "name": name,
        "ours": rounded[0],
        "theirs": rounded[1],
        "unit": unit,
        "ratio": rounded[2],
        "at_least": at_least,
        "machine": machine(),
        "note": note,
    }


def record(rows: Sequence[dict[str, object]]) -> None:
    """Print rows, and put them in place of those of the same name and machine."""
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    new = {(r["name"], r["machine"]) for r in rows}
    kept = [r for r in known if (r["name"], r["machine"]) not in new and r["machine"] != ON_A_GPU]
    measured = {r["name"] for r in (*kept, *rows) if "CPU" not in str(r["machine"])}
    empty = [
        {"name": name, "ours": None, "theirs": None, "unit": unit, "ratio": None, "at_least": at_least}
        | {"machine": ON_A_GPU, "note": ""}
        for name, (unit, at_least) in WANTED_ON_A_GPU.items()
        if name not in measured
    ]
    RESULTS.write_text(json.dumps([*kept, *rows, *empty], indent=1) + "\n")
    for r in rows:
        print(f"{r['name']:<60} ours {r['ours']:<10} theirs {r['theirs']!s:<10} {r['unit']:<10} ratio {r['ratio']}")
