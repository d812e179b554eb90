"""Prepare cells as a run does: check their corpora, make their materials, and see that every sequence fits."""

from collections.abc import Callable, Mapping, Sequence

from dmlm import known_files, paths, processes
from dmlm.corpus.check import Unread
from dmlm.corpus.faults import describe_left_out, listing, summary
from dmlm.engines.lease import Leases
from dmlm.errors import UserError
from dmlm.model import pretrained
from dmlm.plan.cell import Cell
from dmlm.processes import Map
from dmlm.sweep.examine import examine, group_by_corpus, leaving_out, of_splits, settle
from dmlm.sweep.grid_faults import encoders_of, long_sequences, too_long
from dmlm.sweep.materials import Materials, find_prepared, fold_key, prepare
from dmlm.sweep.parts import corpus_folder, open_corpus

Say = Callable[[str], None]
DECIDES = {
    "template",
    "permute",
    "model",
    "decode",
    "perceptual",
    "train",
}  # settings: of cells that share materials, how long
TOO_LONG = "too_long/1"  # what `known_files` keeps: ids by what decides it


def prepare_under_lease(
    cells: Sequence[Cell],
    say: Say,
    run: Map = processes.run,
    failed: dict[int, Exception] | None = None,
    left_out: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Materials]:
    """Check and make the materials of every cell, under a lease: no other process prepares in this home folder.

    Args:
        cells: the cells.
        say: called with lines of progress and with warnings.
        run: maps a function over jobs.
        failed: if given, what is wrong with single cells is added here by index; otherwise the first error is raised.
        left_out: utterances that are left out besides, each with its rule, by `fold_key` of the corpus.

    Returns:
        The materials of the cells that did not fail, in order.

    Raises:
        UserError: a corpus has errors; lists them.
    """
    with Leases().hold_when_free(paths.home() / "prepare.lease", say):
        examined = _as_before(examine(cells, say, run))
        for n, cell in enumerate(examined):
            besides = (left_out or {}).get(fold_key(cell.corpus), {})
            examined[n] = leaving_out(cell, {**cell.corpus.left_out, **besides})
        while True:
            errors: dict[int, Exception] = {}
            lines: list[str] = []
            made = iter(prepare(examined, lines.append, run, None if failed is None else errors))
            materials = {n: next(made) for n in range(len(cells)) if n not in errors}
            shorter = without_long(examined, materials, None if failed is None else errors)
            if shorter == examined:
                break
            examined = shorter
        if not left_out:  # else an answer would depend on what was asked before
            _remember(examined)
    for corpus in {id(m.corpus): m.corpus for m in materials.values()}.values():
        if corpus.unused:
            lines.append(f"left out {describe_left_out(corpus.left_out_counts)}, of {corpus.folder}")
    for line in lines:
        say(line)
    if failed is not None:
        failed |= errors
    return [materials[n] for n in range(len(cells)) if n not in errors]


def without_long(
    cells: Sequence[Cell], materials: dict[int, Materials], failed: dict[int, Exception] | None
) -> list[Cell]:
    """Return the cells without utterances that are too long for one of them, where `corpus.leave_out` says so.

    Args:
        cells: the cells.
        materials: by index of the cell; a cell without is not looked at.
        failed: gets an error for each cell with a sequence that is too long, by index; None: it is raised.

    Raises:
        UserError: nothing is left of a split.
    """
    shorter = list(cells)
    for group in group_by_corpus(cells):
        choice = cells[group[0]].corpus
        used = dict.fromkeys(["train", *(cells[n].split for n in group)])
        left_out, seen = dict(choice.left_out), {}
        for n in filter(materials.__contains__, group):
            cell, corpus = cells[n], materials[n].corpus
            key = id(materials[n]), cell.model_dump_json(include=DECIDES)
            if key not in seen:
                seen[key] = too_long(long_sequences(cell, materials[n]), corpus)
            faults = seen[key]
            if "too_long" in choice.leave_out:
                left_out |= {str(fault.utterance): fault.rule for fault in faults}
            elif faults:
                error = UserError(summary(f"{corpus.folder} has", faults), listing(faults))
                if failed is None:
                    raise error
                failed[n] = error
        if left_out != choice.left_out:
            settle(rest := open_corpus(choice.model_copy(update={"left_out": left_out})), of_splits(rest, used), ())
            for n in group:
                shorter[n] = leaving_out(cells[n], left_out)
    return shorter


def _key(cells: Sequence[Cell]) -> str:
    """Return a digest of what decides which utterances are too long for some cells of one corpus.

    That is everything but what is set beside the data: an answer for other noise, say, would be another.
    """
    facts = [open_corpus(cells[0].corpus).digest, *(encoder.fingerprint for encoder in encoders_of(cells))]
    facts += [pretrained.digest(cell.text.tokenizer) for cell in cells if cell.text.tokenizer]
    for cell in cells:
        others = {name: rule for name, rule in cell.corpus.left_out.items() if rule != "too_long"}
        facts.append(leaving_out(cell, others).model_dump_json(exclude={"execution", "seed"}))
    return known_files.digest_of(facts)


def _remember(cells: Sequence[Cell]) -> None:
    """Keep which utterances are too long for these cells, see `_as_before`."""
    for group in group_by_corpus(cells):
        choice = cells[group[0]].corpus
        if "too_long" in choice.leave_out:
            found = {name: rule for name, rule in choice.left_out.items() if rule == "too_long"}
            known_files.keep(TOO_LONG, {_key([cells[n] for n in group]): found})


def _as_before(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells without what an earlier run of the same cells found too long, so that nothing is encoded for it."""
    known = list(cells)
    for group in group_by_corpus(cells):
        if "too_long" in cells[group[0]].corpus.leave_out:
            key = _key([cells[n] for n in group])
            too_long = known_files.facts(TOO_LONG, [key]).get(key, {})
            for n in group:
                known[n] = leaving_out(cells[n], {**cells[n].corpus.left_out, **too_long})
    return known


def find_ready(cells: Sequence[Cell]) -> dict[int, Materials]:
    """Return the materials that an earlier run made, by index of the cell; makes nothing and reads no media.

    A cell of which a part is missing, or whose corpus has files that were never checked, is left out.
    """
    there = {n: cell for n, cell in enumerate(cells) if (corpus_folder(cell.corpus)[0] / "corpus.json").is_file()}
    ready: dict[int, Materials] = {}
    for group in group_by_corpus(list(there.values())):
        numbers = [list(there)[n] for n in group]
        try:
            examined = examine([cells[n] for n in numbers], lambda line: None, None)
        except Unread:
            continue
        ready |= {numbers[n]: materials for n, materials in find_prepared(_as_before(examined)).items()}
    return ready
