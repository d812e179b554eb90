"""Confidence intervals: the paired bootstrap over utterances, on any statistic of pooled counts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dmlm.score.wer import Counts, in_order_of

LEVEL = 0.95
RESAMPLES = 2000
SEED = 20040517
MAX_UNDEFINED = 0.05  # if a larger share of resamples has no value, there is no interval

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # (..., K) pooled sums -> (...)


@dataclass(frozen=True)
class Estimate:
    """A measure and its 95 % percentile interval. NaN means undefined; `undefined` counts resamples without a value."""

    value: float
    low: float = math.nan
    high: float = math.nan
    undefined: int = 0

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies entirely on one side of zero; False if there is no interval."""
        return self.low > 0 or self.high < 0


@lru_cache(maxsize=4)
def _weights(utterances: int, resamples: int, seed: int) -> NDArray[np.float32]:  # (R, n)
    """Return how often each resample contains each utterance.

    Cached by the size of the test set, so that all systems are evaluated on the same resamples.
    """
    rng = np.random.default_rng(seed)
    weights = np.empty((resamples, utterances), dtype=np.float32)
    for row in weights:
        row[:] = np.bincount(rng.integers(utterances, size=utterances), minlength=utterances)
    return weights


def bootstrap(
    statistic: Statistic, columns: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = SEED
) -> Estimate:
    """Return a statistic of the test set, and the percentile interval of its values on resampled test sets.

    An utterance is drawn with all its columns, so that systems are compared on the same utterances (Bisani & Ney,
    "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004). Utterances are assumed
    independent. The interval covers the choice of test utterances, not the training seed.

    Args:
        statistic: from pooled sums (..., K) to values (...); NaN if undefined.
        columns: (n, K) counts per utterance, such as errors of two systems and reference words.
        resamples: number of resampled test sets.
        seed: of the resampling; equal seeds give equal intervals.
    """
    value = float(statistic(columns.sum(axis=0)))
    if len(columns) < 2:
        return Estimate(value)
    values = statistic((_weights(len(columns), resamples, seed) @ columns.astype(np.float32)).astype(np.float64))
    defined = values[np.isfinite(values)]
    undefined = len(values) - len(defined)
    if math.isnan(value) or undefined > MAX_UNDEFINED * len(values):
        return Estimate(value, undefined=undefined)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), undefined)


def ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return numerator / denominator; NaN, that is undefined, where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _wer(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    errors, words = np.moveaxis(sums, -1, 0)
    return ratio(errors, words)


def _difference(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    errors, other_errors, words = np.moveaxis(sums, -1, 0)
    return ratio(errors - other_errors, words)


def wer_interval(counts: Counts, *, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """Return the pooled WER with its interval."""
    return bootstrap(_wer, np.stack([counts.errors, counts.words], axis=1), resamples=resamples, seed=seed)


def wer_difference(first: Counts, second: Counts, *, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """Return the WER of `first` minus the WER of `second`, resampled together; negative if `first` is better.

    Raises:
        UserError: the two systems were not evaluated on the same utterances.
    """
    second = in_order_of(first, second)
    columns = np.stack([first.errors, second.errors, first.words], axis=1)
    return bootstrap(_difference, columns, resamples=resamples, seed=seed)
