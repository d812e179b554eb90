"""Train one trial; evaluate one trained model. The only room of the sweep that loads torch."""

import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from dmlm import places
from dmlm.corpus.noise import TOLERANCE_DB, generator
from dmlm.errors import UserError
from dmlm.model import backbones, pretrained, scan_choice
from dmlm.model.pretrained import family_of
from dmlm.run import checkpoint
from dmlm.run.evaluate import Reading, score, transcribe
from dmlm.run.loggers import open_loggers
from dmlm.run.peers import Peers
from dmlm.run.train import TrainReport, train
from dmlm.score.perceptual import matched_derangement
from dmlm.score.wer import normalise
from dmlm.sequence.batches import check_context
from dmlm.sequence.template import Packed, Template, pack
from dmlm.sweep.card import write_card
from dmlm.sweep.cell import Cell
from dmlm.sweep.lease import Tenure
from dmlm.sweep.materials import Materials
from dmlm.sweep.trial import Evaluation, Trial
from dmlm.tokens.tokenizer import Tokenizer

TOGETHER = 8  # conditions


def device() -> torch.device:
    """CUDA where there is one, else one thread of the CPU: a trial has a core, and sums in one order."""
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(own)
    return own


def packed_draws(trial: Trial, materials: Materials) -> list[list[Packed]]:
    """Training sequences, one list per noise draw."""
    cell, vocabulary = trial.cell, materials.vocabulary(trial.cell.letters)
    draws = []
    for number, condition in enumerate(materials.train_conditions[: cell.train.draws]):
        items, _ = materials.streams(cell.letters, "train", condition)
        items = permute(items, heard_with(cell.permute, cell, materials), number) if cell.permute else items
        draws.append([pack(Template.parse(cell.template), item, vocabulary, materials.rates_hz) for item in items])
    return draws


def train_cell(trial: Trial, materials: Materials, checkpoint_every_s: float) -> None:
    """Train, from the last checkpoint if there is one; keep the model and, last, `result.json`.

    Raises:
        Busy: the lease under which this is called was taken over meanwhile; nothing more is written.
    """
    cell, tenure = trial.cell, Tenure(trial.folder / "train.lease")
    loggers = open_loggers(cell.execution.loggers, trial.folder, trial.spec)
    vocabulary = materials.vocabulary(cell.letters)
    draws = packed_draws(trial, materials)
    names = [utterance.id for utterance in materials.corpus.split("train")]
    check_context(draws[0], names, cell.model.context, cell.template)
    spec = backbones.BackboneSpec(
        cell.backbone,
        vocabulary.text_size,
        vocabulary.size,
        cell.model.context,
        pad_id=vocabulary.special("<pad>"),
        bos_id=vocabulary.special("<bos>"),
        eos_id=vocabulary.special("<eos>"),
        dropout=cell.train.dropout,
    )
    model = backbones.build(spec, cell.seed)
    if cell.model.start == "structured":
        if not pretrained.is_named(cell.backbone):
            backbones.start_at_sinusoids(model)  # first: centroids change the spread of the embeddings
        encoders = {letter: materials.sources[letter].encoder for letter in cell.letters}
        books = {k: e.codebook for k, e in encoders.items() if isinstance(e, Tokenizer) and e.codebook}
        backbones.start_at_centroids(model, {vocabulary.offset(k): b.centroids for k, b in books.items()}, cell.seed)
    peers = Peers.join()
    if peers.first:
        places.write_text(trial.folder / "spec.json", json.dumps(trial.spec, indent=1) + "\n")
    pad = vocabulary.special("<pad>")
    how = (cell.train, cell.seed, trial.folder, pad, device(), cell.execution, checkpoint_every_s)

    def on_step(step: int, loss: float) -> None:
        if peers.first:
            tenure.look()

    with loggers:
        report = train(model, draws, *how, on_step=on_step, loggers=loggers)
        if peers.first:
            tenure.confirm()
            _keep(model, trial, report, materials)
            checkpoint.clear(trial.folder / "checkpoints")


def _keep(model: PreTrainedModel, trial: Trial, report: TrainReport, materials: Materials) -> None:
    """Model folder in Hugging Face's form, moved into place whole; then, with all of it on the disk, the result."""
    aside = trial.folder / ".model.part"
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    materials.text.save(aside / "text.json")
    for path in (*aside.rglob("*"), aside):
        places.flush(path)
    shutil.rmtree(trial.folder / "model", ignore_errors=True)
    os.replace(aside, trial.folder / "model")
    places.flush(trial.folder)
    last = [json.loads(line)["loss"] for line in (trial.folder / "train.jsonl").read_text().splitlines()[-5:]]
    result = {
        "parameters": backbones.parameter_count(model),
        "parameters_without_embeddings": backbones.parameter_count(model, embeddings=False),
        "steps": report.steps,
        "train_s": round(report.train_s, 2),
        "tokens_per_s": round(report.tokens / report.seconds_here, 1) if report.seconds_here else None,
        "final_loss": round(float(np.mean(last)), 5) if last else None,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "precision": trial.cell.train.precision,
        "execution": trial.cell.execution.model_dump(),
        "scan": scan_choice.chosen(device().type)[0] if family_of(trial.cell.backbone) == "mamba" else None,
    }
    places.write_text(trial.folder / "result.json", json.dumps(result, indent=1) + "\n")


