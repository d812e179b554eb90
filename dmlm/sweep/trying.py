"""The command that transcribes a test clip with a model that a grid trained, ready to be pasted into a terminal."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from dmlm import recipes
from dmlm.sweep.parts import open_corpus
from dmlm.sweep.trial import Trial
from dmlm.tokens.encoder import Encoder, Reader


def command(trials: Sequence[Trial]) -> str | None:
    """Return `dmlm transcribe ...` for the best of the models with most modalities, and a test clip that has them all.

    None if no model that could be tried is finished: controls and models that need a first pass are left out.
    """
    candidates = [trial for trial in trials if trial.trained and trial.stored.has_model and not trial.cell.permute]
    for trial in sorted(candidates, key=lambda trial: (-len(trial.cell.letters), _wer(trial))):
        media = _media(trial)
        corpus = open_corpus(trial.cell.corpus)
        for utterance in corpus.split(trial.cell.split) if media else ():
            found = {name: getattr(utterance, name) for name in media}
            if all(value is not None for value in found.values()):
                text = found.pop("ocr", None)
                paths = {name: _short(corpus.folder / value) for name, value in found.items()}
                recording = [path for name, path in paths.items() if name == "audio"]
                options = [part for name, path in paths.items() if name != "audio" for part in (f"--{name}", path)]
                options += ["--ocr", text] if text is not None else []
                return shlex.join(
                    [_program(), "transcribe", *recording, *options, "--model", _short(trial.stored.model)]
                )
    return None


def _wer(trial: Trial) -> float:
    """The mean WER over the finished tests without a permutation; infinite if there is none."""
    folders = [trial.folder_of(test) for test in trial.evaluations if not test.permuted]
    rates = [folder.result.wer for folder in folders if folder.done]
    return fmean(rates) if rates else float("inf")


def _media(trial: Trial) -> list[str]:
    """The names of what its encoders read, each once; nothing if one needs a first pass."""
    encoders = [
        (recipes.load_class("tokenizers", choice.recipe, Encoder), choice.settings)
        for choice in (trial.cell.tokenizers[letter] for letter in trial.cell.letters)
    ]
    if any(issubclass(kind, Reader) and settings.get("first_pass") for kind, settings in encoders):
        return []
    return list(dict.fromkeys(kind.media for kind, _ in encoders))


def _program() -> str:
    """`dmlm`, or where it is if the terminal would not find this one."""
    here = Path(sys.executable).parent / "dmlm"
    found = shutil.which("dmlm")
    return "dmlm" if (found and Path(found) == here) or not here.is_file() else _short(here)


def _short(path: Path) -> str:
    """The path from the working folder, if it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
