"""Relative Benefit: the share of the errors of a baseline that a further modality removes."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dmlm.score.intervals import Estimate, bootstrap, ratio
from dmlm.score.wer import Counts, in_order_of

Pair = tuple[Counts, Counts]  # the baseline (A) and the system with the modality (A+M), under one noise condition


def relative_benefit(baseline: Counts, added: Counts) -> Estimate:
    """RB(M | A) = (WER_A - WER_A+M) / WER_A; +0.20 where 20 % become 16 %. NaN where the baseline makes no error.

    The formula is read from the worked example of arXiv 2507.19037's digest. The interval resamples the ratio itself.

    Raises:
        UserError: the two were not evaluated on the same utterances.
    """
    return benefit_statistic([(baseline, added)], lambda benefits: benefits[..., 0])


def mean_of_benefits(pairs: Sequence[Pair]) -> Estimate:
    """Mean of RB over noise conditions, each condition with equal say. NaN where one of them is undefined."""
    return benefit_statistic(pairs, lambda benefits: benefits.mean(axis=-1))


def benefit_of_pooled(pairs: Sequence[Pair]) -> Estimate:
    """RB of the WERs pooled over noise conditions: those with many errors have more say than in the mean of RBs."""

    def statistic(sums: NDArray[np.float64]) -> NDArray[np.float64]:  # (..., 2 K)
        baseline, added = sums[..., 0::2].sum(axis=-1), sums[..., 1::2].sum(axis=-1)
        return ratio(baseline - added, baseline)

    return bootstrap(statistic, _columns(pairs))


def benefit_statistic(pairs: Sequence[Pair], combine: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Estimate:
    """Any statistic of the RBs of several pairs, resampled together: their mean, a difference, a maximum.

    Args:
        pairs: K pairs over one test set; a baseline may stand in several.
        combine: from RBs (..., K) to values (...).
    """

    def statistic(sums: NDArray[np.float64]) -> NDArray[np.float64]:  # (..., 2 K)
        baseline, added = sums[..., 0::2], sums[..., 1::2]
        return combine(ratio(baseline - added, baseline))

    return bootstrap(statistic, _columns(pairs))


def _columns(pairs: Sequence[Pair]) -> NDArray[np.float64]:  # (n, 2 K): errors of baseline 0, added 0, baseline 1, ...
    """Errors side by side, one utterance a row. The words cancel: both systems read the same references."""
    first = pairs[0][0]
    return np.stack([in_order_of(first, counts).errors for pair in pairs for counts in pair], axis=1)
