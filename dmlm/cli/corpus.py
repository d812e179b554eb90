"""The command `corpus check`: every fault of a corpus, with what to do about it."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from dmlm.errors import UserError, did_you_mean
from dmlm.plurals import counted

FAULTY = 2  # exit code if there is an error
MANIFEST = "manifest.jsonl"
SHOWN = 20  # faults of a rule that are printed unless all are asked for


def check(
    corpus: Annotated[
        str, typer.Argument(help="A folder with manifest.jsonl, a manifest, or a corpus recipe: NAME or NAME:PRESET.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the faults as a JSON list.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Print more than 20 faults of a rule.")] = False,
) -> None:
    """List every fault of a corpus: media, lengths, texts, splits. Each file is read to its end once. Exit code 2: errors."""
    from dmlm import processes
    from dmlm.corpus.check import check_folder, check_manifest
    from dmlm.corpus.faults import RULES

    path = _manifest(corpus)
    faults = check_folder(path.parent, processes.run) if path.name == MANIFEST else check_manifest(path, processes.run)
    if as_json:
        print(json.dumps([fault.stored() for fault in faults], indent=1, ensure_ascii=False))
    else:
        counts = Counter(fault.rule for fault in faults)
        width = max(map(len, counts), default=0)
        printed: Counter[str] = Counter()
        for fault in faults:
            rule, number = fault.rule, printed[fault.rule]
            printed[rule] += 1
            if everything or number < SHOWN:
                print(f"{RULES[rule].severity:<7}  {rule:<{width}}  {fault.place}: {fault.what}")
            elif number == SHOWN:
                print(
                    f"{RULES[rule].severity:<7}  {rule:<{width}}  and {counts[rule] - SHOWN:,} more; --all prints them"
                )
        of_clips = {fault.rule for fault in faults if fault.utterance and RULES[fault.rule].of_clips}
        for rule, count in counts.items():
            leave_out = f" Or: corpus.leave_out=[{rule}]" if rule in of_clips else ""
            print(f"\n{rule} ({count:,}): {RULES[rule].remedy}.{leave_out}")
        errors = sum(fault.is_error for fault in faults)
        print(f"\n{path}: {counted(errors, 'error')}, {counted(len(faults) - errors, 'warning')}.")
    if any(fault.is_error for fault in faults):
        raise typer.Exit(FAULTY)


def _manifest(name: str) -> Path:
    """Return the manifest of a corpus: in a folder, the file itself, or of a recipe, which is made first if needed.

    Raises:
        UserError: there is no such corpus, or the recipe has several presets.
    """
    from dmlm import recipes
    from dmlm.plan.cell import CorpusChoice
    from dmlm.sweep.parts import open_corpus

    path = Path(name).expanduser()
    if path.is_dir():
        return path / MANIFEST
    if path.is_file() and path.suffix != ".py":
        return path
    recipe, _, preset = name.partition(":")
    presets = recipes.load("datasets", recipe).PRESETS
    if not preset and len(presets) == 1:
        preset = next(iter(presets))
    if not preset:
        raise UserError(f"Corpus {recipe} has several presets ({', '.join(presets)}); write {recipe}:PRESET.")
    if preset not in presets:
        raise UserError(f"Corpus {recipe} has no preset {preset!r}; {did_you_mean(preset, presets)}.")
    return open_corpus(CorpusChoice(recipe=recipe, preset=preset)).folder / MANIFEST
