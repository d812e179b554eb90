"""Which noise is heard where: by split, by draw, by seed, by kind; and that the token cache tells them apart."""

import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_corpus import KINDS, write_tones

from dmlm.corpus.condition import Condition
from dmlm.corpus.manifest import Utterance
from dmlm.corpus.media import SAMPLE_RATE_HZ
from dmlm.corpus.noise import NoiseSettings
from dmlm.corpus.noise_files import NoiseBank

SPEECH = (0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE_HZ)).astype(np.float32)
SETTINGS = NoiseSettings(kinds=KINDS, placement="second_half")
NOISY = slice(SAMPLE_RATE_HZ // 2, SAMPLE_RATE_HZ)  # of a clip


@pytest.fixture
def tones(tmp_path, monkeypatch) -> dict[int, Path]:
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    return write_tones(tmp_path / "tones")


@pytest.fixture
def loud(tones, tmp_path) -> dict[str, Condition]:
    """Noise far above the speech, by split."""
    bank = NoiseBank.open(tmp_path / "tones", KINDS)
    return {split: Condition.of((-30.0,), 0, SETTINGS, bank, split) for split in ("train", "val", "test")}


def hear(condition: Condition, number: int = 0) -> np.ndarray:
    """A clip as it sounds under a condition."""
    split = condition.split
    utterance = Utterance(id=f"{split}-{number}", split=split, text="one", audio="a.wav", duration_s=1.0)
    return condition.apply(utterance, SPEECH, utterance.id).audio


def tone_hz(audio: np.ndarray) -> int:
    """The loudest tone in the noisy half of a clip."""
    spectrum = np.abs(np.fft.rfft(audio[NOISY]))
    return round(float(np.fft.rfftfreq(NOISY.stop - NOISY.start, 1 / SAMPLE_RATE_HZ)[spectrum.argmax()]))


def tones_heard(condition: Condition) -> set[int]:
    return {tone_hz(hear(condition, number)) for number in range(200)}


def test_each_split_hears_noise_that_the_others_never_do(loud, tones):
    train, val, test = (tones_heard(loud[split]) for split in ("train", "val", "test"))
    assert train | val | test == set(tones)
    assert len(train) + len(val) + len(test) == len(tones)


def test_the_noise_of_one_split_is_not_mixed_into_another(loud):
    with pytest.raises(ValueError, match="'u1' is of split test, the noise for val"):
        loud["val"].apply(Utterance(id="u1", split="test", text="one", audio="a.wav", duration_s=1.0), SPEECH, "u1")


def test_every_kind_of_noise_is_heard(loud, tones):
    for condition in loud.values():
        assert {tones[rate_hz].parent.name for rate_hz in tones_heard(condition)} == set(KINDS)


def test_each_draw_of_a_training_set_has_noise_and_levels_of_its_own(loud):
    levels = (0.0, -5.0, -10.0, -20.0)
    drawn = [
        [replace(loud["train"], snr_db=None, drawn_from_db=levels, draw=n).snr_db_of(f"u{i}") for i in range(40)]
        for n in (0, 1)
    ]
    assert drawn[0] != drawn[1]
    at_one_level = [replace(loud["train"], snr_db=None, drawn_from_db=(-10.0, -10.0), draw=draw) for draw in (0, 0, 1)]
    for number in range(3):
        first, again, other = (hear(condition, number) for condition in at_one_level)
        assert np.array_equal(first, again)
        assert not np.allclose(first, other, atol=0.01)


def test_another_noise_seed_is_other_noise(loud):
    first = loud["test"]
    other = replace(first, noise=SETTINGS.model_copy(update={"seed": 1}))
    for number in range(3):
        assert np.array_equal(hear(first, number), hear(first, number))
        assert not np.allclose(hear(first, number), hear(other, number), atol=0.01)


@pytest.mark.parametrize(
    "changed",
    [
        {"snr_db": -20.0},
        {"snr_db": None, "drawn_from_db": (-30.0, -20.0)},
        {"draw": 1},
        {"split": "val"},
        {"bank_digest": "of other files"},
        *(
            {"noise": SETTINGS.model_copy(update=update)}
            for update in ({"kinds": KINDS[:1]}, {"placement": "whole"}, {"seed": 1})
        ),
    ],
    ids=["level", "levels", "draw", "split", "files", "kinds", "placement", "seed"],
)
def test_whatever_changes_the_noise_has_a_place_of_its_own_in_the_token_cache(loud, changed):
    condition = loud["test"]
    assert replace(condition, **changed).key != condition.key
    assert replace(condition, **{**changed, "snr_db": math.inf}).key == "clean"


def test_a_bank_that_was_copied_elsewhere_is_the_same_noise(loud, tmp_path):
    """Neither the names of folders nor those of files matter."""
    for number, path in enumerate(sorted((tmp_path / "tones").rglob("*.wav"), reverse=True)):
        target = tmp_path / "copy" / path.parent.name / "below" / f"{number}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    settings = SETTINGS.model_copy(update={"set": str(tmp_path / "copy")})
    bank = NoiseBank.open(tmp_path / "copy", KINDS)
    for split, condition in loud.items():
        other = Condition.of((-30.0,), 0, settings, bank, split)
        assert other.key == condition.key
        assert np.array_equal(hear(other), hear(condition))


def test_a_lost_test_file_changes_no_training_condition(loud, tmp_path):
    lost = loud["test"].files["noise"][0].path
    bank = NoiseBank.open(tmp_path / "tones", KINDS, leave_out=(lost.relative_to(tmp_path / "tones").as_posix(),))
    same = {split: Condition.of((-30.0,), 0, SETTINGS, bank, split).key == loud[split].key for split in loud}
    assert same == {"train": True, "val": True, "test": False}


def test_a_process_that_mixes_opens_no_bank(loud, monkeypatch):
    """What it needs travels with the condition, which is small enough to be sent with each piece of work."""
    sent = pickle.dumps(loud["train"])
    assert len(sent) < 10_000
    monkeypatch.setattr(NoiseBank, "open", lambda *arguments: pytest.fail("it was opened"))
    assert np.array_equal(hear(pickle.loads(sent)), hear(loud["train"]))
