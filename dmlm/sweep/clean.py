"""What no grid refers to any more: corpora, tokens and trials of the home folder, found and removed.

A grid is a folder of `runs` with `grid.json`, or with `search.csv` while its search goes on. What it refers to stays, and so
does what a trial at work needs, what was written within the last hour, and every link, wherever it leads.
"""

import csv
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from dmlm import paths
from dmlm.corpus.imported import OF_A_RECIPE
from dmlm.engines.lease import Busy, Leases, live
from dmlm.errors import UserError
from dmlm.importing.build import RECORDS
from dmlm.plan.cell import CorpusChoice
from dmlm.results.folders import TrialFolder, trial_folders
from dmlm.results.grid import FILE, read_grid
from dmlm.results.json_files import read_object_if_written
from dmlm.sweep.parts import corpus_folder

SETTLED_S = 3600.0  # what was written less than this ago may belong to a run that has not written its grid yet
TRASH = ".trash"  # folder of what is being removed, in the home folder


@dataclass(frozen=True)
class Unused:
    """A folder that no grid refers to."""

    path: Path
    bytes: int
    written_s: float  # when anything in it was last written, in seconds since 1970
    settled: bool = True  # that is more than an hour ago, or its removal had begun


@dataclass
class InUse:
    """What grids, searches and trials at work refer to."""

    trials: set[Path] = field(default_factory=set)
    corpora: set[Path] = field(default_factory=set)
    corpus_digests: set[str] = field(default_factory=set)
    fingerprints: set[str] = field(default_factory=set)  # of encoders
    waiting: set[str] = field(default_factory=set)  # recipes of trials whose fingerprints are not known yet

    def trial(self, trial: TrialFolder) -> None:
        """Add a trial, and what it is trained on."""
        spec = trial.spec_if_written
        self.trials.add(trial.path.resolve())
        self.corpus_digests.add(spec.get("corpus", ""))
        self.fingerprints.update(spec.get("tokenizers", {}).values())


def unused() -> list[Unused]:
    """Find what can be removed: what no grid refers to and was not written within the last hour.

    Raises:
        UserError: as of `unreferenced`.
    """
    return [one for one in unreferenced() if one.settled]


def unreferenced() -> list[Unused]:
    """Find what no grid refers to: corpora, then tokens, then trials, then what an interrupted removal left.

    Raises:
        UserError: a grid cannot be read, so that nothing is known about what it refers to.
    """
    home, in_use = paths.home(), _in_use()
    found = [
        *(folder for folder in _folders(home / "corpora") if not _corpus_in_use(folder, in_use)),
        *(folder for folder in _folders(home / "tokens") if not _tokens_in_use(folder, in_use)),
        *(folder for folder in _folders(paths.runs() / "trials") if folder.resolve() not in in_use.trials),
    ]
    settled_s = time.time() - SETTLED_S
    return [*(_measure(path, settled_s) for path in found), *(_measure(path) for path in _folders(home / TRASH))]


def remove(found: list[Unused]) -> None:
    """Remove folders that `unused` found, unless something refers to them by now.

    A folder is moved aside at once and then deleted, so that an interruption leaves none half there.

    Raises:
        UserError: a run is preparing, or a folder cannot be removed.
    """
    home = paths.home()
    try:
        with Leases().hold(home / "prepare.lease"):
            still = {one.path for one in unused()}
            for path in (one.path for one in found if one.path in still):
                if path.parent != home / TRASH:
                    (home / TRASH).mkdir(exist_ok=True)
                    path = path.rename(home / TRASH / f"{path.name}.{secrets.token_hex(4)}")
                shutil.rmtree(path)
    except Busy as busy:
        raise UserError(f"{busy}, which prepares a run; nothing is removed meanwhile, try again later.") from None
    except OSError as error:
        raise UserError(f"{error.filename} cannot be removed ({error.strerror}); mend that and try again.") from None
    if (home / TRASH).is_dir() and not any((home / TRASH).iterdir()):
        (home / TRASH).rmdir()


def _in_use() -> InUse:
    """Gather what every grid, every search and every trial at work refers to."""
    in_use, runs = InUse(), paths.runs()
    # not by a pattern, which passes over a folder that cannot be read
    files = {folder: os.listdir(folder) for folder in (runs.iterdir() if runs.is_dir() else ()) if folder.is_dir()}
    for folder in (folder for folder, names in files.items() if FILE in names):
        for cell in read_grid(folder).cells:
            in_use.trial(cell.trial)
            in_use.corpus_digests.add(cell.corpus.digest)
            stems = {Path(recipe).stem for recipe in cell.tokenizers.values()}
            in_use.waiting |= set() if cell.trial.spec_if_written else stems
            try:
                in_use.corpora.add(corpus_folder(CorpusChoice(**cell.settings.get("corpus", {})))[0])
            except (UserError, ValidationError):  # its recipe is gone; the digest names the corpus too
                continue
    for path in (folder / "search.csv" for folder, names in files.items() if "search.csv" in names):
        for row in csv.DictReader(path.read_text("utf-8").splitlines()):
            if not row.get("trial"):
                raise UserError(f"{path} is damaged, and names what must stay; restore it, or remove its folder.")
            in_use.trial(TrialFolder(path.parent / row["trial"]))
    for trial in trial_folders(runs):
        if any(map(live, trial.leases())):
            in_use.trial(trial)
    return in_use


def _corpus_in_use(folder: Path, in_use: InUse) -> bool:
    """Whether a corpus is used; one that no recipe made always counts as used, since its source may be gone."""
    if not OF_A_RECIPE.fullmatch(folder.name) and any((folder / name).is_file() for name in (RECORDS, "corpus.json")):
        return True
    card = read_object_if_written(folder / "corpus.json") or {}
    return folder in in_use.corpora or card.get("digest") in in_use.corpus_digests


def _tokens_in_use(folder: Path, in_use: InUse) -> bool:
    """Whether a folder of `tokens` is used, or is not RECIPE-fingerprint8: codebooks, networks and text vocabularies stay.

    Learned again, they may be other ones.
    """
    match = re.fullmatch(r"(.+)-([0-9a-f]{8})", folder.name)
    if match is None:
        return True
    recipe, digest = match.groups()
    return recipe in in_use.waiting or any(fingerprint.startswith(digest) for fingerprint in in_use.fingerprints)


def _folders(parent: Path) -> Iterator[Path]:
    """Yield the folders in a folder of the home folder; neither links nor anything behind a link out of it."""
    if parent.resolve().is_relative_to(paths.home().resolve()):
        yield from sorted(path for path in parent.glob("*") if path.is_dir() and not path.is_symlink())


def _measure(folder: Path, settled_s: float = math.inf) -> Unused:
    """Return the size of a folder and when it was last written, without following links."""
    stats = [os.lstat(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in (*names, "")]
    written_s = max(stat.st_mtime for stat in stats)
    return Unused(folder, sum(stat.st_size for stat in stats), written_s, written_s < settled_s)
