"""What the cells of a grid require is checked before any work is done."""

from collections.abc import Sequence

from dmlm.errors import UserError
from dmlm.model import pretrained
from dmlm.plan.cell import Cell
from dmlm.score.normalisers import NORMALISERS
from dmlm.sweep.materials import group_by_materials, letters_of
from dmlm.sweep.parts import conditions, corpus_folder
from dmlm.tokens.shards import TokenSource
from dmlm.training.loggers import check_installed


def check(cells: Sequence[Cell]) -> None:
    """Check all settings, and that every tokenizer has its packages and weights, before any work is done.

    Raises:
        UserError: the first problem, in one sentence.
    """
    check_settings(cells)
    if sentences := missing_requirements(cells):
        raise UserError(sentences[0])


def missing_requirements(cells: Sequence[Cell]) -> list[str]:
    """List what the cells' tokenizers need and this machine lacks: a sentence each, with the command that installs it."""
    choices = {f"{k} {c.tokenizers[k].model_dump_json()}": (k, c.tokenizers[k]) for c in cells for k in c.letters}
    sentences: dict[str, None] = {}
    for letter, choice in choices.values():
        try:
            TokenSource.check(letter, choice.recipe, choice.settings).require()
        except UserError as error:
            sentences[str(error)] = None
    return list(sentences)


def check_settings(cells: Sequence[Cell]) -> None:
    """Check corpora, normalisers, tokenizers, backbones, noise and loggers; makes nothing but records of noise folders.

    Raises:
        UserError: the first problem, in one sentence.
    """
    check_installed(list(dict.fromkeys(name for cell in cells for name in cell.execution.loggers)))
    for indices in group_by_materials(cells):
        first = cells[indices[0]]
        corpus_folder(first.corpus)
        NORMALISERS[first.corpus.normaliser].require()
        for name in {cells[n].backbone for n in indices if pretrained.is_named(cells[n].backbone)}:
            pretrained.digest(name)
        for letter in letters_of(cells, indices):
            choice = first.tokenizers[letter]
            TokenSource.check(letter, choice.recipe, choice.settings)
        if first.noise.set != "builtin":
            conditions(first, draws=1)
