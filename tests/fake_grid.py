"""A small but complete grid on disk, without any training: what `dmlm grid` would leave behind."""

import csv
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmlm import paths, recipes
from dmlm.score.normalisers import BASIC
from dmlm.score.wer import count_character_errors, count_errors

Speaker = Callable[
    [str, str, str, float | str, str | None, int], str
]  # (reference, model, template, snr, permuted, draw)
ALL_SNRS_DB: tuple[float | str, ...] = ("clean", 20.0, 10.0, 5.0, 0.0, -5.0, -10.0, -20.0)
WORDS = ("minus", "plus", "equals", "over", "x", "y", "w", "3", "7", "12", "16", "log", "of", "to", "the", "power")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences that read like spoken equations."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(8, 20))) for _ in range(count)]


def noisy_listener(
    reference: str, model: str, template: str, snr_db: float | str, permuted: str | None, draw: int
) -> str:
    """A made-up recogniser: worse in noise, better with lips, with lips most in noise, worse with another's lips."""
    noise = 0.0 if snr_db == "clean" else 1 / (1 + np.exp((float(snr_db) + 4) / 5))
    rate = 0.03 + 0.45 * noise
    left = template.removesuffix(" -> T")
    for letter, gain in (("L", 0.45 * noise), ("O", 0.9 * noise * (1 - noise)), ("I", 0.2 * noise * (1 - noise))):
        if letter in left:
            rate *= 1 - gain if permuted != letter else 1 + 0.3 * gain
    rate *= 1.06 if left.startswith("L") else 1.0
    rate *= 1.1 if model.startswith("mamba") else 1.0
    # the same draw of luck for every system and level, so that the systems are paired
    rng = np.random.default_rng(zlib.crc32(f"{reference}{draw}".encode()))
    ease = rng.gamma(4.0, 0.25)
    words = []
    for word, luck, kind in zip(reference.split(), rng.random(200), rng.random(200), strict=False):
        if luck > rate * ease:
            words.append(word)
        elif kind < 0.6:
            words.append(WORDS[int(kind * 1000) % len(WORDS)])
        elif kind > 0.85:
            words += [word, "over"]
    return " ".join(words)


