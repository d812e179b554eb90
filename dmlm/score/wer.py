"""Word error rate: per-utterance counts of substitutions, deletions and insertions; corpus rates pool the counts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlm.errors import UserError

if TYPE_CHECKING:
    import jiwer

NORMALISER = "lower-whitespace/1"  # name and version; stored with every number that depends on it


def normalise(text: str) -> str:
    """Convert to lower case and replace runs of white space by one space. Digits and signs stay, as in references.

    >>> normalise(" 16  minus X ")
    '16 minus x'
    """
    return " ".join(text.lower().split())


@dataclass(frozen=True, kw_only=True)
class ErrorCounts:
    """Edit operations that turn one reference, or several, into the hypothesis."""

    substitutions: int
    deletions: int
    insertions: int
    reference_words: int

    @property
    def errors(self) -> int:
        """S + D + I."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """(S + D + I) / N; may exceed 1."""
        return self.errors / self.reference_words


def _words(reference: str, hypothesis: str) -> "jiwer.WordOutput":
    """Normalise and align two texts by minimum edit distance.

    Raises:
        UserError: the reference has no word, so its error rate is undefined.
    """
    import jiwer  # here: measures of counts need no alignment

    reference, hypothesis = normalise(reference), normalise(hypothesis)
    if not reference:
        raise UserError(
            "A reference is empty, so its word error rate is undefined; remove the utterance or give its text."
        )
    return jiwer.process_words(reference, hypothesis)


def count_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Count the errors of one utterance by jiwer's alignment of the normalised texts.

    An empty hypothesis counts as deletions only.

    Raises:
        UserError: the reference has no word.

    >>> count_errors("W to the power of 3", "w to power of 3 x")
    ErrorCounts(substitutions=0, deletions=1, insertions=1, reference_words=6)
    """
    output = _words(reference, hypothesis)
    return ErrorCounts(
        substitutions=output.substitutions,
        deletions=output.deletions,
        insertions=output.insertions,
        reference_words=output.hits + output.substitutions + output.deletions,
    )


def pool(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Sum the counts of utterances, so that the corpus rate is a ratio of sums and not a mean of ratios.

    >>> one = count_errors("a", "b")
    >>> nine = count_errors("a b c d e f g h i", "a b c d e f g h i")
    >>> pool([one, nine]).wer
    0.1
    """
    counts = list(counts)
    return ErrorCounts(
        substitutions=sum(count.substitutions for count in counts),
        deletions=sum(count.deletions for count in counts),
        insertions=sum(count.insertions for count in counts),
        reference_words=sum(count.reference_words for count in counts),
    )


class Alignment(NamedTuple):
    """Three aligned lines in the style of NIST sclite: gaps are `***`, operations are S, D and I."""

    reference: str
    hypothesis: str
    operations: str


def align(reference: str, hypothesis: str) -> Alignment:
    """Align two texts word by word for display; words in error are in capitals.

    >>> print(*align("16 minus x", "16 plus"), sep="\\n")
    16 MINUS X
    16 PLUS  *
       S     D
    """
    output = _words(reference, hypothesis)
    columns: list[tuple[str, str, str]] = []
    for chunk in output.alignments[0]:
        left = output.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
        right = output.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            columns += [(word, word, "") for word in left]
        elif chunk.type == "substitute":
            columns += [(a.upper(), b.upper(), "S") for a, b in zip(left, right, strict=True)]
        elif chunk.type == "delete":
            columns += [(word.upper(), "*" * len(word), "D") for word in left]
        else:
            columns += [("*" * len(word), word.upper(), "I") for word in right]
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    lines = (" ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows)
    return Alignment(*(line.rstrip() for line in lines))


@dataclass(frozen=True, eq=False)
class Counts:
    """One evaluation of a system on a test set: errors and reference words of each utterance, in the order of `ids`."""

    ids: tuple[str, ...]
    errors: NDArray[np.float64]  # (n,)
    words: NDArray[np.float64]  # (n,)

    @property
    def wer(self) -> float:
        """Pooled over the utterances; NaN if there are none."""
        return float(self.errors.sum() / self.words.sum()) if len(self.ids) else float("nan")


def mean_over_runs(runs: Sequence[Counts]) -> Counts:
    """Average the errors of each utterance over several evaluations of one test set (seeds, or draws of a permutation).

    The reference words are the same in each, so the WER of the mean is the mean of the WERs.

    Raises:
        UserError: the runs differ in utterances or in reference words.
    """
    aligned = [runs[0], *(in_order_of(runs[0], run) for run in runs[1:])]
    return Counts(runs[0].ids, np.mean([run.errors for run in aligned], axis=0), runs[0].words)


def in_order_of(first: Counts, second: Counts) -> Counts:
    """Return `second` with its utterances in the order of `first`.

    Raises:
        UserError: an utterance is in one of them only, or its references differ in length; paired measures need the
            same test set.
    """
    if differing := sorted(set(first.ids) ^ set(second.ids)):
        raise UserError(
            f"Two systems cannot be compared: utterance {differing[0]!r} was read by one of them only"
            f" ({len(differing)} such in all); evaluate both on the same test set."
        )
    index_of = {utterance_id: index for index, utterance_id in enumerate(second.ids)}
    order = np.array([index_of[utterance_id] for utterance_id in first.ids], dtype=int)
    if (unequal := np.flatnonzero(first.words != second.words[order])).size:
        raise UserError(
            f"Two systems cannot be compared: the reference of utterance {first.ids[unequal[0]]!r} has another number"
            " of words in each; evaluate both on the same transcripts."
        )
    return Counts(first.ids, second.errors[order], second.words[order])
