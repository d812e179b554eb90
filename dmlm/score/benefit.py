"""Relative Benefit: the share of a baseline's errors that an additional modality removes."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dmlm.score.intervals import Estimate, bootstrap, ratio
from dmlm.score.wer import Counts, in_order_of

Pair = tuple[Counts, Counts]  # the baseline (A) and the system with the modality (A+M), under one noise condition


def relative_benefit(baseline: Counts, with_modality: Counts) -> Estimate:
    """Return RB(M | A) = (WER_A - WER_A+M) / WER_A, such as +0.20 if WER falls from 20 % to 16 %.

    NaN if the baseline makes no error. The formula follows the worked example in the digest of arXiv 2507.19037. The
    interval resamples the ratio itself.

    Raises:
        UserError: the two systems were not evaluated on the same utterances.
    """
    return benefit_statistic([(baseline, with_modality)], lambda benefits: benefits[..., 0])


def mean_of_benefits(pairs: Sequence[Pair]) -> Estimate:
    """Return the mean of RB over noise conditions, with equal weights; NaN if RB is undefined for one of them."""
    return benefit_statistic(pairs, lambda benefits: benefits.mean(axis=-1))


def benefit_of_pooled(pairs: Sequence[Pair]) -> Estimate:
    """Return RB of the WERs pooled over noise conditions: a condition with more errors has more weight."""

    def statistic(sums: NDArray[np.float64]) -> NDArray[np.float64]:  # (..., 2 K)
        baseline, with_modality = sums[..., 0::2].sum(axis=-1), sums[..., 1::2].sum(axis=-1)
        return ratio(baseline - with_modality, baseline)

    return bootstrap(statistic, _columns(pairs))


def benefit_statistic(pairs: Sequence[Pair], combine: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Estimate:
    """Return a statistic of the RBs of several pairs, which are resampled together: a mean, a difference, a maximum.

    Args:
        pairs: K pairs on one test set; a baseline may occur in several.
        combine: from RBs (..., K) to values (...).
    """

    def statistic(sums: NDArray[np.float64]) -> NDArray[np.float64]:  # (..., 2 K)
        baseline, with_modality = sums[..., 0::2], sums[..., 1::2]
        return combine(ratio(baseline - with_modality, baseline))

    return bootstrap(statistic, _columns(pairs))


def _columns(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Return the errors of all systems, (n, 2 K): utterances by (baseline 0, with modality 0, baseline 1, ...).

    Reference words are not needed: they are the same for both systems of a pair and cancel in RB.
    """
    first = pairs[0][0]
    return np.stack([in_order_of(first, counts).errors for pair in pairs for counts in pair], axis=1)