def write_evaluation(
    folder: Path, pairs: Sequence[tuple[str, str, str]], snr_db: float | str, offset_db: float = 0.01
) -> None:
    """`pairs` are (id, reference, hypothesis); `result.json` is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    totals = dict.fromkeys(("substitutions", "deletions", "insertions", "reference_words"), 0)
    characters = dict.fromkeys(("substitutions", "deletions", "insertions", "reference_characters"), 0)
    lines = []
    for place, (name, reference, hypothesis) in enumerate(pairs):
        counts = vars(count_errors(reference, hypothesis))
        for key in totals:
            totals[key] += counts[key]
        of_characters = vars(count_character_errors(reference, hypothesis))
        for key in characters:
            characters[key] += of_characters[key]
        measured = None if snr_db == "clean" else float(snr_db) + offset_db * (-1) ** place
        record = {"id": name, "reference": reference, "hypothesis": hypothesis, **counts}
        record |= {"snr_db_measured": measured, "speaker": None}
        lines.append(json.dumps({**record, "characters": of_characters, "cut": False, "looped": False}))
    (folder / "utterances.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    errors = totals["substitutions"] + totals["deletions"] + totals["insertions"]
    result = {"wer": errors / totals["reference_words"], **totals, "utterances": len(pairs), "decode_s": 1.5}
    result |= {"characters": characters, "cut_hypotheses": 0, "looped_hypotheses": 0, "normaliser": str(BASIC)}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def write_training(folder: Path, template: str, model: str, steps: int = 400) -> None:
    """`spec.json`, `train.jsonl` and `result.json` of a finished training."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(folder.name.encode()))
    lines, letters = [], [*(letter for letter in template.removesuffix(" -> T") if letter in "ALIO"), "T"]
    for step in range(10, steps + 1, 10):
        by_modality = {
            letter: 5.5 * float(np.exp(-step / (90 + 60 * place))) + 0.4 + 0.06 * float(rng.normal())
            for place, letter in enumerate(reversed(letters))
        }
        record = {"step": step, "loss": 0.5 * sum(by_modality.values()), "loss_by_modality": by_modality}
        lines.append(json.dumps({**record, "lr": 3e-4, "elapsed_s": step * 0.05}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "spec.json").write_text(json.dumps({"template": template, "backbone": {"name": model}}), encoding="utf-8")
    result = {"parameters": 1_930_000, "steps": steps, "train_s": 61.5, "tokens_per_s": 8123.4, "final_loss": 0.61}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def write_grid(
    folder: Path,
    *,
    models: Sequence[str] = ("opt-tiny",),
    templates: Sequence[str] = ("A -> T", "A+L -> T"),
    snrs_db: Sequence[float | str] = ALL_SNRS_DB,
    seeds: Sequence[int] = (0,),
    permuted_snrs_db: Sequence[float | str] = (),
    draws: int = 3,
    utterances: int = 40,
    speaker: Speaker = noisy_listener,
) -> Path:
    """Write trials and `grid.json` under `folder`; returns the folder of the grid."""
    texts = sentences(utterances)
    corpus = {"name": "three_equations", "version": "1", "licence": "CC0-1.0", "digest": "ab" * 32}
    corpus["utterances"] = {"train": 600, "val": 60, "test": utterances}
    noise = {"set": "builtin", "kinds": ["noise", "music", "babble"], "placement": "second_half", "seed": 0}
    recipes = {"A": "audio_mfcc", "L": "lips_dct", "O": "ocr_rapidocr"}
    cells: list[dict[str, Any]] = []
    for model in models:
        for template in templates:
            for seed in seeds:
                inputs = template.removesuffix(" -> T")
                trial = folder / "trials" / f"{model}_{inputs}_seed{seed}-0123456789ab"
                write_training(trial, template, model)
                conditions = [(snr_db, None, 0) for snr_db in snrs_db]
                for letter in set(inputs) & set("LIO"):
                    conditions += [(snr_db, letter, draw) for snr_db in permuted_snrs_db for draw in range(draws)]
                evaluations = []
                for snr_db, permuted, draw in conditions:
                    evaluation_folder = trial / "evals" / f"snr{snr_db}_{permuted or 'plain'}-{draw}"
                    heard = [speaker(text, model, template, snr_db, permuted, draw + 100 * seed) for text in texts]
                    names = [f"utt-{index:04d}" for index in range(utterances)]
                    write_evaluation(evaluation_folder, list(zip(names, texts, heard, strict=True)), snr_db)
                    where = f"../trials/{trial.name}/evals/{evaluation_folder.name}"
                    evaluations.append({"snr_db": snr_db, "permuted": permuted, "draw": draw, "folder": where})
                family = "OPT" if model.startswith("opt") else "Mamba"
                cells.append(
                    {
                        **{"model": model, "template": template, "seed": seed, "label": f"{family} {inputs}"},
                        **{"trial": f"../trials/{trial.name}", "evaluations": evaluations},
                        **{"corpus": corpus, "normaliser": str(BASIC), "noise": noise, "steps": 400},
                        "tokenizers": {letter: recipe for letter, recipe in recipes.items() if letter in inputs},
                    }
                )
    grid = {"schema": 2, "name": "fake", "baseline": "A -> T", "cells": cells}
    (folder / "fake").mkdir(parents=True, exist_ok=True)
    (folder / "fake" / "grid.json").write_text(json.dumps(grid, indent=2), encoding="utf-8")
    return folder / "fake"


def rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file, by its head."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def word_loser(rates):
    """A speaker that loses the first words of every sentence: as many as `rates` says by template and SNR.

    With a permuted modality it loses as many as without it.
    """

    def speaker(reference, model, template, snr_db, permuted, draw):
        return " ".join(reference.split()[rates["A -> T" if permuted else template][snr_db] :])

    return speaker


def figures_program():
    """The command line of make_figures."""
    import typer

    program = typer.Typer()
    program.command()(recipes.load("analysis", str(paths.recipe_folder("analysis") / "make_figures.py")).main)
    return program
