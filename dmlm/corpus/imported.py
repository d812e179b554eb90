"""Where imported corpora and noise are: by name among the corpora of the home folder, or anywhere by the path of their folder."""

import re
from pathlib import Path

from dmlm import paths
from dmlm.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
OF_A_RECIPE = re.compile(r".*-[0-9a-f]{8}")  # such as three_equations-tiny-1a2b3c4d


def imported_folder(name: str) -> Path | None:
    """Return the folder of an imported corpus, by its name or its path; None if there is none of that name.

    Raises:
        UserError: a folder is named that holds no corpus.
    """
    folder = Path(name).expanduser() if "/" in name else corpus_named(name)
    if (folder / "corpus.json").is_file():
        return folder
    if folder.is_dir() and "/" in name:
        raise UserError(f"{folder} is a folder, and no prepared corpus; run: dmlm corpus import {folder} --to NAME")
    return None


def corpus_named(name: str) -> Path:
    """Return the folder of the corpus of this name, whether there is one or not."""
    return paths.home() / "corpora" / name


def noise_named(name: str) -> Path:
    """Return the folder of the noise of this name, whether there is one or not."""
    return paths.home() / "noise" / name


def is_noise(name: str) -> bool:
    """Whether noise of this name was made; anything else that a grid names is a folder."""
    return bool(NAME.fullmatch(name)) and (noise_named(name) / "noise.json").is_file()


def names() -> list[str]:
    """Return the names of all imported corpora."""
    found = sorted((paths.home() / "corpora").glob("*/corpus.json"))
    return [path.parent.name for path in found if not OF_A_RECIPE.fullmatch(path.parent.name)]
