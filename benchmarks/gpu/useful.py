"""Is it useful? Cells of a grid, trained and tested from token shards that were prepared on another machine.

`shards.py` makes the shards and takes the transcripts back into the grid. This file needs torch and transformers only.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu.steps import LeftOut, Row, Step, fact
from harness import VOCABULARY, device, random_sequences
from safetensors import safe_open
from safetensors.numpy import save_file

from dmlm import files, paths
from dmlm.errors import UserError
from dmlm.model import backbones, scan_choice
from dmlm.model.family import SIZES, BackboneSpec
from dmlm.recognition.settings import DecodeSettings
from dmlm.recognition.transcribe import Reading, transcribe
from dmlm.results.training_log import TrainingLog
from dmlm.sequence.template import ROLES, Packed, Template, pack
from dmlm.sweep.controls import permute
from dmlm.tokens.vocabulary import TextVocabulary, Vocabulary
from dmlm.training.loggers import NO_LOGGERS
from dmlm.training.loop import Session, train
from dmlm.training.objectives.next_token import NextToken
from dmlm.training.settings import Lambdas, TrainSettings

DESCRIPTION, ARRAYS = "shards.json", "shards.safetensors"
AT_ONCE = 8  # evaluations: an utterance's sequences share a prefix under many conditions
CELL_S = 3600.0
Streams = list[dict[str, Any]]


def write_shards(folder: Path, description: Mapping[str, Any], streams: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write shards: streams of token IDs by key, each flat with its lengths, and what says how they are used."""
    arrays: dict[str, np.ndarray] = {}
    for key, items in streams.items():
        ids = np.concatenate([np.empty(0, np.int64), *items])
        arrays[key] = ids.astype(np.uint16 if ids.max(initial=0) < 2**16 else np.int32)
        arrays[f"{key} lengths"] = np.array([len(item) for item in items], np.int32)
    arrays |= {key: np.asarray(values, np.float32) for key, values in description["centroids"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic(folder / ARRAYS) as temporary:
        save_file(arrays, temporary)
    (folder / ARRAYS).chmod(0o644)
    stored = {**description, "centroids": list(description["centroids"]), "digest": files.digest(folder / ARRAYS)}
    files.write_text(folder / DESCRIPTION, json.dumps(stored) + "\n")


class Shards:
    """Shards as they were written.

    Raises:
        UserError: there are none in the folder, or they are damaged.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / DESCRIPTION).is_file() or not (folder / ARRAYS).is_file():
            raise UserError(f"{folder} has no {DESCRIPTION} and {ARRAYS}; give a folder that `shards.py make` wrote.")
        try:
            self.description = json.loads((folder / DESCRIPTION).read_text("utf-8"))
            self.cells: list[dict[str, Any]] = self.description["cells"]
            self.digest: str = self.description["digest"]
        except (ValueError, KeyError, TypeError):
            self.digest = ""
        if self.digest != files.digest(folder / ARRAYS):
            raise UserError(f"The shards in {folder} are damaged; copy them again, or make them again.")
        self._arrays = safe_open(folder / ARRAYS, "np")

    def array(self, key: str) -> np.ndarray:
        """Return an array by its key."""
        return self._arrays.get_tensor(key)

    def streams(self, keys: Mapping[str, str]) -> Streams:
        """Return the token IDs of every utterance by letter; `keys` has the key of each letter."""
        columns = {}
        for letter, key in keys.items():
            ends = np.cumsum(self.array(f"{key} lengths"))[:-1]
            columns[letter] = np.split(self.array(key).astype(np.int64), ends)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def train_settings(values: Mapping[str, Any]) -> TrainSettings:
    """Return the settings of a training as stored."""
    return TrainSettings(**{**values, "lambdas": Lambdas(**values["lambdas"])})


def _vocabulary(cell: Mapping[str, Any]) -> Vocabulary:
    return Vocabulary(cell["text_size"], cell["sizes"])


def _draws(cell: Mapping[str, Any], shards: Shards) -> list[list[Packed]]:
    """Return the training sequences, a list for each draw of the noise."""
    template, vocabulary, draws = Template.parse(cell["template"]), _vocabulary(cell), []
    for number, keys in enumerate(cell["train_streams"]):
        streams = shards.streams(keys)
        if cell["permuted"]:
            streams = permute(streams, cell["permuted"], number)
        draws.append([pack(template, item, vocabulary, cell["rates_hz"]) for item in streams])
    return draws


def _new_model(cell: Mapping[str, Any], shards: Shards) -> Any:
    """Return the model before its first step."""
    vocabulary = _vocabulary(cell)
    special = [vocabulary.special(token) for token in ("<pad>", "<bos>", "<eos>")]
    spec = BackboneSpec(
        cell["backbone"], vocabulary.text_size, vocabulary.size, cell["context"], *special, cell["train"]["dropout"]
    )
    net = backbones.build(spec, cell["seed"])
    if cell["start"] == "structured":
        backbones.start_at_sinusoids(net)
        centroids = {vocabulary.offset(letter): shards.array(key) for letter, key in cell["centroids"].items()}
        backbones.start_at_centroids(net, centroids, cell["seed"])
    return net


def run_cell(toy: bool, shards_folder: Path, trial: str, results: Path) -> Iterator[Row]:
    """Train and test one cell; interrupted, it goes on from its checkpoint, if that is still on this machine."""
    shards = Shards(shards_folder)
    cell = next(cell for cell in shards.cells if cell["trial"] == trial)
    settings, vocabulary = train_settings(cell["train"]), _vocabulary(cell)
    work, target = paths.home() / "gpu" / f"{trial}-{shards.digest[:8]}", results / f"cell-{trial}.json"
    new: dict[str, Any] = {"shards": shards.digest, "evaluations": {}}
    found: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else new
    if found["shards"] != shards.digest:  # of shards that were here before
        found = new
    log = TrainingLog(work / "train.jsonl", settings.steps, NO_LOGGERS)
    trained = work / "model" / "trained.json"  # written last
    facts = json.loads(trained.read_text()) if trained.is_file() else {}
    if facts.get("shards") == shards.digest:
        found = {**facts, **found}
    else:  # results of an earlier session, if any, are those of another model
        found = new
        session = Session(
            name=trial, checkpoints=work / "checkpoints", device=device(), log=log, checkpoint_every_s=45.0
        )
        net = _new_model(cell, shards)
        objective = NextToken(settings.lambdas, vocabulary.special("<pad>"), settings.input_mask)
        report = train(net, _draws(cell, shards), settings, cell["seed"], objective, session)
        found |= {
            "parameters": backbones.parameter_count(net),
            "parameters_without_embeddings": backbones.parameter_count(net, embeddings=False),
            "steps": report.steps,
            "train_s": round(report.train_s, 2),
            "tokens_per_s": round(report.tokens / report.session_s, 1) if report.session_s else None,
            "precision": settings.precision,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "torch": torch.__version__,
            "scan": scan_choice.fastest_scan(device().type)[0] if SIZES[cell["backbone"]].needs_scan else None,
            "log": (work / "train.jsonl").read_text(),
        }
        net.save_pretrained(work / "model")
        files.write_text(trained, json.dumps({**found, "evaluations": {}}))
        files.write_text(target, json.dumps(found))
    net = backbones.load(work / "model")
    yield fact("steps", f"{found['steps']:,} in {found['train_s']:,.0f} s, {found['tokens_per_s'] or 0:,.0f} tokens/s")
    text = TextVocabulary.of_json(shards.description["text"])
    decoding = DecodeSettings(**cell["decode"])
    reading = Reading(Template.parse(cell["template"]), vocabulary, text, cell["rates_hz"], decoding, device())
    pending = [e for e in cell["evaluations"] if e["name"] not in found["evaluations"]]
    for start in range(0, len(pending), AT_ONCE):
        group, began = pending[start : start + AT_ONCE], time.monotonic()
        inputs = []
        for evaluation in group:
            streams = shards.streams(evaluation["streams"])
            if evaluation["permuted"]:
                streams = permute(streams, evaluation["permuted"], evaluation["draw"])
            inputs.append(streams)
        transcripts = transcribe(net, [item for streams in inputs for item in streams], reading)
        decode_s = (time.monotonic() - began) / len(group)
        for number, (evaluation, streams) in enumerate(zip(group, inputs, strict=True)):
            hypotheses = [asdict(one) for one in transcripts[number * len(streams) : (number + 1) * len(streams)]]
            found["evaluations"][evaluation["name"]] = {"hypotheses": hypotheses, "decode_s": round(decode_s, 3)}
        files.write_text(target, json.dumps(found))
        yield fact(f"tested under {len(group)} conditions, seconds for each", round(decode_s, 1))


def own_shards(folder: Path) -> None:
    """Write shards of random tokens, one OPT and one Mamba, for a rehearsal."""
    sequences, streams = random_sequences(VOCABULARY, 12), {}
    for letter in "ALT":
        is_eos = [sequence.ids == VOCABULARY.special("<eos>") for sequence in sequences]
        streams[f"{letter}/all"] = [
            s.ids[(s.roles == ROLES.index(letter)) & ~end] - VOCABULARY.offset(letter)
            for s, end in zip(sequences, is_eos, strict=True)
        ]
    letters = [chr(ord("a") + number) for number in range(26)]
    text = TextVocabulary.learn([" ".join(letters)] * 3, VOCABULARY.text_size)
    keys = {letter: f"{letter}/all" for letter in "ALT"}
    cells = [
        {
            "trial": f"{name}-rehearsal",
            "backbone": name,
            "template": "A+L -> T",
            "seed": 0,
            "context": 512,
            "start": "structured",
            "text_size": VOCABULARY.text_size,
            "sizes": {"A": len(VOCABULARY.range("A")), "L": len(VOCABULARY.range("L"))},
            "rates_hz": {},
            "permuted": None,
            "centroids": {"A": "centroids of A"},
            "train": {"steps": 3, "batch_size": 4, "lambdas": {}},
            "train_streams": [keys],
            "decode": {"max_new_tokens": 4},
            "evaluations": [
                {"name": "clean", "streams": keys, "permuted": None, "draw": 0},
                {"name": "permuted", "streams": keys, "permuted": ["L"], "draw": 1},
            ],
        }
        for name in ("opt-nano", "mamba-nano")
    ]
    for cell in cells:
        cell["train"] = {"dropout": 0.0, **cell["train"]}
    centroids = {"centroids of A": np.random.default_rng(0).normal(size=(len(VOCABULARY.range("A")), 39))}
    write_shards(folder, {"cells": cells, "text": text.json, "centroids": centroids}, streams)


def _left_out(toy: bool) -> Iterator[Row]:
    raise LeftOut("no shards were given: --shards FOLDER; docs/gpu.md says how to make them")
    yield {}


def steps(shards: Path | None, results: Path, toy: bool) -> list[Step]:
    """Return a step for each cell of the shards."""
    if shards is None and toy:
        shards = results / "home" / "shards"
        own_shards(shards)
    if shards is None:
        return [Step("cells", "useful", 10, _left_out)]
    opened = Shards(shards)
    return [
        Step(
            f"cell {cell['trial']}",
            "useful",
            CELL_S,
            partial(run_cell, shards_folder=shards, trial=cell["trial"], results=results),
            inputs=opened.digest[:8],
        )
        for cell in opened.cells
    ]
