"""The noise protocol: the level asked for is the level measured, and the waveform belongs to the utterance alone."""

import math

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlm.corpus.condition import Condition
from dmlm.corpus.manifest import Utterance
from dmlm.corpus.noise import NoiseBank, NoiseSettings, mix, noisy_spans
from dmlm.errors import UserError

RNG = np.random.default_rng(0)
SPEECH = (0.1 * RNG.standard_normal(32_000)).astype(np.float32)
NOISE = (0.7 * RNG.standard_normal(32_000)).astype(np.float32)
SPANS = [slice(8_000, 16_000), slice(24_000, 32_000)]
UTTERANCE = Utterance(id="u1", split="test", text="one", audio="a.flac", duration_s=2.0, spans=((0.0, 1.0), (1.0, 2.0)))


def ratio_db(mixture: np.ndarray, speech: np.ndarray, span: slice) -> float:
    """Independent measurement: undo the gain by the clean part, subtract, compare powers."""
    clean = slice(0, 8_000)
    gain = np.dot(mixture[clean].astype(float), speech[clean]) / np.dot(speech[clean].astype(float), speech[clean])
    added = mixture[span] / gain - speech[span]
    return 10 * math.log10(np.mean(speech[span].astype(float) ** 2) / np.mean(added**2))


@pytest.mark.parametrize("snr_db", [-60, -20.0, -5, 0, 0.0, 5, 20, 80])
def test_the_level_asked_for_is_the_level_in_every_span(snr_db):
    mixed = mix(SPEECH, NOISE, SPANS, snr_db, "u1")
    assert mixed.snr_db_measured == pytest.approx(snr_db, abs=0.01)
    for span in SPANS:
        assert ratio_db(mixed.audio, SPEECH, span) == pytest.approx(snr_db, abs=0.1)


@given(st.floats(-40, 60))
@settings(max_examples=25, deadline=None)
def test_any_level_is_exact_and_never_clips(snr_db):
    mixed = mix(SPEECH, NOISE, SPANS, snr_db, "u1")
    assert abs(mixed.snr_db_measured - snr_db) < 0.1
    assert np.abs(mixed.audio).max() <= 1.0


def test_clean_is_clean():
    mixed = mix(SPEECH, NOISE, SPANS, math.inf, "u1")
    assert mixed.snr_db_measured == math.inf
    assert np.corrcoef(mixed.audio, SPEECH)[0, 1] == pytest.approx(1.0, abs=1e-6)


def test_the_first_half_of_each_sentence_stays_clean():
    spans = noisy_spans(UTTERANCE, 32_000, NoiseSettings())
    assert spans == SPANS
    mixed = mix(SPEECH, NOISE, spans, -10, "u1").audio
    first = mixed[:8_000] / SPEECH[:8_000]
    assert first == pytest.approx(first[0], rel=1e-3)


@pytest.mark.parametrize(("placement", "share"), [("whole", 1.0), ("second_half", 0.5), ("random_half", 0.5)])
def test_placements_cover_what_they_say(placement, share):
    spans = noisy_spans(UTTERANCE, 32_000, NoiseSettings(placement=placement))
    assert sum(s.stop - s.start for s in spans) == pytest.approx(32_000 * share, abs=4)


@pytest.mark.parametrize("what", ["speech", "noise"])
def test_silence_is_refused_with_the_file_named(what):
    speech, noise = (np.zeros_like(SPEECH), NOISE) if what == "speech" else (SPEECH, np.zeros_like(NOISE))
    with pytest.raises(UserError, match=r"u1\.flac.*silent"):
        mix(speech, noise, SPANS, 0, "u1.flac")


def test_a_level_beyond_float32_is_refused_not_reported():
    with pytest.raises(UserError, match="asked for 200"):
        mix(SPEECH, NOISE, SPANS, 200, "u1")


@pytest.fixture
def bank(tmp_path):
    for part in ("train", "test"):
        for kind in ("noise", "music"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(3):
                seed = np.random.default_rng([number, len(part), len(kind)])
                soundfile.write(tmp_path / part / kind / f"{number}.wav", 0.1 * seed.standard_normal(4_000), 16_000)
    return NoiseBank.open(tmp_path, ("noise", "music"))


def test_a_noise_clip_shorter_than_the_speech_is_looped(bank):
    noise = bank.waveform("u1", "test", 10_000, ("noise",), 0)
    assert len(noise) == 10_000
    assert noise[:6_000] == pytest.approx(noise[4_000:])


def test_the_waveform_depends_on_utterance_and_seed_only(bank):
    first = bank.waveform("u1", "test", 5_000, ("noise", "music"), 0)
    bank.waveform("u2", "test", 5_000, ("noise", "music"), 0)
    assert np.array_equal(first, bank.waveform("u1", "test", 5_000, ("noise", "music"), 0))
    assert not np.array_equal(first, bank.waveform("u2", "test", 5_000, ("noise", "music"), 0))
    assert not np.array_equal(first, bank.waveform("u1", "test", 5_000, ("noise", "music"), 1))


def test_every_level_hears_the_same_noise(bank, tmp_path):
    """Between two SNRs the added part differs by a factor only."""
    added = []
    for level in (0.0, -10.0):
        condition = Condition(level, (), 0, NoiseSettings(kinds=("noise", "music")), tmp_path, bank.digest)
        audio = condition.apply(UTTERANCE, SPEECH, "u1").audio.astype(float)
        gain = np.dot(audio[:8_000], SPEECH[:8_000]) / np.dot(SPEECH[:8_000].astype(float), SPEECH[:8_000])
        added.append((audio / gain - SPEECH)[SPANS[0]])
    assert np.corrcoef(added[0], added[1])[0, 1] == pytest.approx(1.0, abs=1e-5)
    assert np.std(added[1]) / np.std(added[0]) == pytest.approx(10**0.5, rel=1e-3)


def test_training_draws_all_levels_and_evaluation_one(bank, tmp_path):
    levels = (math.inf, 0.0, -20.0)
    drawn = Condition(None, levels, 0, NoiseSettings(), tmp_path, bank.digest)
    seen = [drawn.snr_db_of(f"u{number}") for number in range(300)]
    assert {level: seen.count(level) > 60 for level in levels} == dict.fromkeys(levels, True)
    assert Condition(0.0).snr_db_of("u1") == 0.0


def test_a_missing_kind_is_named(tmp_path):
    (tmp_path / "noise").mkdir()
    with pytest.raises(UserError, match="kind 'noise'"):
        NoiseBank.open(tmp_path, ("noise",))
