"""A recording longer than the clips of a training: where it is cut, and the transcript of all its pieces.

It is cut where it is silent for a second or more; what is still too long, at its widest silence; and what has no silence,
at its quietest place, which is recorded. The pieces follow one another without a gap, so that nothing is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dmlm.modalities import SAMPLE_RATE_HZ
from dmlm.recognition.transcribe import Transcript

PAUSE_S = 1.0  # a silence from which on no speech before it is read together with speech behind it
MARGIN_S = 0.25  # of such a silence that is read with the speech beside it
WINDOW_S = 0.05  # of which the power is taken, to find a quiet place

Spans = Sequence[tuple[float, float]]  # start and end in seconds


@dataclass(frozen=True)
class Piece:
    """A piece of a recording, in seconds from its start."""

    start_s: float
    end_s: float
    speech: bool = True  # False: nobody speaks there, so it is not read
    ends_in_speech: bool = False  # there was no silence: it ends at the quietest place
    transcript: Transcript = field(default=Transcript("", False, False))  # normalised; empty until it is read

    def cut_from(self, content: np.ndarray, rate_hz: int) -> np.ndarray:
        """Return this piece of samples or frames (T, ...), at least one."""
        start = min(round(self.start_s * rate_hz), len(content) - 1)
        return content[start : max(start + 1, round(self.end_s * rate_hz))]


@dataclass(frozen=True)
class ClipTranscript:
    """What a model wrote for one clip or recording, and how long that took."""

    pieces: tuple[Piece, ...]  # one, unless the recording was longer than the model is used to
    audio_s: float | None  # length of the audio; of the lips where there is none; None where both lack
    seconds: float  # that encoding and decoding took

    @property
    def text(self) -> str:
        """The transcripts of the pieces, one behind the other."""
        return " ".join(piece.transcript.text for piece in self.pieces if piece.transcript.text)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The text of every token, `<eos>` behind each piece that ended by itself."""
        return tuple(token for piece in self.pieces for token in piece.transcript.tokens)

    @property
    def log_probabilities(self) -> tuple[float, ...]:
        """The natural log-probability of each token."""
        return tuple(value for piece in self.pieces for value in piece.transcript.log_probabilities)

    @property
    def cut(self) -> bool:
        """Whether a piece did not end within `decode.max_new_tokens`, or within the context of the model."""
        return any(piece.transcript.cut for piece in self.pieces)

    @property
    def looped(self) -> bool:
        """Whether a piece was stopped because it repeated itself."""
        return any(piece.transcript.looped for piece in self.pieces)

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work for a second of audio."""
        return self.seconds / self.audio_s if self.audio_s else None


def pieces_of(samples: np.ndarray, spans: Spans, longest_s: float) -> list[Piece]:
    """Cut a recording into pieces with speech, of at most `longest_s`, and pieces without.

    Args:
        samples: float32 (n,), mono, at 16 kHz
        spans: its speech; if there is none, all of it counts as speech
        longest_s: of a piece with speech
    """
    duration_s = len(samples) / SAMPLE_RATE_HZ
    starts_s, ends_s = zip(*(spans or [(0.0, duration_s)]), strict=True)
    silences = list(zip((0.0, *ends_s), (*starts_s, duration_s), strict=True))
    pauses = [
        (before_s + MARGIN_S * (before_s > 0), after_s - MARGIN_S * (after_s < duration_s))
        for before_s, after_s in silences
        if after_s - before_s >= PAUSE_S
    ]
    pieces: list[Piece] = []
    at_s = 0.0
    for start_s, end_s in [*pauses, (duration_s, duration_s)]:
        if start_s > at_s:
            pieces += _short_pieces(samples, at_s, start_s, silences, longest_s)
        if end_s > start_s:
            pieces.append(Piece(start_s, end_s, speech=False))
        at_s = end_s
    return pieces


def _short_pieces(samples: np.ndarray, start_s: float, end_s: float, silences: Spans, longest_s: float) -> list[Piece]:
    """Cut a stretch with speech until no piece is longer than `longest_s`."""
    pieces: list[Piece] = []
    waiting = [(start_s, end_s)]  # the next one last
    while waiting:
        start_s, end_s = waiting.pop()
        inside = [(before, after) for before, after in silences if start_s < before and after < end_s]
        if end_s - start_s <= longest_s:
            pieces.append(Piece(start_s, end_s))
        elif inside:
            before_s, after_s = max(inside, key=lambda silence: silence[1] - silence[0])
            middle_s = (before_s + after_s) / 2
            waiting += [(middle_s, end_s), (start_s, middle_s)]
        else:
            quiet_s = _quietest(samples, start_s + longest_s / 2, min(start_s + longest_s, end_s))
            pieces.append(Piece(start_s, quiet_s, ends_in_speech=True))
            waiting.append((quiet_s, end_s))
    return pieces


def _quietest(samples: np.ndarray, start_s: float, end_s: float) -> float:
    """Return the middle, in seconds, of the 50 ms with the least power between two times."""
    start, window = round(start_s * SAMPLE_RATE_HZ), round(WINDOW_S * SAMPLE_RATE_HZ)
    energy = np.cumsum(np.square(samples[start : round(end_s * SAMPLE_RATE_HZ)], dtype=np.float64))
    if len(energy) <= window:
        return (start_s + end_s) / 2
    return (start + int(np.argmin(energy[window:] - energy[:-window])) + window // 2) / SAMPLE_RATE_HZ
