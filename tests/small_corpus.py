"""A recipe of a corpus: some notes and made-up words a clip. Its test split can be changed alone.

And a cell on it, with the noise that `write_tones` leaves, for tests that need real tokens in a second.
"""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from pydantic import BaseModel, ConfigDict

from dmlm.corpus.manifest import Corpus, Utterance, write_corpus
from dmlm.corpus.media import SAMPLE_RATE_HZ
from dmlm.plan.cell import Cell

TIME_S = np.arange(SAMPLE_RATE_HZ // 4) / SAMPLE_RATE_HZ
KINDS = ("noise", "music")


class Settings(BaseModel):
    """Equal seeds give equal clips."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    test_seed: int = 1


PRESETS = {"small": Settings()}


def prepare(settings: Settings, folder: Path) -> Corpus:
    """Twelve clips to train on and six to test with, a second each."""
    folder.mkdir(parents=True)
    utterances = []
    for split, count, seed in (("train", 12, 0), ("test", 6, settings.test_seed)):
        rng = np.random.default_rng(seed)
        for number in range(count):
            name = f"{split}-{number}"
            notes = [np.sin(2 * np.pi * rate_hz * TIME_S) for rate_hz in rng.uniform(200, 6000, 4)]
            clip = 0.2 * np.concatenate(notes) + 0.01 * rng.standard_normal(4 * len(TIME_S))
            soundfile.write(folder / f"{name}.wav", clip, SAMPLE_RATE_HZ)
            words = ("".join(letters) for letters in rng.choice(list("abcdefghij"), (3, 4)))
            utterances.append(
                Utterance(id=name, split=split, text=" ".join(words), audio=f"{name}.wav", duration_s=1.0)
            )
    return write_corpus(folder, utterances, {"name": "small", "version": "1", "licence": "CC0-1.0"})


def write_tones(folder: Path, each: int = 10) -> dict[int, Path]:
    """A noise folder `KIND/*` in which every file is a tone of its own; the files by their rate in Hz."""
    files = {}
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
        for number in range(each):
            rate_hz = 200 * (1 + len(files))
            files[rate_hz] = folder / kind / f"{number}.wav"
            soundfile.write(files[rate_hz], 0.5 * np.sin(2 * np.pi * rate_hz * TIME_S), SAMPLE_RATE_HZ)
    return files


def small_cell(tones: Path, /, **changes: Any) -> Cell:
    """An OPT on this corpus that trains for one step, with a learning rate too small to move it."""
    plain: dict[str, Any] = {
        "corpus": {"recipe": __file__, "preset": "small"},
        "tokenizers": {"A": {"recipe": "audio_mfcc", "settings": {"clusters": 8}}},
        "text": {"vocab_size": 280},
        "noise": {"set": str(tones), "kinds": KINDS},
        "snr_db": {"train": [0, -20], "test": ["clean"]},
        "model": {"context": 128},
        "backbone": "opt-nano",
        "template": "A -> T",
        "train": {"steps": 1, "batch_size": 4, "lr": 1e-30},
        "execution": {"loggers": []},
    }
    return Cell(**{**plain, **changes})


def in_this_process(function, jobs):
    """What `prepare` and `TokenSource` take as `run`: no workers."""
    return map(function, jobs)
