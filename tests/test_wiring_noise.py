"""Which noise is heard where: by split, by draw, by seed, by kind; and that the token cache tells them apart."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_corpus import KINDS, write_tones

from dmlm.corpus.condition import Condition
from dmlm.corpus.manifest import Utterance
from dmlm.corpus.media import SAMPLE_RATE_HZ
from dmlm.corpus.noise import NoiseBank, NoiseSettings

SPEECH = (0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE_HZ)).astype(np.float32)
SETTINGS = NoiseSettings(kinds=KINDS, placement="second_half")
NOISY = slice(SAMPLE_RATE_HZ // 2, SAMPLE_RATE_HZ)  # of a clip


@pytest.fixture
def tones(tmp_path) -> dict[int, Path]:
    return write_tones(tmp_path / "tones")


@pytest.fixture
def loud(tones, tmp_path) -> Condition:
    """Noise far above the speech."""
    folder = tmp_path / "tones"
    return Condition(-30.0, (), 0, SETTINGS, folder, NoiseBank.open(folder, KINDS).digest)


def hear(condition: Condition, number: int = 0, split: str = "test") -> np.ndarray:
    """A clip as it sounds under a condition."""
    utterance = Utterance(id=f"{split}-{number}", split=split, text="one", audio="a.wav", duration_s=1.0)
    return condition.apply(utterance, SPEECH, utterance.id).audio


def tone_hz(audio: np.ndarray) -> int:
    """The loudest tone in the noisy half of a clip."""
    spectrum = np.abs(np.fft.rfft(audio[NOISY]))
    return round(float(np.fft.rfftfreq(NOISY.stop - NOISY.start, 1 / SAMPLE_RATE_HZ)[spectrum.argmax()]))


def tones_heard(condition: Condition, split: str) -> set[int]:
    return {tone_hz(hear(condition, number, split)) for number in range(150)}


def test_evaluation_hears_noise_that_training_never_did(loud, tones):
    train, val, test = (tones_heard(loud, split) for split in ("train", "val", "test"))
    assert val == test
    assert not train & test
    assert train | test == set(tones)


def test_every_kind_of_noise_is_heard(loud, tones):
    for split in ("train", "test"):
        assert {tones[rate_hz].parent.name for rate_hz in tones_heard(loud, split)} == set(KINDS)


def test_each_draw_of_a_training_set_has_noise_and_levels_of_its_own(loud):
    levels = (0.0, -5.0, -10.0, -20.0)
    drawn = [
        [replace(loud, snr_db=None, drawn_from_db=levels, draw=n).snr_db_of(f"u{i}") for i in range(40)] for n in (0, 1)
    ]
    assert drawn[0] != drawn[1]
    at_one_level = [replace(loud, snr_db=None, drawn_from_db=(-10.0, -10.0), draw=draw) for draw in (0, 0, 1)]
    for number in range(3):
        first, again, other = (hear(condition, number, "train") for condition in at_one_level)
        assert np.array_equal(first, again)
        assert not np.allclose(first, other, atol=0.01)


def test_another_noise_seed_is_other_noise(loud):
    other = replace(loud, noise=SETTINGS.model_copy(update={"seed": 1}))
    for number in range(3):
        assert np.array_equal(hear(loud, number), hear(loud, number))
        assert not np.allclose(hear(loud, number), hear(other, number), atol=0.01)


@pytest.mark.parametrize(
    "changed",
    [
        {"snr_db": -20.0},
        {"snr_db": None, "drawn_from_db": (-30.0, -20.0)},
        {"draw": 1},
        {"bank_digest": "of other files"},
        *(
            {"noise": SETTINGS.model_copy(update=update)}
            for update in ({"set": "elsewhere"}, {"kinds": KINDS[:1]}, {"placement": "whole"}, {"seed": 1})
        ),
    ],
    ids=["level", "levels", "draw", "files", "set", "kinds", "placement", "seed"],
)
def test_whatever_changes_the_noise_has_a_place_of_its_own_in_the_token_cache(loud, changed):
    assert replace(loud, **changed).key != loud.key
    assert replace(loud, **{**changed, "snr_db": math.inf}).key == "clean"
