"""Shared by all benchmarks: sequences of real lengths, models, alternating rounds, and the file of results."""

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

import dmlm  # noqa: F401  # sets how idle threads wait; must come before torch

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
VOCABULARY = Vocabulary(400, {"A": 400, "L": 100})  # as in the quickstart
FULL = Vocabulary(50272, {"A": 10000, "L": 2000})  # OPT's own text, the tokenizers of arXiv 2406.06582
ROUNDS = 5


def device() -> torch.device:
    """Return CUDA if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> str:
    """Describe the machine that the numbers were measured on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{len(os.sched_getaffinity(0))} shared CPU cores ({platform.machine()}, {capability}), torch {torch.__version__}"


def random_sequences(
    vocabulary: Vocabulary, count: int, notation: str = "A+L -> T", with_target: bool = True
) -> list[Packed]:
    """Return sequences of random IDs with real lengths: those of the 3-Equations corpus, preset tiny (lengths.csv)."""
    with (ROOT / "benchmarks" / "lengths.csv").open() as file:
        rows = list(csv.DictReader(file))
    rng, template = np.random.default_rng(0), Template.parse(notation)
    columns = {"A": "audio", "L": "lips", "T": "text"}
    sequences = []
    for row in (rows * (count // len(rows) + 1))[:count]:
        streams = {
            letter: rng.integers(0, len(vocabulary.range(letter)), int(row[column]))
            for letter, column in columns.items()
        }
        sequences.append(pack(template, streams, vocabulary, {}, with_target=with_target))
    return sequences


def model(name: str, vocabulary: Vocabulary, context: int = 512, dropout: float = 0.0) -> PreTrainedModel:
    """Build a model, by default without dropout."""
    special = [vocabulary.special(token) for token in ("<pad>", "<bos>", "<eos>")]
    return build(BackboneSpec(name, vocabulary.text_size, vocabulary.size, context, *special, dropout=dropout), seed=0)


def synchronise() -> None:
    """Wait until the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock time of one call, in seconds."""
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


class Rival:
    """`contestant(side, case)` of a benchmark, in a separate process (see rival.py); a call measures once."""

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
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def alternate(module: str, case: str, sides: Sequence[str] = ("ours", "theirs"), rounds: int = ROUNDS) -> list[float]:
    """Return the median of each side over rounds in which the sides take turns.

    One more round comes first and is not counted.
    """
    rivals = [Rival(module, side, case) for side in sides]
    values: list[list[float]] = [[] for _ in rivals]
    for number in tqdm(range(rounds + 1), desc=case, unit="round"):
        for values_of_side, rival in zip(values, rivals, strict=True):
            value = rival()
            if number:
                values_of_side.append(value)
    for rival in rivals:
        rival.close()
    return [statistics.median(values_of_side) for values_of_side in values]


def row(
    name: str, ours: float, theirs: float | None, unit: str, at_least: float | None, note: str = ""
) -> dict[str, object]:
    """Return one line of the results; `ratio` says how many times better ours is.

    More is better for units with a slash (`tokens/s`), less is better for all others (`s`, `GiB`).
    """
    ratio = None if theirs is None else (ours / theirs if "/" in unit else theirs / ours)
    rounded = [None if value is None else float(f"{value:.4g}") for value in (ours, theirs, ratio)]
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
    """Print rows, and write them to the file of results in place of those of the same name and machine."""
    stored = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    new = {(r["name"], r["machine"]) for r in rows}
    others = [r for r in stored if (r["name"], r["machine"]) not in new]
    RESULTS.write_text(json.dumps([*others, *rows], indent=1) + "\n")
    for r in rows:
        print(f"{r['name']:<60} ours {r['ours']:<10} theirs {r['theirs']!s:<10} {r['unit']:<10} ratio {r['ratio']}")
