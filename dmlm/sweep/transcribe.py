"""A first pass: the transcripts of a trained model for every utterance, in each of its training and test conditions."""

import json
from dataclasses import asdict
from pathlib import Path

from dmlm import files, progress
from dmlm.errors import UserError
from dmlm.model import backbones
from dmlm.recognition.transcribe import transcribe
from dmlm.score.normalisers import BASIC
from dmlm.sweep.evaluate_trial import reading_of
from dmlm.sweep.materials import Materials
from dmlm.sweep.trial import Trial
from dmlm.tokens import first_pass


def transcribe_all(trial: Trial, materials: Materials, folder: Path) -> int:
    """Write FOLDER/CONDITION/SPLIT.jsonl, see `dmlm.tokens.first_pass`; complete files are kept.

    Returns:
        The number of transcripts in the folder.

    Raises:
        UserError: the model is not trained, or the folder holds something else.
    """
    if trial.stored.result is None or not trial.stored.has_model:
        raise UserError(
            f"{trial.cell.label} has no trained model yet; first: dmlm grid run, with the same grid and changes."
        )
    card = {"trial": trial.id, "corpus": materials.corpus.label, "decode": asdict(trial.cell.decode)}
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder.")
    if folder.is_dir() and any(folder.iterdir()) and first_pass.read_card(folder) != card:
        raise UserError(f"{folder} holds the transcripts of another model or corpus, or something else; give another.")
    files.write_text(folder / first_pass.CARD, json.dumps(card, indent=1) + "\n")
    cell = trial.cell
    passes = [("train", condition) for condition in materials.train_conditions[: cell.train.draws]]
    passes += [(cell.split, condition) for condition in materials.test_conditions.values()]
    counts = {split: len(materials.corpus.split(split)) for split, _ in passes}
    model, reading = backbones.load(trial.stored.model), reading_of(cell, materials)
    with progress.bar("first pass", sum(counts[split] for split, _ in passes), "clip") as bar:
        for split, condition in passes:
            path = first_pass.transcripts_path(folder, condition.key, split)
            if not first_pass.is_complete(path, [utterance.id for utterance in materials.corpus.split(split)]):
                items, _ = materials.streams(cell.letters, split, condition)
                records = zip(materials.corpus.split(split), transcribe(model, items, reading), strict=True)
                lines = (json.dumps({"id": u.id, "text": BASIC(written.text)}) + "\n" for u, written in records)
                files.write_text(path, "".join(lines))
            bar.update(counts[split])
    return sum(counts[split] for split, _ in passes)