def evaluate_conditions(trial: Trial, pending: Sequence[Evaluation], materials: Materials) -> None:
    """Decode the test split under every pending condition; each leaves its folder when it is done.

    A few conditions are decoded together, because an utterance's sequences begin alike under many of them.
    """
    cell = trial.cell
    loggers = open_loggers(cell.execution.loggers, trial.folder, trial.spec)
    model = backbones.load(trial.folder / "model")
    reading = reading_of(cell, materials)
    utterances = materials.corpus.split(cell.split)
    with loggers:
        loggers.start(cell.train.steps)
        for group in (pending[start : start + TOGETHER] for start in range(0, len(pending), TOGETHER)):
            started = time.monotonic()
            inputs = [_inputs(evaluation, cell, materials) for evaluation in group]
            written = transcribe(model, [item for items, _ in inputs for item in items], reading)
            spent = (time.monotonic() - started) / len(group)
            for number, (evaluation, (items, levels)) in enumerate(zip(group, inputs, strict=True)):
                hypotheses = [normalise(text) for text in written[number * len(items) : (number + 1) * len(items)]]
                records = score(utterances, hypotheses, levels)
                wer = _write_scores(trial.scores(evaluation), records, evaluation.spec(cell), spent)
                loggers.scalars(cell.train.steps, {f"wer/{evaluation.folder_name(cell)}": wer})
            write_card(trial, materials.corpus.label, reading.vocabulary.text_size, dict(reading.vocabulary.sizes))


def reading_of(cell: Cell, materials: Materials) -> Reading:
    """How a model of this cell reads and writes."""
    vocabulary, template = materials.vocabulary(cell.letters), Template.parse(cell.template)
    return Reading(template, vocabulary, materials.text, materials.rates_hz, cell.decode, device())


def _inputs(evaluation: Evaluation, cell: Cell, materials: Materials) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Token streams of the test split under a condition, and the SNR measured on each utterance."""
    items, levels = materials.streams(cell.letters, cell.split, evaluation.condition)
    check_level(levels, evaluation)
    letter = evaluation.permuted or cell.permute
    return (permute(items, heard_with(letter, cell, materials), evaluation.draw) if letter else items), levels


def heard_with(letter: str, cell: Cell, materials: Materials) -> list[str]:
    """A modality that is exchanged, and whatever else of the cell was made from it: text that was chosen by the audio."""
    others = [k for k in cell.letters if k != letter and materials.sources[k].encoder.hears] if letter == "A" else []
    return [letter, *others]


def permute(items: list[dict[str, Any]], letters: list[str], draw: int) -> list[dict[str, Any]]:
    """Give each item those modalities of another whose first is as long: the same donors for every model and SNR."""
    givers = matched_derangement([len(item[letters[0]]) for item in items], generator("donors", letters[0], draw))
    return [
        {**item, **{letter: items[giver][letter] for letter in letters}}
        for item, giver in zip(items, givers, strict=True)
    ]


def check_level(levels: dict[str, float], evaluation: Evaluation) -> None:
    """Refuse a condition in which any utterance's measured SNR is off by more than 0.1 dB.

    Raises:
        UserError: naming the utterance.
    """
    asked = evaluation.condition.snrs_db[0]
    for name, level in levels.items():
        if not (level == asked or (math.isfinite(asked) and abs(level - asked) <= TOLERANCE_DB)):
            raise UserError(
                f"Utterance {name!r} was asked for {asked} dB but has {level:.2f} dB; remove the token cache of this condition."
            )


def _write_scores(folder: Path, records: list[dict[str, Any]], spec: dict[str, Any], decode_s: float) -> float:
    """The files of an evaluation, `result.json` last; its WER."""
    places.write_text(folder / "spec.json", json.dumps(spec, indent=1) + "\n")
    places.write_text(folder / "utterances.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    counts = {k: sum(r[k] for r in records) for k in ("substitutions", "deletions", "insertions", "reference_words")}
    wer = (counts["substitutions"] + counts["deletions"] + counts["insertions"]) / counts["reference_words"]
    result = {
        "wer": wer,
        **counts,
        "utterances": len(records),
        "decode_s": round(decode_s, 3),
    }
    places.write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")
    return wer
