"""Paths in a sweep file are relative to that file, and paths in an override to the current folder.

A cell holds absolute paths, so that every process finds what the user named. How a path is told from a name:

* recipes and imported corpora (`corpus`, `corpus.recipe`, `tokenizers.A`): a slash, or the suffix `.py`, as in `dmlm.recipes.find`;
* `corpus.settings.folder`, where recordings lie: anything;
* `noise.set`: anything but `builtin` and the name of noise that was made;
* elsewhere (`backbone`, `text.tokenizer`, `noise.sources`, settings of recipes), where an id of the Hub has a slash too: what begins with
  `./`, `../` or `~`, and what has a slash and lies in that folder.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmlm import recipes
from dmlm.corpus.imported import is_noise, noise_named
from dmlm.errors import UserError

RELATIVE = ("./", "../", "~")


def absolute(values: Any, folder: Path, keys: Sequence[str] = ()) -> Any:
    """Return a copy of nested values in which every path is absolute.

    Args:
        values: a sweep file, or a part of it at the key path `keys`.
        folder: what relative paths are relative to.

    Raises:
        UserError: a value could be a path relative to the current folder, and is none relative to `folder`; or it could be
            a path or a name.
    """
    if isinstance(values, dict):
        return {key: absolute(value, folder, (*keys, *str(key).split("."))) for key, value in values.items()}
    if isinstance(values, list):
        return [absolute(value, folder, keys) for value in values]
    if isinstance(values, str) and _is_path(values, folder, [key for key in keys if key != "choices"]):
        return os.path.normpath(folder / os.path.expanduser(values))
    return values


def _is_path(text: str, folder: Path, keys: Sequence[str]) -> bool:
    """Whether the value of a key is a path."""
    section, last = ["", "", *keys][-2:]
    if [*keys[-3:]] == ["corpus", "settings", "folder"]:  # a bare name would be another folder in another place
        return True
    if "settings" in keys or last == "backbone" or (section, last) in (("text", "tokenizer"), ("noise", "sources")):
        if text.startswith(RELATIVE) or "/" not in text or (folder / text).exists():
            return text.startswith(RELATIVE) or "/" in text
        if Path(text).exists():
            raise UserError(
                f"{'.'.join(keys)}: {text} lies in the current folder, but paths in a sweep file are relative to it, and"
                f" {folder / text} does not exist; write the absolute path."
            )
        return False
    if section == "tokenizers" or last in ("recipe", "corpus"):
        return recipes.is_path("datasets" if "corpus" in (section, last) else "tokenizers", text)
    return (section, last) == ("noise", "set") and text != "builtin" and not _is_made(text, folder)


def _is_made(text: str, folder: Path) -> bool:
    """Whether `noise.set` names noise that was made; UserError if it could be a folder as well."""
    if is_noise(text) and (folder / text).is_dir():
        raise UserError(
            f"noise.set: {text} is the name of noise that was made, and {folder / text} is a folder; write ./{text} for the"
            f" folder, or {noise_named(text)} for the noise."
        )
    return is_noise(text)
