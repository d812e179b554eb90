"""The command `clean`: what no grid refers to any more, and its removal."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dmlm.plurals import counted

if TYPE_CHECKING:
    from dmlm.sweep.clean import Unused


def clean(
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is listed.")] = False,
) -> None:
    """List the corpora, tokens and trials of the home folder that no grid refers to; with --remove, remove them."""
    from dmlm import paths
    from dmlm.sweep import clean as cleaning

    home, unreferenced = paths.home(), cleaning.unreferenced()
    found, recent = ([one for one in unreferenced if one.settled == settled] for settled in (True, False))
    for one in found:
        written = time.strftime("%Y-%m-%d", time.localtime(one.written_s))
        print(f"{one.bytes / 1e6:>10,.1f} MB  last written {written}  {one.path.relative_to(home)}")
    if recent:
        print(f"left alone: {_size(recent)}, because a run may need what was written within the last hour")
    total = f"{_size(found)}{', older,' if recent else ','} that no grid in {home} refers to"
    if remove and found:
        cleaning.remove(found)
        print(f"removed {total}")
    else:
        print(total + ("; to remove them: dmlm clean --remove" if found else ""))


def _size(folders: "Sequence[Unused]") -> str:
    return f"{counted(len(folders), 'folder')}, {sum(one.bytes for one in folders) / 1e6:,.1f} MB"
