"""Mix one recording with noise, by the protocol of the tests: the test part of a noise folder, at an SNR, in its speech."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from dmlm.corpus.condition import Condition
from dmlm.corpus.manifest import Utterance
from dmlm.corpus.noise import Mixed, NoiseSettings, Placement
from dmlm.corpus.voice_activity import sentences
from dmlm.errors import UserError, did_you_mean
from dmlm.modalities import SAMPLE_RATE_HZ
from dmlm.plan.cell import validated
from dmlm.sweep.parts import open_bank

BUILTIN_KINDS = NoiseSettings().kinds


def noise_condition(kinds: str, snr_db: float, folder: Path | None, placement: str) -> Condition:
    """Return the condition in which a recording is heard.

    Args:
        kinds: names of kinds of noise, separated by commas: one is drawn for each recording
        snr_db: inside the noisy part of each sentence
        folder: of noise files by kind; None: the built-in ones
        placement: which part of a sentence is noisy

    Raises:
        UserError: there is no such folder, kind or placement, or no noise for the test.
    """
    names = tuple(kinds.split(","))
    if folder is None and (unknown := [name for name in names if name not in BUILTIN_KINDS]):
        raise UserError(
            f"--noise: there is no built-in noise {unknown[0]!r}; {did_you_mean(unknown[0], BUILTIN_KINDS)}."
        )
    placements: tuple[Placement, ...] = get_args(Placement)
    if placement not in placements:
        raise UserError(f"--placement: there is no {placement!r}; {did_you_mean(placement, placements)}.")
    values = {"set": "builtin" if folder is None else str(folder), "kinds": names, "placement": placement}
    noise = validated(NoiseSettings, values, "--noise")
    return Condition.of((snr_db,), 0, noise, open_bank(noise), "test")


def mixed(samples: np.ndarray, spans: Sequence[tuple[float, float]], name: str, condition: Condition) -> Mixed:
    """Mix a recording, float32 (n,) at 16 kHz, with noise; `spans` of speech are joined to sentences.

    The noise depends on `name` as on the id of an utterance. Where no speech was found, all of it gets noise.
    """
    duration_s = len(samples) / SAMPLE_RATE_HZ
    heard = Utterance(id=name, split="test", text="-", audio="-", duration_s=duration_s, spans=tuple(sentences(spans)))
    return condition.apply(heard, samples, name)
