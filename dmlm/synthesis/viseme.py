"""From phonemes to the movement of a mouth: a table of visemes, and coarticulation between them.

Phonemes that look alike share one viseme (p, b and m; f and v; t, d and n; k, g and h), so a lip reader cannot tell them
apart. Between visemes the mouth follows the dominance functions of Cohen and Massaro (1993): at time t each parameter is
the weighted mean of all targets, and the weight of a viseme falls off exponentially with the distance of t from its
start or end. A short phone between strong neighbours does not reach its target. One exception: the lips always close for
p, b and m.

Shapes: T frames, N segments (visemes in time), P parameters in the order of `PARAMETERS`.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

PARAMETERS = ("opening", "width", "rounding", "teeth", "tongue", "tuck")
"""Lip opening 0..1; width -1..1 about rest; rounding and protrusion 0..1; upper teeth bared 0..1; tongue seen 0..1;
lower lip drawn under the upper teeth 0..1."""

#          opening width rounding teeth tongue tuck, then the strength of each in coarticulation
VISEMES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "rest": ((0.04, 0.00, 0.00, 0.0, 0.0, 0.0), (0.6, 0.6, 0.6, 0.6, 0.6, 2.0)),
    "p": ((0.00, 0.05, 0.05, 0.0, 0.0, 0.0), (4.0, 0.4, 0.4, 3.0, 1.5, 4.0)),
    "f": ((0.10, 0.10, 0.00, 1.0, 0.0, 1.0), (5.0, 0.6, 0.6, 5.0, 2.0, 10.0)),
    "th": ((0.28, 0.10, 0.00, 0.6, 1.0, 0.0), (3.0, 0.6, 0.6, 3.0, 9.0, 4.0)),
    "t": ((0.22, 0.10, 0.00, 0.7, 0.4, 0.0), (1.2, 0.3, 0.2, 1.5, 2.5, 4.0)),
    "l": ((0.34, 0.05, 0.00, 0.5, 0.8, 0.0), (1.2, 0.3, 0.2, 1.5, 4.0, 4.0)),
    "s": ((0.14, 0.35, 0.00, 1.0, 0.0, 0.0), (4.0, 1.0, 0.6, 4.0, 2.0, 4.0)),
    "sh": ((0.24, -0.15, 0.65, 0.9, 0.0, 0.0), (4.0, 1.0, 4.0, 4.0, 2.0, 4.0)),
    "k": ((0.32, 0.05, 0.00, 0.3, 0.1, 0.0), (0.6, 0.2, 0.2, 0.5, 0.8, 4.0)),
    "r": ((0.26, -0.10, 0.50, 0.4, 0.2, 0.0), (1.8, 0.8, 2.5, 1.0, 1.0, 4.0)),
    "w": ((0.10, -0.45, 1.00, 0.0, 0.0, 0.0), (6.0, 3.0, 6.0, 2.0, 1.0, 4.0)),
    "i": ((0.26, 0.75, 0.00, 0.8, 0.2, 0.0), (2.0, 2.5, 2.0, 1.5, 1.0, 4.0)),
    "e": ((0.50, 0.45, 0.00, 0.6, 0.3, 0.0), (2.0, 2.0, 2.0, 1.5, 1.0, 4.0)),
    "a": ((0.95, 0.15, 0.00, 0.5, 0.3, 0.0), (3.0, 1.5, 2.0, 1.5, 1.0, 4.0)),
    "uh": ((0.50, 0.00, 0.05, 0.4, 0.2, 0.0), (1.2, 0.8, 0.8, 1.0, 0.6, 4.0)),
    "o": ((0.62, -0.20, 0.60, 0.2, 0.1, 0.0), (2.5, 2.0, 3.0, 1.5, 1.0, 4.0)),
    "u": ((0.18, -0.40, 0.90, 0.1, 0.0, 0.0), (2.5, 2.0, 4.0, 1.5, 1.0, 4.0)),
}

OF_SYMBOL = {
    symbol: viseme
    for viseme, symbols in {
        "p": "p b m",
        "f": "f v",
        "th": "θ ð",
        "t": "t d n ɾ ʔ",
        "l": "l ɫ",
        "s": "s z",
        "sh": "ʃ ʒ tʃ dʒ",
        "k": "k ɡ g ŋ h x",
        "r": "ɹ r ɚ ɜ",
        "w": "w",
        "i": "i ɪ j ᵻ",
        "e": "ɛ e",
        "a": "a æ ɑ ɐ",
        "uh": "ə ʌ",
        "o": "ɔ o ɒ",
        "u": "u ʊ",
    }.items()
    for symbol in symbols.split()
}
RELEASE_S = 0.03  # time from closed lips to the opening of the neighbours
SHORTEST_PAUSE_S = 0.06  # a shorter one is an event between two vowels; the mouth does not rest


def visemes_of(symbol: str) -> list[str]:
    """Visemes of one phoneme of espeak-ng. A diphthong has two; other marks (length, syllabicity) have none.

    >>> visemes_of("aɪ"), visemes_of("tʃ"), visemes_of("ɔːɹ"), visemes_of("b") == visemes_of("m")
    (['a', 'i'], ['sh'], ['o', 'r'], True)
    """
    visemes, start = [], 0
    while start < len(symbol):
        size = 2 if symbol[start : start + 2] in OF_SYMBOL else 1
        if viseme := OF_SYMBOL.get(symbol[start : start + size]):
            visemes.append(viseme)
        start += size
    return visemes


def segments(phones: Sequence[tuple[float, str]], duration_s: float) -> tuple[list[str], np.ndarray]:
    """Visemes in time, with rest before, after and in pauses: names (N,), and starts and ends in seconds (N, 2)."""
    times = [start_s for start_s, _ in phones] + [duration_s]
    names, bounds = ["rest"], [(-1.0, max(0.0, times[0]))]
    for (start_s, symbol), end_s in zip(phones, times[1:], strict=True):
        parts = visemes_of(symbol) or (["rest"] if end_s - start_s >= SHORTEST_PAUSE_S else [])
        edges = np.linspace(start_s, end_s, len(parts) + 1)
        names += parts
        bounds += pairwise(edges)
    return [*names, "rest"], np.array([*bounds, (duration_s, duration_s + 1.0)])


def movement(
    phones: Sequence[tuple[float, str]],
    duration_s: float,
    times_s: np.ndarray,
    coarticulation_s: float,
    jitter: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Mouth parameters float32 (T, P) at the times (T,).

    Args:
        phones: (start in seconds, IPA symbol) in order of time; an empty symbol is a pause
        duration_s: of the clip; the last phone ends there
        times_s: of the frames
        coarticulation_s: time constant of the dominance functions; a longer one blends neighbours more
        jitter: standard deviation of each target's error, relative to the range of its parameter
        rng: draws the errors
    """
    names, bounds = segments(phones, duration_s)
    targets = np.array([VISEMES[name][0] for name in names])  # (N, P)
    strengths = np.array([VISEMES[name][1] for name in names])  # (N, P)
    errors = rng.normal(0.0, 1.0, targets.shape) * jitter * np.array([0.5, 0.7, 0.5, 0.5, 0.5, 0.2])
    centres, halves = bounds.mean(axis=1), np.diff(bounds, axis=1)[:, 0] / 2
    distances_s = np.maximum(0.0, np.abs(times_s[:, None] - centres) - halves)  # (T, N)
    weights = np.exp(-distances_s / coarticulation_s) + 1e-9  # (T, N)
    blended = (weights @ (strengths * (targets + errors))) / (weights @ strengths)  # (T, P)
    closing = distances_s[:, [name == "p" for name in names]]  # (T, closures)
    blended[:, 0] *= (closing / RELEASE_S).clip(max=1.0).min(axis=1, initial=1.0)
    return np.clip(blended, [0, -1, 0, 0, 0, 0], 1.2).astype(np.float32)
