"""What the cells of a grid require is checked before any work is done."""

from collections.abc import Callable, Sequence
from functools import partial

from dmlm.errors import UserError
from dmlm.model import pretrained
from dmlm.plan.cell import Cell, TokenizerChoice
from dmlm.score.normalisers import NORMALISERS
from dmlm.sweep.materials import group_by_materials, letters_of
from dmlm.sweep.parts import conditions, corpus_folder, require_corpus
from dmlm.tokens.shards import TokenSource
from dmlm.training.loggers import check_installed


def check(cells: Sequence[Cell]) -> None:
    """Check all settings, and that corpora and tokenizers have what they need, before any work is done.

    Raises:
        UserError: the first problem, in one sentence.
    """
    check_settings(cells)
    if sentences := missing_requirements(cells):
        raise UserError(sentences[0])


def missing_requirements(cells: Sequence[Cell]) -> list[str]:
    """List what the cells' corpora and tokenizers need and this machine lacks: a sentence each, with what to do."""
    checks: dict[str, Callable[[], None]] = {}
    for cell in cells:
        checks[cell.corpus.model_dump_json(include={"recipe", "preset", "settings"})] = partial(
            require_corpus, cell.corpus
        )
        for letter in cell.letters:
            choice = cell.tokenizers[letter]
            checks[f"{letter} {choice.model_dump_json()}"] = partial(_require_encoder, letter, choice)
    sentences: dict[str, None] = {}
    for require in checks.values():
        try:
            require()
        except UserError as error:
            sentences[str(error)] = None
    return list(sentences)


def _require_encoder(letter: str, choice: TokenizerChoice) -> None:
    TokenSource.check(letter, choice.recipe, choice.settings).require()


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
