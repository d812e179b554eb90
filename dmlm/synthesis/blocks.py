"""Make a synthetic corpus in blocks: each in a fresh process, each skipped on the next run once it is done.

A speech synthesiser keeps state between sentences, so an utterance depends on what its process said before. Fixed
blocks of consecutive items, one fresh process each, make the result independent of the number of workers, of the order
in which blocks end, and of interruptions.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmlm import files, processes, progress, recipes

BLOCK_SIZE = 100
Record = dict[str, Any]


def make(
    recipe: Path, setting: str, items: Sequence[Record], folder: Path, workers_wanted: int | None = None
) -> list[Record]:
    """The records of all items, in their order.

    In each fresh process `make_block(setting, items, folder)` of the recipe is called; it writes the media of its items
    and returns one record for each: plain data, with the paths of what it wrote under `files`.

    Args:
        recipe: file of the corpus recipe
        setting: name, version and settings of the corpus as text; a block made with another one is made anew
        items: what to make, plain data
        folder: of the corpus; `blocks/block-NNNN.json` are written into it
        workers_wanted: processes at a time; by default one for each core
    """
    jobs = []
    count = 0
    for start in range(0, len(items), BLOCK_SIZE):
        block = list(items[start : start + BLOCK_SIZE])
        path = folder / "blocks" / f"block-{start // BLOCK_SIZE:04d}.json"
        key = hashlib.sha256(json.dumps([setting, block]).encode()).hexdigest()
        count += 1
        if _read(path, key, folder) is None:
            jobs.append((str(recipe), setting, block, str(folder), str(path), key))
    done = processes.run(_make_block, jobs, workers_wanted)
    for _ in progress.track(done, f"prepare {recipe.stem}", total=count, unit="block", done=count - len(jobs)):
        pass
    paths = [folder / "blocks" / f"block-{number:04d}.json" for number in range(count)]
    return [record for path in paths for record in json.loads(path.read_text("utf-8"))["records"]]


def _make_block(job: tuple[str, str, list[Record], str, str, str]) -> None:
    """One block, in its own process: media first, the block's file last."""
    recipe, setting, items, folder, path, key = job
    module = recipes.load("datasets", recipe)
    records = module.make_block(setting, items, Path(folder))
    files.write_text(Path(path), json.dumps({"key": key, "records": records}, ensure_ascii=False) + "\n")


def _read(path: Path, key: str, folder: Path) -> list[Record] | None:
    """Records of a finished block; None where it is missing, torn, made with other settings, or lacks a file."""
    try:
        block = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if block.get("key") != key:
        return None
    whole = all((folder / name).is_file() for record in block["records"] for name in record["files"])
    return block["records"] if whole else None
