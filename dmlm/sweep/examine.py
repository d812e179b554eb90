"""Check the corpora of cells before anything is encoded or trained: what is wrong is left out, said, or refused.

What is left out (`corpus.leave_out`) is left out of every cell of a grid that reads this corpus, so that comparisons are
over the same utterances. The ids travel with the cell, in `corpus.left_out`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dmlm.corpus.check import check_corpus, split_faults
from dmlm.corpus.faults import Fault, listing, summary
from dmlm.corpus.manifest import Corpus, without
from dmlm.errors import UserError
from dmlm.modalities import FILES
from dmlm.plan.cell import Cell
from dmlm.processes import Map
from dmlm.sweep import grid_faults
from dmlm.sweep.parts import corpus_folder, open_corpus

Say = Callable[[str], None]


def examine(cells: Sequence[Cell], say: Say, run: Map | None) -> list[Cell]:
    """Check the corpus of every cell, and return the cells with the ids of the clips that are left out.

    Args:
        cells: the cells.
        say: called with warnings.
        run: maps a function over jobs, with which new files are read; None: no file is read.

    Raises:
        Unread: `run` is None, and there are files that were never read.
        UserError: a corpus has errors that no rule of `corpus.leave_out` settles; lists them.
    """
    examined = list(cells)
    for group in group_by_corpus(cells):
        of_group = [cells[n] for n in group]
        left_out = _examine_corpus(of_group, say, run)
        for n in group:
            examined[n] = leaving_out(cells[n], left_out)
    return examined


def _examine_corpus(cells: Sequence[Cell], say: Say, run: Map | None) -> dict[str, str]:
    """Check the corpus of some cells; return the utterances to leave out, each with its rule."""
    choice = cells[0].corpus
    corpus = open_corpus(choice.model_copy(update={"left_out": {}}))
    numbers = {utterance.id: number for number, utterance in enumerate(corpus.utterances, start=1)}
    media = {encoder.media for encoder in grid_faults.encoders_of(cells)}
    used = dict.fromkeys(["train", *(cell.split for cell in cells)])
    faults, known = check_corpus(corpus, [field for field in FILES if field in media], run, used)
    faults += grid_faults.lacking(corpus, cells, numbers)
    broken = {str(fault.utterance): fault.rule for fault in faults if fault.is_error and fault.utterance}
    audio = {u.id: facts for u in corpus.utterances if (facts := known.facts.get(u.audio)) and u.id not in broken}
    faults += grid_faults.silent_spans(corpus, cells, audio, numbers)
    left_out = settle(corpus, faults, choice.leave_out)
    kept = without(corpus, left_out)
    more = [*of_splits(kept, used), *grid_faults.references(kept, cells, numbers)]
    left_out |= settle(kept, more, choice.leave_out)
    rest = without(corpus, left_out)
    faults = [fault for fault in (*faults, *more) if fault.utterance and fault.utterance not in left_out]
    settle(rest, splits := of_splits(rest, used), ())
    if counts := Counter(fault.rule for fault in (*faults, *splits)):
        what = ", ".join(f"{rule} {count:,}" for rule, count in counts.items())
        where = "" if choice.fold is None else f" (fold {choice.fold})"
        say(f"warning  {what}{where}; see: dmlm corpus check {corpus.folder}")
    return left_out


def of_splits(corpus: Corpus, used: Iterable[str]) -> list[Fault]:
    """Return what is wrong with the splits of a corpus, without what is left out of it; those `used` may not be empty."""
    return [*split_faults(corpus.utterances, str(corpus.folder / "manifest.jsonl"), corpus.left_out_counts, used)]


def group_by_corpus(cells: Sequence[Cell]) -> list[list[int]]:
    """Group the indices of cells that read one corpus, in one fold, and leave out by the same rules."""
    groups: dict[tuple[Path, tuple[str, ...], int | None], list[int]] = {}
    for index, cell in enumerate(cells):
        choice = cell.corpus
        groups.setdefault((corpus_folder(choice)[0], choice.leave_out, choice.fold), []).append(index)
    return list(groups.values())


def leaving_out(cell: Cell, left_out: Mapping[str, str]) -> Cell:
    """Return a cell whose corpus is read without these utterances; `left_out` gives the rule of each by its id."""
    return cell.model_copy(update={"corpus": cell.corpus.model_copy(update={"left_out": dict(left_out)})})


def settle(corpus: Corpus, faults: Iterable[Fault], rules: Sequence[str]) -> dict[str, str]:
    """Return the utterances to leave out by these rules: id -> rule.

    Raises:
        UserError: errors remain; lists them, and says how they can be settled.
    """
    faults = list(faults)
    left_out = {fault.utterance: fault.rule for fault in reversed(faults) if fault.utterance and fault.rule in rules}
    errors = [fault for fault in faults if fault.is_error and fault.utterance not in left_out]
    if errors:
        raise UserError(summary(f"{corpus.folder} has", errors), listing(errors))
    return left_out
