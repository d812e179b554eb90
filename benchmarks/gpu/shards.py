"""Token shards of a grid for a GPU machine on which nothing is installed; and the way back into the grid.

    python benchmarks/gpu/shards.py make modalities:paper name=h100 train.steps=6000 --to shards
    python benchmarks/on_a_gpu.py --shards shards --to out        # on the GPU machine
    python benchmarks/gpu/shards.py collect shards out            # the cells are then finished cells of grid h100

`make` runs where dmlm is installed, and prepares corpus and tokens as `dmlm grid run` does. Shards of 16 cells over the audio,
lips and pages of the paper's corpus were 31 MiB.
"""

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu.useful import Shards, write_shards

from dmlm import paths
from dmlm.cli.main import run
from dmlm.errors import UserError
from dmlm.model import pretrained
from dmlm.plan.grid import read_grid_file
from dmlm.recognition.score import score
from dmlm.recognition.transcribe import Transcript
from dmlm.results.folders import trial_folder
from dmlm.results.grid import write_grid
from dmlm.results.records import TrialResult, UtteranceResult
from dmlm.score.normalisers import of_stored
from dmlm.sweep.api import index_of
from dmlm.sweep.controls import exchanged_with
from dmlm.sweep.materials import Materials
from dmlm.sweep.preparation import prepare_under_lease
from dmlm.sweep.requirements import check
from dmlm.sweep.trial import Trial, trial_of
from dmlm.tokens.encoder import Tokenizer

app = typer.Typer(add_completion=False, help=__doc__)


class Collected:
    """The streams that cells need, each once, by key."""

    def __init__(self) -> None:
        self.streams: dict[str, list[np.ndarray]] = {}
        self.centroids: dict[str, np.ndarray] = {}
        self.snr_db_measured: dict[str, dict[str, float]] = {}
        self.utterances: dict[str, list[dict[str, Any]]] = {}

    def keys(self, materials: Materials, letters: tuple[str, ...], split: str, condition: Any) -> dict[str, str]:
        """Add the streams of a split under a condition; return their keys by letter, the transcript's too."""
        corpus, keys = materials.corpus, {}
        utterances = corpus.split(split)
        for letter in letters:
            source = materials.sources[letter]
            key = f"{source.fingerprint[:12]}/{corpus.digest[:12]}/{split}/{source.condition_for(condition).key}"
            if key not in self.streams:
                encoded = source.load(split, condition)
                items = [encoded.tokens[utterance.id] for utterance in utterances]
                self.streams[key] = [materials.text.encode(i) if isinstance(i, str) else i for i in items]
                self.snr_db_measured[key] = encoded.snr_db_measured
            keys[letter] = key
        key = f"{materials.text.digest[:12]}/{corpus.digest[:12]}/{split}"
        if key not in self.streams:
            self.streams[key] = [materials.text.encode(utterance.text) for utterance in utterances]
            self.utterances[key] = [{"id": u.id, "text": u.text, "speaker": u.speaker} for u in utterances]
        return keys | {"T": key}

    def cell(self, trial: Trial, materials: Materials) -> dict[str, Any]:
        """Add what a cell needs; return its description."""
        cell, encoders = trial.cell, {k: materials.sources[k].encoder for k in trial.cell.letters}
        centroids = {}
        for letter, encoder in encoders.items():
            if isinstance(encoder, Tokenizer) and encoder.codebook:
                centroids[letter] = f"{materials.fingerprints[letter][:12]}/centroids"
                self.centroids[centroids[letter]] = encoder.codebook.centroids
        vocabulary = materials.vocabulary(cell.letters)

        def exchanged(letter: str | None) -> list[str] | None:
            return exchanged_with(letter, cell, materials) if letter else None

        return {
            "trial": trial.id,
            "spec": trial.spec,
            "backbone": cell.backbone,
            "template": cell.template,
            "seed": cell.seed,
            "context": cell.model.context,
            "start": cell.model.start,
            "text_size": vocabulary.text_size,
            "sizes": {
                letter: len(vocabulary.range(letter)) for letter, e in encoders.items() if isinstance(e, Tokenizer)
            },
            "rates_hz": materials.rates_hz,
            "permuted": exchanged(cell.permute),
            "centroids": centroids,
            "train": asdict(cell.train),
            "train_streams": [
                self.keys(materials, cell.letters, "train", condition)
                for condition in materials.train_conditions[: cell.train.draws]
            ],
            "decode": asdict(cell.decode),
            "evaluations": [
                {
                    "name": trial.name_of(evaluation),
                    "spec": evaluation.spec(cell),
                    "streams": self.keys(materials, cell.letters, cell.split, evaluation.condition),
                    "permuted": exchanged(evaluation.permuted or cell.permute),
                    "draw": evaluation.draw,
                }
                for evaluation in trial.evaluations
            ],
        }


