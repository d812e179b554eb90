"""Evaluate one trained model under its test conditions. Loads torch."""

import time
from collections.abc import Sequence
from typing import Any

from dmlm import snr
from dmlm.errors import UserError
from dmlm.model import backbones
from dmlm.plan.cell import Cell
from dmlm.recognition.device import device
from dmlm.recognition.score import score
from dmlm.recognition.transcribe import Reading, transcribe
from dmlm.results.records import UtteranceResult
from dmlm.score.normalisers import NORMALISERS
from dmlm.sequence.template import Template
from dmlm.sweep.controls import exchanged_with, permute
from dmlm.sweep.materials import Materials
from dmlm.sweep.model_card import write_card
from dmlm.sweep.trial import Evaluation, Trial
from dmlm.training.loggers import open_loggers

CONDITIONS_AT_ONCE = 8


def evaluate_trial(trial: Trial, pending: Sequence[Evaluation], materials: Materials) -> None:
    """Decode and score the cell's split for every pending evaluation, and write the folder of each.

    A few conditions are decoded together, because the sequences of an utterance share a prefix under many of them.
    """
    cell = trial.cell
    loggers = open_loggers(cell.execution.loggers, trial.folder, trial.spec)
    model = backbones.load(trial.stored.model)
    reading = reading_of(cell, materials)
    utterances = materials.corpus.split(cell.split)
    left_out = materials.corpus.left_out_counts.get(cell.split, {})
    with loggers:
        loggers.start(cell.train.steps)
        for start in range(0, len(pending), CONDITIONS_AT_ONCE):
            group = pending[start : start + CONDITIONS_AT_ONCE]
            started = time.monotonic()
            inputs = [_inputs(evaluation, cell, materials) for evaluation in group]
            transcripts = transcribe(model, [item for streams, _ in inputs for item in streams], reading)
            decode_s = (time.monotonic() - started) / len(group)
            for number, (evaluation, (streams, snr_db_measured)) in enumerate(zip(group, inputs, strict=True)):
                written = transcripts[number * len(streams) : (number + 1) * len(streams)]
                records = score(utterances, written, snr_db_measured, NORMALISERS[cell.corpus.normaliser])
                results = [UtteranceResult(**record) for record in records]
                result = trial.folder_of(evaluation).write(evaluation.spec(cell), results, decode_s, left_out)
                loggers.scalars(cell.train.steps, {f"wer/{trial.name_of(evaluation)}": result.wer})
            write_card(trial, materials, reading)


def reading_of(cell: Cell, materials: Materials) -> Reading:
    """Return what a model of this cell needs for decoding: template, vocabularies, rates, settings and device."""
    vocabulary, template = materials.vocabulary(cell.letters), Template.parse(cell.template)
    return Reading(template, vocabulary, materials.text, materials.rates_hz, cell.decode, device())


def _inputs(evaluation: Evaluation, cell: Cell, materials: Materials) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the token streams of an evaluation and the SNR in dB measured on each utterance, by id."""
    streams, snr_db_measured = materials.streams(cell.letters, cell.split, evaluation.condition)
    check_snr(snr_db_measured, evaluation.snr_db)
    letter = evaluation.permuted or cell.permute
    if letter:
        streams = permute(streams, exchanged_with(letter, cell, materials), evaluation.draw)
    return streams, snr_db_measured


def check_snr(snr_db_measured: dict[str, float], snr_db: float) -> None:
    """Check that the measured SNR of every utterance is within 0.1 dB of the requested one.

    Raises:
        UserError: it is not; names the utterance.
    """
    for name, measured_db in snr_db_measured.items():
        if not snr.agrees(measured_db, snr_db):
            raise UserError(
                f"Utterance {name!r} was asked for {snr.with_unit(snr_db)} but has {measured_db:.2f} dB; remove the token cache of this condition."
            )
