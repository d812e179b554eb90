"""A recording longer than the clips of a training: where it is cut, and the transcript of all its pieces.

It is cut where it is silent for a second or more; what is still too long, at its widest silence; and what has no silence,
at its quietest place, which is recorded. With the speech of a piece as much silence is read as clips of the training have
around theirs, because a small model hears little where speech begins elsewhere than it is used to. All pieces, those
without speech too, follow one another without a gap, so that nothing is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from dmlm.modalities import SAMPLE_RATE_HZ
from dmlm.recognition.transcribe import Transcript

PAUSE_S = 1.0  # a silence from which on no speech before it is read together with speech behind it
AROUND_S = (0.25, 0.25)  # of silence that is read before and after speech, where that of training is not known
NEAR_S = 1e-3  # less silence than this is no piece of its own: times are rounded
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


def pieces_of(
    samples: np.ndarray, spans: Spans, longest_s: float, around_s: tuple[float, float] = AROUND_S
) -> list[Piece]:
    """Cut a recording into pieces with speech, of at most `longest_s`, and pieces without.

    Args:
        samples: float32 (n,), mono, at 16 kHz
        spans: its speech; if there is none, all of it counts as speech
        longest_s: of a piece with speech
        around_s: silence that is read before and after speech, as far as there is so much and it fits
    """
    duration_s = len(samples) / SAMPLE_RATE_HZ
    speech = _speech(samples, spans or [(0.0, duration_s)], longest_s)
    pieces: list[Piece] = []
    at_s = 0.0
    for piece in _with_silence(speech, longest_s, around_s, duration_s):
        if piece.start_s > at_s + NEAR_S:
            pieces.append(Piece(at_s, piece.start_s, speech=False))
            at_s = piece.start_s
        pieces.append(replace(piece, start_s=at_s))
        at_s = piece.end_s
    if duration_s > at_s + NEAR_S:
        pieces.append(Piece(at_s, duration_s, speech=False))
    return [*pieces[:-1], replace(pieces[-1], end_s=duration_s)]


def _speech(samples: np.ndarray, spans: Spans, longest_s: float) -> list[Piece]:
    """Return the speech of each piece, without the silence around it."""
    pieces: list[Piece] = []
    waiting = [list(spans)]  # the next ones last
    while waiting:
        group = waiting.pop()
        start_s, end_s = group[0][0], group[-1][1]
        silences_s = [after[0] - before[1] for before, after in pairwise(group)]
        too_long = end_s - start_s > longest_s
        if silences_s and (too_long or max(silences_s) >= PAUSE_S):
            cut = int(np.argmax(silences_s)) + 1
            waiting += [group[cut:], group[:cut]]
        elif too_long:
            quiet_s = _quietest(samples, start_s + longest_s / 2, min(start_s + longest_s, end_s))
            pieces.append(Piece(start_s, quiet_s, ends_in_speech=True))
            waiting.append([(quiet_s, end_s)])
        else:
            pieces.append(Piece(start_s, end_s))
    return pieces


def _with_silence(
    speech: Sequence[Piece], longest_s: float, around_s: tuple[float, float], duration_s: float
) -> list[Piece]:
    """Widen pieces by the silence around them; one between two is shared in the ratio of what is read after and before."""
    lead_s, trail_s = around_s
    share = lead_s / ((lead_s + trail_s) or 1.0)
    silences_s = [after.start_s - before.end_s for before, after in pairwise(speech)]
    most_before_s = [speech[0].start_s, *(share * silence_s for silence_s in silences_s)]
    most_after_s = [*((1 - share) * silence_s for silence_s in silences_s), duration_s - speech[-1].end_s]
    widened = []
    for piece, before_s, after_s in zip(speech, most_before_s, most_after_s, strict=True):
        spare_s = longest_s - (piece.end_s - piece.start_s)
        shrunk = min(1.0, spare_s / ((lead_s + trail_s) or 1.0))
        start_s = piece.start_s - min(shrunk * lead_s, before_s)
        widened.append(replace(piece, start_s=start_s, end_s=piece.end_s + min(shrunk * trail_s, after_s)))
    return widened


def _quietest(samples: np.ndarray, start_s: float, end_s: float) -> float:
    """Return the middle, in seconds, of the 50 ms with the least power between two times."""
    start, window = round(start_s * SAMPLE_RATE_HZ), round(WINDOW_S * SAMPLE_RATE_HZ)
    energy = np.cumsum(np.square(samples[start : round(end_s * SAMPLE_RATE_HZ)], dtype=np.float64))
    if len(energy) <= window:
        return (start_s + end_s) / 2
    return (start + int(np.argmin(energy[window:] - energy[:-window])) + window // 2) / SAMPLE_RATE_HZ
