"""The noise protocol: the level asked for is the level measured, and the waveform belongs to the utterance alone."""

import math

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlm.corpus.condition import Condition
from dmlm.corpus.manifest import Utterance
from dmlm.corpus.noise import NoiseSettings, mix, noisy_spans, waveform
from dmlm.corpus.noise_clips import NoiseFile, examine
from dmlm.corpus.noise_files import NoiseBank
from dmlm.errors import UserError
from dmlm.files import digest

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


def test_spans_outside_the_audio_are_no_traceback():
    """A huge duration was an OverflowError; a span before the start was taken from the end."""
    utterance = UTTERANCE.model_copy(update={"spans": (), "duration_s": 1e305})
    with pytest.raises(UserError, match="has no room for noise"):
        noisy_spans(utterance, 32_000, NoiseSettings())
    assert noisy_spans(utterance, 32_000, NoiseSettings(placement="whole")) == [slice(0, 32_000)]
    with pytest.raises(UserError, match="has no room for noise"):
        noisy_spans(utterance.model_copy(update={"spans": ((-1.5, -0.5),)}), 32_000, NoiseSettings())


@pytest.mark.parametrize("what", ["speech", "noise"])
def test_silence_is_refused_with_the_file_named(what):
    speech, noise = (np.zeros_like(SPEECH), NOISE) if what == "speech" else (SPEECH, np.zeros_like(NOISE))
    with pytest.raises(UserError, match=r"u1\.flac.*silent"):
        mix(speech, noise, SPANS, 0, "u1.flac")


def test_a_level_beyond_float32_is_refused_not_reported():
    with pytest.raises(UserError, match="asked for 200"):
        mix(SPEECH, NOISE, SPANS, 200, "u1")


@pytest.fixture
def bank(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    for part in ("train", "val", "test"):
        for kind in ("noise", "music"):
            (tmp_path / "bank" / part / kind).mkdir(parents=True)
            for number in range(3):
                seed = np.random.default_rng([number, len(part), len(kind), ord(part[1])])
                path = tmp_path / "bank" / part / kind / f"{number}.wav"
                soundfile.write(path, 0.1 * seed.standard_normal(4_000), 16_000)
    return NoiseBank.open(tmp_path / "bank", ("noise", "music"))


def test_a_noise_clip_shorter_than_the_speech_is_looped(bank):
    noise, _ = waveform(bank.files["test"], [slice(0, 10_000)], 10_000, "u1", 0)
    assert len(noise) == 10_000
    assert noise[:6_000] == pytest.approx(noise[4_000:])


def test_the_waveform_depends_on_utterance_and_seed_only(bank):
    def heard(*key: object) -> np.ndarray:
        return waveform(bank.files["test"], [slice(0, 5_000)], 5_000, *key)[0]

    first = heard("u1", 0)
    heard("u2", 0)
    assert np.array_equal(first, heard("u1", 0))
    assert not np.array_equal(first, heard("u2", 0))
    assert not np.array_equal(first, heard("u1", 1))


def test_every_level_hears_the_same_noise(bank):
    """Between two SNRs the added part differs by a factor only."""
    added = []
    for level in (0.0, -10.0):
        condition = Condition.of((level,), 0, NoiseSettings(kinds=("noise", "music")), bank, "test")
        audio = condition.apply(UTTERANCE, SPEECH, "u1").audio.astype(float)
        gain = np.dot(audio[:8_000], SPEECH[:8_000]) / np.dot(SPEECH[:8_000].astype(float), SPEECH[:8_000])
        added.append((audio / gain - SPEECH)[SPANS[0]])
    assert np.corrcoef(added[0], added[1])[0, 1] == pytest.approx(1.0, abs=1e-5)
    assert np.std(added[1]) / np.std(added[0]) == pytest.approx(10**0.5, rel=1e-3)


def test_training_draws_all_levels_and_evaluation_one():
    levels = (math.inf, 0.0, -20.0)
    seen = [Condition(None, levels).snr_db_of(f"u{number}") for number in range(300)]
    assert {level: seen.count(level) > 60 for level in levels} == dict.fromkeys(levels, True)
    assert Condition(0.0).snr_db_of("u1") == 0.0


def sparse(tmp_path, loud: slice, floor: float) -> dict[str, tuple[NoiseFile, ...]]:
    """One noise file of 5 s that is loud in one place and all but silent elsewhere, as part of a bank."""
    samples = np.full(80_000, floor)
    samples[::2] *= -1
    samples[loud] = 0.1 * np.random.default_rng(0).standard_normal(loud.stop - loud.start)
    soundfile.write(tmp_path / "sparse.wav", samples, 16_000, "FLOAT")
    return {
        "noise": (
            NoiseFile(
                tmp_path / "sparse.wav", "s", digest(tmp_path / "sparse.wav"), **examine(tmp_path / "sparse.wav")
            ),
        )
    }


@pytest.mark.parametrize("floor", [0.0, 1e-6])
def test_noise_is_never_taken_from_where_its_file_is_all_but_silent(tmp_path, floor):
    """In every span: a mixture at 0 dB would be clean speech with clicks, or refused."""
    files = sparse(tmp_path, slice(0, 30_000), floor)
    for number in range(40):
        noise, _ = waveform(files, SPANS, 32_000, f"u{number}", 0)
        assert np.array_equal(noise, waveform(files, SPANS, 32_000, f"u{number}", 0)[0])
        for span in SPANS:
            assert np.var(noise[span]) > 1e-4 * files["noise"][0].power
        assert mix(SPEECH, noise, SPANS, 0, "u1").snr_db_measured == pytest.approx(0, abs=0.01)


def test_noise_that_is_silent_nearly_everywhere_is_named(tmp_path):
    with pytest.raises(UserError, match=r"utterance 'u1'.*leave_out.*sparse\.wav"):
        waveform(sparse(tmp_path, slice(0, 10), 0.0), SPANS, 32_000, "u1", 0)


@pytest.mark.parametrize(("speech_dc", "noise_dc"), [(0.0, 0.5), (0.3, 0.0), (-0.3, 0.5)])
def test_a_constant_offset_is_neither_speech_nor_noise(speech_dc, noise_dc):
    plain = mix(SPEECH, NOISE, SPANS, 0, "u1")
    mixed = mix(SPEECH + np.float32(speech_dc), NOISE + np.float32(noise_dc), SPANS, 0, "u1")
    assert mixed.snr_db_measured == pytest.approx(0, abs=0.01)
    for first, other in zip(SPANS, SPANS, strict=True):
        assert np.corrcoef(plain.audio[first], mixed.audio[other])[0, 1] == pytest.approx(1, abs=1e-5)
        assert np.var(mixed.audio[first]) / np.var(mixed.audio[:8_000]) == pytest.approx(
            np.var(plain.audio[first]) / np.var(plain.audio[:8_000]), rel=1e-3
        )


@pytest.mark.parametrize("what", ["speech", "noise"])
def test_a_constant_is_silent(what):
    constant = np.full_like(SPEECH, 0.3)
    speech, noise = (constant, NOISE) if what == "speech" else (SPEECH, constant)
    with pytest.raises(UserError, match=r"u1\.flac.*silent"):
        mix(speech, noise, SPANS, 0, "u1.flac")
