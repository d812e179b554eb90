"""Word and character error rates: counts of substitutions, deletions and insertions for each utterance; rates pool them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlm.errors import UserError
from dmlm.score.normalisers import BASIC, Normaliser

if TYPE_CHECKING:
    import jiwer


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


@dataclass(frozen=True, kw_only=True)
class CharacterCounts:
    """Edit operations on characters; the space between two words is a character, as in jiwer."""

    substitutions: int
    deletions: int
    insertions: int
    reference_characters: int

    @property
    def errors(self) -> int:
        """S + D + I."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def cer(self) -> float:
        """(S + D + I) / N; may exceed 1."""
        return self.errors / self.reference_characters


def _normalised(reference: str, hypothesis: str, normaliser: Normaliser) -> tuple[str, str]:
    if not (compared := normaliser(reference)):
        raise UserError(
            f"A reference has no word left after normaliser {normaliser}, so its error rate is undefined; remove the"
            " utterance or give its text."
        )
    return compared, normaliser(hypothesis)


def _words(reference: str, hypothesis: str, normaliser: Normaliser) -> "jiwer.WordOutput":
    """Normalise and align two texts by minimum edit distance.

    Raises:
        UserError: the reference has no word, so its error rate is undefined.
    """
    import jiwer  # here: measures of counts need no alignment

    return jiwer.process_words(*_normalised(reference, hypothesis, normaliser))


def count_errors(reference: str, hypothesis: str, normaliser: Normaliser = BASIC) -> ErrorCounts:
    """Count the errors of one utterance by jiwer's alignment of the normalised texts.

    An empty hypothesis counts as deletions only.

    Raises:
        UserError: the reference has no word.

    >>> count_errors("W to the power of 3", "w to power of 3 x")
    ErrorCounts(substitutions=0, deletions=1, insertions=1, reference_words=6)
    """
    output = _words(reference, hypothesis, normaliser)
    return ErrorCounts(
        substitutions=output.substitutions,
        deletions=output.deletions,
        insertions=output.insertions,
        reference_words=output.hits + output.substitutions + output.deletions,
    )


def count_character_errors(reference: str, hypothesis: str, normaliser: Normaliser = BASIC) -> CharacterCounts:
    """Count the character errors of one utterance by jiwer's alignment of the normalised texts, spaces included.

    Raises:
        UserError: the reference has no word.

    >>> count_character_errors("log of X", "logs of y").cer
    0.25
    """
    import jiwer

    output = jiwer.process_characters(*_normalised(reference, hypothesis, normaliser))
    return CharacterCounts(
        substitutions=output.substitutions,
        deletions=output.deletions,
        insertions=output.insertions,
        reference_characters=output.hits + output.substitutions + output.deletions,
    )


def pool(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Sum the counts of utterances, so that the corpus rate is a ratio of sums and not a mean of ratios.

    >>> one = count_errors("a", "b")
    >>> nine = count_errors("a b c d e f g h i", "a b c d e f g h i")
    >>> pool([one, nine]).wer
    0.1
    """
    return ErrorCounts(**_sums(ErrorCounts, counts))


def pool_characters(counts: Iterable[CharacterCounts]) -> CharacterCounts:
    """Sum the character counts of utterances."""
    return CharacterCounts(**_sums(CharacterCounts, counts))


def _sums(kind: type, counts: Iterable[object]) -> dict[str, int]:
    counts = list(counts)
    return {field.name: sum(getattr(count, field.name) for count in counts) for field in fields(kind)}


class Alignment(NamedTuple):
    """Three aligned lines in the style of NIST sclite: gaps are `***`, operations are S, D and I."""

    reference: str
    hypothesis: str
    operations: str


def word_pairs(reference: str, hypothesis: str, normaliser: Normaliser = BASIC) -> list[tuple[str, str]]:
    """Align two texts word by word: a word of each; empty on one side where a word was deleted or inserted.

    >>> word_pairs("16 minus x", "16 plus")
    [('16', '16'), ('minus', 'plus'), ('x', '')]
    """
    output = _words(reference, hypothesis, normaliser)
    pairs: list[tuple[str, str]] = []
    for chunk in output.alignments[0]:
        left = output.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
        right = output.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        pairs += zip_longest(left, right, fillvalue="")
    return pairs


def align(reference: str, hypothesis: str, normaliser: Normaliser = BASIC) -> Alignment:
    """Align two texts word by word for display; words in error are in capitals.

    >>> print(*align("16 minus x", "16 plus"), sep="\\n")
    16 MINUS X
    16 PLUS  *
       S     D
    """
    columns: list[tuple[str, str, str]] = []
    for left, right in word_pairs(reference, hypothesis, normaliser):
        if left == right:
            columns.append((left, right, ""))
        elif left and right:
            columns.append((left.upper(), right.upper(), "S"))
        elif left:
            columns.append((left.upper(), "*" * len(left), "D"))
        else:
            columns.append(("*" * len(right), right.upper(), "I"))
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    lines = (" ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows)
    return Alignment(*(line.rstrip() for line in lines))


@dataclass(frozen=True, eq=False)
class Counts:
    """One evaluation of a system on a test set: errors and reference words of each utterance, in the order of `ids`.

    Character errors have the same form; then `words` are the characters of the references.
    """

    ids: tuple[str, ...]
    errors: NDArray[np.float64]  # (n,)
    words: NDArray[np.float64]  # (n,)
    normaliser: str = str(BASIC)  # of both texts, with its version

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
    return replace(runs[0], errors=np.mean([run.errors for run in aligned], axis=0))


def pooled_over_folds(parts: Sequence[Counts]) -> Counts:
    """Put the test sets of several evaluations together; an utterance that is in several has the mean of its errors.

    >>> one, two = (Counts((name,), np.array([errors]), np.array([4.0])) for name, errors in (("a", 1.0), ("b", 3.0)))
    >>> pooled_over_folds([one, two]).wer
    0.5
    """
    if len(parts) == 1:
        return parts[0]
    ids = tuple(dict.fromkeys(name for part in parts for name in part.ids))
    place = {name: number for number, name in enumerate(ids)}
    where = np.array([place[name] for part in parts for name in part.ids], dtype=int)
    times = np.bincount(where, minlength=len(ids))
    errors, words = (
        np.bincount(where, np.concatenate(values), len(ids)) / times
        for values in ([part.errors for part in parts], [part.words for part in parts])
    )
    return replace(parts[0], ids=ids, errors=errors, words=words)


def in_order_of(first: Counts, second: Counts) -> Counts:
    """Return `second` with its utterances in the order of `first`.

    Raises:
        UserError: an utterance is in one of them only, its references differ in length, or the texts went through
            different normalisers; paired measures need the same test set.
    """
    if first.normaliser != second.normaliser:
        raise UserError(
            f"Two systems cannot be compared: one was scored with normaliser {first.normaliser}, the other with"
            f" {second.normaliser}; give both the same corpus.normaliser."
        )
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
    return replace(second, ids=first.ids, errors=second.errors[order], words=second.words[order])
