"""Perceptual score: how much WER rises when one modality is taken from another utterance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmlm.errors import UserError
from dmlm.score.intervals import Estimate, bootstrap, ratio
from dmlm.score.wer import Counts, in_order_of, mean_over_runs

BLOCK = 8  # donors are exchanged among this many utterances of similar length


def derangements(utterances: int, draws: int, rng: np.random.Generator) -> NDArray[np.int64]:  # (draws, utterances)
    """Return random permutations without a fixed point, each equally likely.

    They are uniform permutations; those with a fixed point are rejected. A draw takes about e = 2.7 attempts.

    Raises:
        UserError: fewer than two utterances, or less than one draw.
    """
    if utterances < 2 or draws < 1:
        raise UserError(
            f"A modality cannot be permuted over {utterances} utterance(s) in {draws} draw(s);"
            " at least 2 and 1 are needed."
        )
    orders: list[NDArray[np.int64]] = []
    while len(orders) < draws:
        order = rng.permutation(utterances)
        if not (order == np.arange(utterances)).any():
            orders.append(order)
    return np.stack(orders)


def matched_derangement(lengths: Sequence[int], rng: np.random.Generator, block: int = BLOCK) -> NDArray[np.int64]:
    """Return a derangement (n,) with donors of similar length: for lips, which must be about as long as the audio.

    Utterances are sorted by length (ties at random) and deranged within blocks of `block` neighbours. If a single
    utterance remains at the end, it joins the block before.

    Raises:
        UserError: fewer than two utterances.
    """
    values = np.asarray(lengths)
    if len(values) < 2:
        derangements(len(values), 1, rng)  # raises
    by_length = np.lexsort((rng.random(len(values)), values))
    starts = list(range(0, len(values), max(block, 2)))
    if len(values) - starts[-1] == 1 and len(starts) > 1:
        starts.pop()
    donors = np.empty(len(values), dtype=np.int64)
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        members = by_length[start:end]
        donors[members] = members[derangements(len(members), 1, rng)[0]]
    return donors


@dataclass(frozen=True)
class PerceptualScore:
    """How much a system relies on one modality: a difference of WERs, and two normalised forms of it."""

    score: Estimate  # mean over draws of WER_permuted, minus WER
    by_model: Estimate  # score / WER of the system; NaN if that is 0
    by_task: Estimate  # score / WER of the baseline without the modality; NaN if there is none or its WER is 0
    draws: int
    draw_sd: float  # sample standard deviation of WER over the draws; NaN for one draw


def perceptual_score(intact: Counts, permuted: Sequence[Counts], baseline: Counts | None = None) -> PerceptualScore:
    """Return PS_M = E_perm[WER_perm(M)] - WER, which is positive if the model uses modality M.

    After Gat, Schwartz & Schwing, "Perceptual Score", NeurIPS 2021 (arXiv 2110.14375), with -WER in place of accuracy.
    Each draw is a derangement of M over the test set. PS near 0 together with a positive Relative Benefit means that M
    regularised training but is not used in recognition. The interval resamples utterances, each with its mean over the
    draws.

    Args:
        intact: the system on the unchanged test set.
        permuted: the same system with M permuted; one evaluation per draw.
        baseline: the system without M.

    Raises:
        UserError: there is no draw, or one was evaluated on other utterances than `intact`.
    """
    if not permuted:
        raise UserError("A perceptual score needs at least one evaluation with the modality permuted; there is none.")
    draws = [in_order_of(intact, counts) for counts in permuted]
    columns = [mean_over_runs(draws).errors, intact.errors, intact.words]
    if baseline is not None:
        columns.append(in_order_of(intact, baseline).errors)
    table = np.stack(columns, axis=1)

    def divided_by(column: int) -> Estimate:
        return bootstrap(lambda sums: ratio(sums[..., 0] - sums[..., 1], sums[..., column]), table)

    return PerceptualScore(
        score=divided_by(2),
        by_model=divided_by(1),
        by_task=divided_by(3) if baseline is not None else Estimate(float("nan")),
        draws=len(draws),
        draw_sd=float(np.std([counts.wer for counts in draws], ddof=1)) if len(draws) > 1 else float("nan"),
    )
