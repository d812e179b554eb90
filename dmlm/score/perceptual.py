"""Perceptual score: what a model loses when one modality comes from another utterance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmlm.errors import UserError
from dmlm.score.intervals import Estimate, bootstrap, ratio
from dmlm.score.wer import Counts, in_order_of, mean_over_runs

BLOCK = 8  # donors of similar length are sought among this many neighbours in the order of length


def derangements(items: int, draws: int, rng: np.random.Generator) -> NDArray[np.int64]:  # (draws, items)
    """Permutations without a fixed point, each equally likely: uniform permutations, those with a fixed point rejected.

    About e = 2.7 tries a draw, whatever the number of items.

    Raises:
        UserError: fewer than two items, or no draw asked for.
    """
    if items < 2 or draws < 1:
        raise UserError(
            f"A modality cannot be permuted over {items} utterance(s) in {draws} draw(s); at least 2 and 1 are needed."
        )
    found: list[NDArray[np.int64]] = []
    while len(found) < draws:
        order = rng.permutation(items)
        if not (order == np.arange(items)).any():
            found.append(order)
    return np.stack(found)


def matched_derangement(lengths: Sequence[int], rng: np.random.Generator, block: int = BLOCK) -> NDArray[np.int64]:
    """A derangement (n,) with donors of similar length: for lips, which must last as long as the audio beside them.

    Utterances are sorted by length (ties at random) and deranged within runs of `block` neighbours; a rest of one joins
    the run before it.
    """
    values = np.asarray(lengths)
    if len(values) < 2:
        derangements(len(values), 1, rng)  # refuses
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
    """How much a system relies on one modality, as a difference of WERs and under two normalisations."""

    score: Estimate  # mean over draws of WER_permuted, less WER
    by_model: Estimate  # over the system's own WER; NaN where that is 0
    by_task: Estimate  # over the WER of the baseline without the modality; NaN without one, or where that is 0
    draws: int
    draw_sd: float  # sample standard deviation of WER over the draws; NaN for one draw


def perceptual_score(intact: Counts, permuted: Sequence[Counts], baseline: Counts | None = None) -> PerceptualScore:
    """PS_M = E_perm[WER_perm(M)] - WER, positive where the model listens to modality M.

    After Gat, Schwartz & Schwing, "Perceptual Score", NeurIPS 2021 (arXiv 2110.14375), accuracy replaced by -WER. Each
    draw is a derangement of M over the test set. PS near 0 beside a positive Relative Benefit is a regularising effect:
    training with M helped, reading it does not. The interval resamples utterances, each with its mean over the draws.

    Raises:
        UserError: no draw, or other utterances than those of `intact`.
    """
    if not permuted:
        raise UserError("A perceptual score needs at least one evaluation with the modality permuted; there is none.")
    draws = [in_order_of(intact, counts) for counts in permuted]
    columns = [mean_over_runs(draws).errors, intact.errors, intact.words]
    if baseline is not None:
        columns.append(in_order_of(intact, baseline).errors)
    table = np.stack(columns, axis=1)

    def over(column: int) -> Estimate:
        return bootstrap(lambda sums: ratio(sums[..., 0] - sums[..., 1], sums[..., column]), table)

    return PerceptualScore(
        score=over(2),
        by_model=over(1),
        by_task=over(3) if baseline is not None else Estimate(float("nan")),
        draws=len(draws),
        draw_sd=float(np.std([counts.wer for counts in draws], ddof=1)) if len(draws) > 1 else float("nan"),
    )
