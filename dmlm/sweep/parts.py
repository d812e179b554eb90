"""The parts of the materials of a cell, opened or made on first use: corpus, noise bank, text vocabulary, conditions."""

from pathlib import Path
from typing import Any

from dmlm import paths, recipes
from dmlm.corpus.condition import Condition
from dmlm.corpus.manifest import Corpus, read_corpus
from dmlm.corpus.noise import NoiseBank, NoiseSettings
from dmlm.errors import UserError, did_you_mean
from dmlm.model import pretrained
from dmlm.plan.cell import Cell, CorpusChoice, TextSettings, validated
from dmlm.plan.identity import identity
from dmlm.tokens.vocabulary import TextVocabulary


def corpus_folder(choice: CorpusChoice) -> tuple[Path, Any, Any]:
    """Return the folder of a corpus with these settings, its recipe and its validated settings.

    Raises:
        UserError: unknown recipe, preset or setting.
    """
    recipe = recipes.load("datasets", choice.recipe)
    for name in ("Settings", "PRESETS", "prepare"):
        if not hasattr(recipe, name):
            raise UserError(
                f"{recipe.__file__} defines no {name}; see docs/extending.md for what a corpus recipe defines."
            )
    if choice.preset not in recipe.PRESETS:
        raise UserError(
            f"Corpus {choice.recipe} has no preset {choice.preset!r}; {did_you_mean(choice.preset, recipe.PRESETS)}."
        )
    values = recipe.PRESETS[choice.preset].model_dump() | choice.settings
    settings = validated(recipe.Settings, values, f"corpus.settings of {choice.recipe}")
    key = identity({"settings": settings.model_dump(mode="json"), "recipe": recipes.digest(recipe.__name__)}, 8)
    return paths.home() / "corpora" / f"{Path(choice.recipe).stem}-{choice.preset}-{key}", recipe, settings


def open_corpus(choice: CorpusChoice) -> Corpus:
    """Read a corpus; prepare it first if needed, continuing an interrupted preparation."""
    folder, recipe, settings = corpus_folder(choice)
    return read_corpus(folder) if (folder / "corpus.json").is_file() else recipe.prepare(settings, folder)


def open_bank(noise: NoiseSettings) -> NoiseBank:
    """Open the noise files: the built-in bank, which is made on first use, or a folder of the user.

    Raises:
        UserError: there is no such folder.
    """
    if noise.set != "builtin":
        folder = Path(noise.set).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(
                f"noise.set: there is no folder {folder}; give `builtin` or a folder with one sub-folder per kind."
            )
    else:
        from dmlm.synthesis.bank import build_bank

        folder = paths.noise_bank()
        if not (folder / "bank.json").is_file():
            build_bank(folder)
    return NoiseBank.open(folder, noise.kinds)


def text_path(corpus: Corpus, settings: TextSettings) -> Path:
    """Return the path of the text vocabulary of a corpus."""
    name = pretrained.digest(settings.tokenizer)[:8] if settings.tokenizer else f"bpe{settings.vocab_size}"
    return paths.home() / "tokens" / corpus.label / f"text-{name}.json"


def open_text(corpus: Corpus, settings: TextSettings) -> TextVocabulary:
    """Open the text vocabulary of a corpus; on first use, learn it on the training transcripts or copy a pretrained one."""
    path = text_path(corpus, settings)
    if not path.is_file():
        if settings.tokenizer:
            TextVocabulary.of_model(pretrained.folder(settings.tokenizer)).save(path)
        else:
            TextVocabulary.learn((u.text for u in corpus.split("train")), settings.vocab_size).save(path)
    return TextVocabulary.load(path)


def conditions(cell: Cell, draws: int) -> tuple[list[Condition], dict[float, Condition]]:
    """Return the training conditions of a cell, one per noise draw, and its test conditions by SNR in dB."""
    bank = open_bank(cell.noise)
    return (
        [Condition.of(cell.snr_db.train, draw, cell.noise, bank) for draw in range(draws)],
        {snr_db: Condition.of((snr_db,), 0, cell.noise, bank) for snr_db in cell.snr_db.test},
    )
