"""Where the recordings of a corpus recipe come from: licence, cost, how to get them, and in which folder they are looked for."""

import os
from dataclasses import dataclass
from pathlib import Path

from dmlm import paths
from dmlm.errors import UserError


def recordings() -> Path:
    """Return the folder that has a sub-folder for each set of recordings: `DMLM_RECORDINGS`, or `recordings` of the home."""
    return Path(os.environ.get("DMLM_RECORDINGS") or paths.home() / "recordings").expanduser()


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Recordings that others publish. Nothing is downloaded: a user reads this, and then gets them as `get` says."""

    name: str  # of the sub-folder that they are looked for in, such as `grid`
    title: str
    licence: str
    cost: str  # megabytes, and an account or a fee if there is one
    get: str  # commands, or where to go
    citation: str

    @property
    def sentence(self) -> str:
        """Licence, cost and how to get it, on one line."""
        return f"{self.title}; licence: {self.licence}; {self.cost}; {self.get}"

    @property
    def lines(self) -> list[str]:
        """The same and more, a line each, for those who ask what a recipe needs."""
        places = f"{recordings() / self.name} (DMLM_RECORDINGS names the folder above), or settings.folder"
        facts = {"licence": self.licence, "cost": self.cost, "get": self.get, "folder": places, "cite": self.citation}
        return [self.title, *(f"{name}: {value}" for name, value in facts.items())]

    def folder(self, chosen: Path | None = None) -> Path:
        """Return the folder of the recordings: the one chosen, or NAME in `DMLM_RECORDINGS`, by default `recordings` of the home.

        Raises:
            UserError: it does not exist; says how to get the recordings.
        """
        folder = chosen.expanduser() if chosen else recordings() / self.name
        if folder.is_dir():
            return folder
        raise UserError(f"There is no folder {folder} with the recordings. {self.sentence}.")

    def packaged(self, inside: str, chosen: Path | None = None) -> Path:
        """Return a folder `inside` of what Debian packages hold: as installed, or as `dpkg -x X.deb FOLDER` unpacks them.

        Raises:
            UserError: there is none; says how to get the recordings.
        """
        root = Path("/") if chosen is None and (Path("/") / inside).is_dir() else self.folder(chosen)
        if (root / inside).is_dir():
            return root / inside
        raise UserError(f"{root} holds no folder {inside}. {self.sentence}.")
