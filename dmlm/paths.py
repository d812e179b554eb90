"""Paths of the recipe folders (in a checkout or a wheel) and of the one folder that is written to."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
IN_CHECKOUT = (PACKAGE.parent / "pyproject.toml").is_file() and (PACKAGE.parent / "sweeps").is_dir()


def recipe_folder(kind: str) -> Path:
    """Folder of the recipes of a kind (`tokenizers`, `datasets`, `sweeps` or `analysis`)."""
    return PACKAGE.parent / kind if IN_CHECKOUT else PACKAGE / "recipe_folders" / kind


def home() -> Path:
    """Folder of corpora, noise, tokens and runs: `DMLM_HOME`, else `var/` in the checkout or working folder."""
    if folder := os.environ.get("DMLM_HOME"):
        return Path(folder).expanduser().resolve()
    return (PACKAGE.parent if IN_CHECKOUT else Path.cwd()) / "var"


def runs() -> Path:
    """Folder of all trials and grids."""
    return home() / "runs"


def noise_bank() -> Path:
    """Folder of the built-in noise files."""
    return home() / "noise" / "builtin"
