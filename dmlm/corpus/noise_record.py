"""The record of what a noise folder held when it was first used, so that a later change is seen.

noise/known/NAME-hash8.json   folder, kinds, sources, leave_out; part and SHA-256 of each file, by relative path
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dmlm import files, known_files, paths
from dmlm.corpus.noise_files import NoiseBank, named
from dmlm.errors import UserError


def check_unchanged(bank: NoiseBank, kinds: Sequence[str], sources: str, leave_out: Sequence[str]) -> None:
    """Compare a noise bank with its record; on the first use, write that.

    Raises:
        UserError: files were replaced, lost or added, or are of other parts; all are named.
    """
    chosen = {"folder": str(bank.folder), "kinds": [*kinds], "sources": sources, "leave_out": sorted(leave_out)}
    name = f"{bank.folder.name}-{known_files.digest_of([json.dumps(chosen)])[:8]}.json"
    path = paths.home() / "noise" / "known" / name
    held = {
        file.path.relative_to(bank.folder).as_posix(): {"part": part, "sha256": file.digest}
        for part, of_kinds in bank.files.items()
        for of_kind in of_kinds.values()
        for file in of_kind
    }
    if not path.is_file():
        files.write_text(path, json.dumps({**chosen, "files": held}, indent=1, ensure_ascii=False) + "\n")
        return
    try:
        before = json.loads(path.read_bytes())["files"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; remove it to take {bank.folder} as it is now.") from None
    if before != held:
        raise UserError(
            f"Noise folder {bank.folder} has changed since it was first used: {named(_changes(before, held))}. Restore"
            f" it, or remove {path} to take it as it is now; what was trained or tested with other noise is then made anew."
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return each file that differs, and how; files that are only of another part follow from those, if there are any."""
    lost = [f"{name} (lost)" for name in before if name not in now]
    added = [f"{name} (added)" for name in now if name not in before]
    both = [name for name in before if name in now]
    replaced = [f"{name} (replaced)" for name in both if before[name]["sha256"] != now[name]["sha256"]]
    moved = [
        f"{name} (in {now[name]['part']} instead of {before[name]['part']})"
        for name in both
        if before[name] != now[name]
    ]
    return sorted(lost + added + replaced) or sorted(moved)
