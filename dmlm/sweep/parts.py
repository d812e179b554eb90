"""The parts of the materials of a cell, opened or made on first use: corpus, noise bank, text vocabulary, conditions."""

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dmlm import known_files, paths, recipes
from dmlm.corpus import noise_record
from dmlm.corpus.condition import Condition
from dmlm.corpus.imported import imported_folder, is_noise, noise_named
from dmlm.corpus.manifest import Corpus, first_reason, in_fold, read_corpus, without
from dmlm.corpus.noise import NoiseSettings
from dmlm.corpus.noise_files import NoiseBank
from dmlm.errors import BrokenRecipe, UserError, did_you_mean
from dmlm.model import pretrained
from dmlm.plan.cell import Cell, CorpusChoice, TextSettings, validated
from dmlm.plan.identity import identity
from dmlm.tokens.vocabulary import TextVocabulary


def corpus_folder(choice: CorpusChoice) -> tuple[Path, Any, Any]:
    """Return the folder of a corpus with these settings, its recipe and its validated settings.

    An imported corpus has neither recipe nor settings: both are None.

    Raises:
        UserError: unknown recipe, preset or setting.
    """
    if (folder := imported_folder(choice.recipe)) is not None:
        if choice.preset or choice.settings:
            raise UserError(
                f"corpus: {folder} is an imported corpus, which has no preset and no settings; leave them out."
            )
        return folder, None, None
    recipe = recipes.load("datasets", choice.recipe)
    for name in ("Settings", "PRESETS", "prepare"):
        if not hasattr(recipe, name):
            raise UserError(
                f"{recipe.__file__} defines no {name}; see docs/extending.md for what a corpus recipe defines."
            )
    preset = choice.preset or (next(iter(recipe.PRESETS)) if len(recipe.PRESETS) == 1 else "")
    if not preset:
        raise UserError(
            f"Corpus {choice.recipe} has several presets ({', '.join(recipe.PRESETS)}); write {choice.recipe}:PRESET, in a"
            f" grid {{recipe: {choice.recipe}, preset: PRESET}}."
        )
    if preset not in recipe.PRESETS:
        raise UserError(f"Corpus {choice.recipe} has no preset {preset!r}; {did_you_mean(preset, recipe.PRESETS)}.")
    values = recipe.PRESETS[preset].model_dump() | choice.settings
    settings = validated(recipe.Settings, values, f"corpus.settings of {choice.recipe}")
    path = Path(str(recipe.__file__))
    facts = {"settings": settings.model_dump(mode="json"), "recipe": recipes.digest(recipe.__name__)}
    if path.parent != paths.recipe_folder("datasets"):  # two of one program may read different files beside them
        facts["path"] = str(path)
    key = identity(facts, 8)
    return paths.home() / "corpora" / f"{Path(choice.recipe).stem}-{preset}-{key}", recipe, settings


def require_corpus(choice: CorpusChoice) -> None:
    """Check that the recipe of a corpus that is not prepared yet finds all that it needs, such as recordings.

    Raises:
        UserError: something is missing; says how to get it.
    """
    folder, recipe, settings = corpus_folder(choice)
    if (folder / "corpus.json").is_file() or not hasattr(recipe, "require"):
        return
    try:
        recipe.require(settings)
    except (UserError, OSError):
        raise
    except Exception as error:
        raise BrokenRecipe(recipes.located(Path(recipe.__file__), error)) from error


def open_corpus(choice: CorpusChoice) -> Corpus:
    """Read a corpus without what is left out of it; prepare it first if needed, continuing an interrupted preparation.

    Raises:
        UserError: the recipe made an utterance that a manifest cannot hold; names its file, line and utterance.
    """
    folder, recipe, settings = corpus_folder(choice)
    if (folder / "corpus.json").is_file():
        return read_corpus(folder, choice.left_out, choice.fold)
    require_corpus(choice)
    try:
        corpus: Corpus = recipe.prepare(settings, folder)
    except (UserError, OSError):  # of the disk, too
        raise
    except ValidationError as error:
        name, problem = first_reason(error)
        line = recipes.line_of(Path(recipe.__file__), error)
        where = f", utterance {of!r}" if (of := _utterance_in(error)) else ""
        raise UserError(
            f"{recipe.__file__}{line}{where}: {name or error.title}: {problem}; correct the recipe."
        ) from None
    except Exception as error:
        raise BrokenRecipe(recipes.located(Path(recipe.__file__), error)) from error
    return without(corpus if choice.fold is None else in_fold(corpus, choice.fold), choice.left_out)


def _utterance_in(error: ValidationError) -> str | None:
    """Return the id of the utterance that could not be made. The error names only the field: the call has the rest."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        arguments = frame.f_locals.get("data")  # of `BaseModel.__init__(self, **data)`
        if isinstance(arguments, dict) and isinstance(arguments.get("id"), str):
            return str(arguments["id"])
    return None


def open_bank(noise: NoiseSettings) -> NoiseBank:
    """Open the noise files: the built-in bank, which is made on first use, or a folder of the user.

    Raises:
        UserError: there is no such folder, its files are unusable, or they have changed since they were first used.
    """
    chosen = noise.kinds, noise.sources, noise.leave_out
    if noise.set != "builtin":
        folder = noise_named(noise.set) if is_noise(noise.set) else Path(noise.set).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(
                f"noise.set: there is no folder {folder}; give `builtin`, a folder with one sub-folder per kind, or the name of"
                " noise that `dmlm noise make` made."
            )
        bank = NoiseBank.open(folder, *chosen)
        noise_record.check_unchanged(bank, *chosen)
        return bank
    from dmlm.synthesis.bank import build_bank, check_bank

    if not has_builtin_bank():
        build_bank(paths.noise_bank())
    check_bank(paths.noise_bank())
    return NoiseBank.open(paths.noise_bank(), *chosen)


def has_builtin_bank() -> bool:
    """Whether the built-in noise files are made, by this version."""
    from dmlm.synthesis.bank import is_built

    return is_built(paths.noise_bank())


def noise_notes(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return what a user should know of the noise folders of some cells, each sentence once."""
    chosen = dict.fromkeys(cell.noise for cell in cells if cell.noise.set != "builtin")
    return tuple(dict.fromkeys(note for noise in chosen for note in open_bank(noise).notes))


def text_path(corpus: Corpus, settings: TextSettings) -> Path:
    """Return the path of a text vocabulary: that of a pretrained model, or one learned on the training transcripts."""
    if settings.tokenizer:
        name = pretrained.digest(settings.tokenizer)[:8]
    else:
        name = f"bpe{settings.vocab_size}-{known_files.digest_of(u.text for u in corpus.split('train'))[:16]}"
    return paths.home() / "tokens" / "text" / f"{name}.json"


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
    """Return the training conditions of a cell, one per noise draw, and its test conditions by SNR in dB.

    Raises:
        UserError: as `open_bank`; or the cell is scored on split val, of which the noise folder has no part.
    """
    bank = open_bank(cell.noise)
    return (
        [Condition.of(cell.snr_db.train, draw, cell.noise, bank, "train") for draw in range(draws)],
        {snr_db: Condition.of((snr_db,), 0, cell.noise, bank, cell.split) for snr_db in cell.snr_db.test},
    )