@app.command()
def make(
    grid: Annotated[str, typer.Argument(help="A grid, as in `dmlm grid run`.")],
    changes: Annotated[list[str] | None, typer.Argument(help="Changed settings, such as train.steps=6000.")] = None,
    *,
    to: Annotated[Path, typer.Option(help="Folder for the shards.")],
) -> None:
    """Prepare corpus and tokens of a grid, and write its shards."""
    chosen = read_grid_file(grid, changes or [])
    for note in chosen.notes:
        print(f"{note} To choose for the GPU machine, write bf16 or fp32.")
    if any(pretrained.is_named(cell.backbone) for cell in chosen.cells):
        raise UserError("Shards hold no pretrained weights; choose backbones that start from random weights.")
    check(chosen.cells)
    materials = prepare_under_lease(chosen.cells, print)
    trials = [trial_of(c, m, chosen.baseline) for c, m in zip(chosen.cells, materials, strict=True)]
    if len({m.text.digest for m in materials}) > 1:
        raise UserError("The cells have different text vocabularies; make shards of one at a time.")
    collected = Collected()
    cells = [collected.cell(trial, m) for trial, m in zip(trials, materials, strict=True)]
    description = {
        "grid": chosen.name,
        "cells": cells,
        "text": materials[0].text.json,
        "centroids": collected.centroids,
        "utterances": collected.utterances,
        "snr_db_measured": collected.snr_db_measured,
    }
    write_shards(to, description, collected.streams)
    write_grid(index_of(chosen, materials, trials))
    size = sum(path.stat().st_size for path in to.iterdir()) / 2**20
    print(f"{to}: {len(cells)} cells, {size:.1f} MiB")


@app.command()
def collect(
    shards: Annotated[Path, typer.Argument(help="Folder of the shards.")],
    results: Annotated[Path, typer.Argument(help="Folder that `on_a_gpu.py --to` wrote.")],
) -> None:
    """Score the transcripts of finished cells and store them as finished cells of the grid."""
    opened, left = Shards(shards), 0
    paths_of = {cell["trial"]: results / f"cell-{cell['trial']}.json" for cell in opened.cells}
    if not any(path.is_file() for path in paths_of.values()):
        raise UserError(
            f"{results} has no results of the cells of {shards}; give the folder that `on_a_gpu.py --to` wrote."
        )
    for cell in opened.cells:
        path = paths_of[cell["trial"]]
        try:
            found = json.loads(path.read_text()) if path.is_file() else {"evaluations": {}, "shards": opened.digest}
        except ValueError:
            raise UserError(f"{path} is damaged; copy it again.") from None
        if found["shards"] != opened.digest:
            raise UserError(f"{path} was made from other shards than those in {shards}; give the ones that were used.")
        missing = [e["name"] for e in cell["evaluations"] if e["name"] not in found["evaluations"]]
        if missing or "steps" not in found:
            print(
                f"{cell['trial']}: {len(missing)} of {len(cell['evaluations'])} evaluations are missing; left as it is"
            )
            left += 1
            continue
        folder = trial_folder(paths.runs(), cell["trial"])
        if folder.result and not folder.result.model_elsewhere:
            print(f"{cell['trial']}: trained here already; left as it is")
            continue
        folder.write_spec(cell["spec"])
        folder.log_path.write_text(found["log"])
        for evaluation in cell["evaluations"]:
            written, keys = found["evaluations"][evaluation["name"]], evaluation["streams"]
            utterances = [SimpleNamespace(**u) for u in opened.description["utterances"][keys["T"]]]
            measured = opened.description["snr_db_measured"][keys["A"]] if "A" in keys else {}
            transcripts = [Transcript(**hypothesis) for hypothesis in written["hypotheses"]]
            records = score(utterances, transcripts, measured, of_stored(evaluation["spec"]["normaliser"]))
            result = [UtteranceResult(**record) for record in records]
            folder.evaluation(evaluation["name"]).write(evaluation["spec"], result, written["decode_s"])
        known = {field.name for field in fields(TrialResult)}
        folder.write_result(TrialResult(**{k: v for k, v in found.items() if k in known}, model_elsewhere=True))
        print(f"{cell['trial']}: finished")
    folder = paths.runs() / opened.description["grid"].replace(":", "_")
    print(f"Tables and figures: python analysis/make_figures.py {folder} --tables")
    if left:
        raise typer.Exit(1)


if __name__ == "__main__":
    run(app)
