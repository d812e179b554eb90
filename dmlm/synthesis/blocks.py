"""Make a synthetic corpus in blocks. Each block runs in a fresh process; finished blocks are skipped on the next run.

A speech synthesiser keeps state between sentences, so an utterance depends on what its process spoke before. Fixed
blocks of consecutive items in fresh processes make the result independent of the number of workers, of the order in
which blocks finish, and of interruptions.
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
    recipe: Path, card: str, items: Sequence[Record], folder: Path, workers_wanted: int | None = None
) -> list[Record]:
    """Make all items and return their records, in the order of the items.

    Each process calls `make_block(card, items, folder)` of the recipe. It writes the media of its items and returns one
    record per item: plain data, with the paths of the written files, relative to the folder, under `files`.

    Args:
        recipe: file of the corpus recipe
        card: name, version and settings of the corpus as JSON; blocks made with another card are made again
        items: what to make, plain data
        folder: of the corpus; also gets the records, in `blocks/block-NNNN.json`
        workers_wanted: number of processes; by default one per core
    """
    jobs = []
    count = 0
    for start in range(0, len(items), BLOCK_SIZE):
        block = list(items[start : start + BLOCK_SIZE])
        path = folder / "blocks" / f"block-{start // BLOCK_SIZE:04d}.json"
        key = hashlib.sha256(json.dumps([card, block]).encode()).hexdigest()
        count += 1
        if _read(path, key, folder) is None:
            jobs.append((str(recipe), card, block, str(folder), str(path), key))
    done = processes.run(_make_block, jobs, workers_wanted)
    for _ in progress.track(done, f"prepare {recipe.stem}", total=count, unit="block", done=count - len(jobs)):
        pass
    paths = [folder / "blocks" / f"block-{number:04d}.json" for number in range(count)]
    return [record for path in paths for record in json.loads(path.read_text("utf-8"))["records"]]


def _make_block(job: tuple[str, str, list[Record], str, str, str]) -> None:
    """Make one block: media first, the file of records last."""
    recipe, card, items, folder, path, key = job
    module = recipes.load("datasets", recipe)
    records = module.make_block(card, items, Path(folder))
    files.write_text(Path(path), json.dumps({"key": key, "records": records}, ensure_ascii=False) + "\n")


def _read(path: Path, key: str, folder: Path) -> list[Record] | None:
    """Read the records of a finished block; None if it is missing, damaged, made with another card, or lacks a file."""
    try:
        block = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if block.get("key") != key:
        return None
    is_complete = all((folder / name).is_file() for record in block["records"] for name in record["files"])
    return block["records"] if is_complete else None
