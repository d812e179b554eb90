"""Train one trial and write its model folder. Loads torch."""

import os
import shutil
from dataclasses import asdict
from statistics import fmean

import torch
from transformers import PreTrainedModel

from dmlm import files
from dmlm.engines.lease import HeldLease
from dmlm.model import backbones, pretrained, scan_choice
from dmlm.model.family import BackboneSpec
from dmlm.recognition.device import device
from dmlm.recognition.model_folder import write_model_folder
from dmlm.results.records import TrialResult
from dmlm.results.training_log import TrainingLog
from dmlm.sequence.batches import check_context
from dmlm.sequence.template import Packed, Template, pack
from dmlm.sweep.controls import exchanged_with, permute
from dmlm.sweep.evaluate_trial import reading_of
from dmlm.sweep.materials import Materials
from dmlm.sweep.model_card import description_of, write_card
from dmlm.sweep.trial import Trial
from dmlm.tokens.encoder import Tokenizer
from dmlm.training import checkpoint
from dmlm.training.loggers import open_loggers
from dmlm.training.loop import Session, TrainReport, train
from dmlm.training.objectives.next_token import NextToken
from dmlm.training.peers import Peers

OBJECTIVES = {"next_token": NextToken}  # by `train.objective`


def train_trial(trial: Trial, materials: Materials, checkpoint_every_s: float) -> None:
    """Train from the last checkpoint, if there is one; then write the model and, last, `result.json`.

    The caller holds the training lease.

    Raises:
        Busy: another process took over the lease meanwhile; nothing more is written.
    """
    cell, peers = trial.cell, Peers.join()
    lease = HeldLease(trial.stored.training_lease)
    draws = packed_draws(trial, materials)
    names = [utterance.id for utterance in materials.corpus.split("train")]
    check_context(draws[0], names, cell.model.context, cell.template)
    model = new_model(trial, materials)
    if peers.first:
        trial.stored.write_spec(trial.spec)
    loggers = open_loggers(cell.execution.loggers, trial.folder, trial.spec)
    session = Session(
        name=trial.id,
        checkpoints=trial.stored.checkpoints,
        device=device(),
        log=TrainingLog(trial.stored.log_path, cell.train.steps, loggers),
        execution=cell.execution,
        checkpoint_every_s=checkpoint_every_s,
        on_step=lambda step, loss: lease.confirm_if_due() if peers.first else None,
    )
    pad_id = materials.vocabulary(cell.letters).special("<pad>")
    objective = OBJECTIVES[cell.train.objective](cell.train.lambdas, pad_id, cell.train.input_mask)
    with loggers:
        report = train(model, draws, cell.train, cell.seed, objective, session)
        if peers.first:
            lease.confirm()
            _write_model(model, trial, materials)
            trial.stored.write_result(_result(model, trial, report))
            checkpoint.clear(trial.stored.checkpoints)
            write_card(trial, materials, reading_of(cell, materials))  # evaluations add their scores


def packed_draws(trial: Trial, materials: Materials) -> list[list[Packed]]:
    """Return the training sequences: one list per noise draw, each in manifest order."""
    cell, vocabulary = trial.cell, materials.vocabulary(trial.cell.letters)
    draws = []
    for draw, condition in enumerate(materials.train_conditions[: cell.train.draws]):
        streams, _ = materials.streams(cell.letters, "train", condition)
        if cell.permute:
            streams = permute(streams, exchanged_with(cell.permute, cell, materials), draw)
        draws.append([pack(Template.parse(cell.template), item, vocabulary, materials.rates_hz) for item in streams])
    return draws


def new_model(trial: Trial, materials: Materials) -> PreTrainedModel:
    """Return the model before its first step: random or pretrained weights, and embeddings as `model.start` says."""
    cell, vocabulary = trial.cell, materials.vocabulary(trial.cell.letters)
    spec = BackboneSpec(
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
            backbones.start_at_sinusoids(model)  # before the centroids, which change the variance of the embeddings
        encoders = {letter: materials.sources[letter].encoder for letter in cell.letters}
        codebooks = {k: e.codebook for k, e in encoders.items() if isinstance(e, Tokenizer) and e.codebook}
        centroids = {vocabulary.offset(letter): codebook.centroids for letter, codebook in codebooks.items()}
        backbones.start_at_centroids(model, centroids, cell.seed)
    return model


def _write_model(model: PreTrainedModel, trial: Trial, materials: Materials) -> None:
    """Write the model's folder atomically: to a temporary folder, flushed to the disk, then renamed."""
    temporary = trial.folder / ".model.part"
    shutil.rmtree(temporary, ignore_errors=True)
    write_model_folder(
        temporary, model, description_of(trial, materials), materials.text, materials.learned(trial.cell)
    )
    for path in (*temporary.rglob("*"), temporary):
        files.flush(path)
    shutil.rmtree(trial.stored.model, ignore_errors=True)
    os.replace(temporary, trial.stored.model)
    files.flush(trial.folder)


def _result(model: PreTrainedModel, trial: Trial, report: TrainReport) -> TrialResult:
    last_losses = [step.loss for step in trial.stored.log()[-5:]]
    on_cuda = torch.cuda.is_available()
    needs_scan = pretrained.family_of(trial.cell.backbone).needs_scan
    return TrialResult(
        parameters=backbones.parameter_count(model),
        parameters_without_embeddings=backbones.parameter_count(model, embeddings=False),
        steps=report.steps,
        train_s=round(report.train_s, 2),
        tokens_per_s=round(report.tokens / report.session_s, 1) if report.session_s else None,
        final_loss=round(fmean(last_losses), 5) if last_losses else None,
        device=torch.cuda.get_device_name() if on_cuda else f"cpu, {torch.get_num_threads()} threads",
        torch=torch.__version__,
        precision=trial.cell.train.precision,
        execution=asdict(trial.cell.execution),
        scan=scan_choice.fastest_scan(device().type)[0] if needs_scan else None,
    )
