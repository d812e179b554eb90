"""The commands `corpus import`, from recordings to a corpus, and `corpus check`, every fault of one."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmlm.errors import UserError, did_you_mean
from dmlm.plurals import counted

if TYPE_CHECKING:
    from dmlm.corpus.manifest import Corpus

FAULTY = 2  # exit code if there is an error
MANIFEST = "manifest.jsonl"
SHOWN = 20  # faults of a rule that are printed unless all are asked for


SPLITTING, READING, MAKING = "Splits", "If the source is not read as it should be", "What is made of it"


def import_corpus(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of X.wav + X.txt (+ X.mp4, X.png), a table (JSONL, CSV, TSV), a Kaldi data folder, cuts of lhotse,"
            " a Hugging Face dataset: its folder or hf:ID."
        ),
    ],
    to: Annotated[str, typer.Option(help="Name of the corpus; a grid reads it by `corpus: NAME`.")],
    licence: Annotated[
        str | None, typer.Option(help="Licence of the recordings; it is named with every result.")
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Rules, with commas between; clips that break one are left out, counted."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Make a corpus of this name again.")] = False,
    split: Annotated[
        str | None,
        typer.Option(help="given, speaker (no speaker in two) or id.", rich_help_panel=SPLITTING),
    ] = None,
    test: Annotated[
        float, typer.Option(help="Share of the clips for the test, if not given.", rich_help_panel=SPLITTING)
    ] = 0.2,
    val: Annotated[float, typer.Option(help="Share of the clips for validation.", rich_help_panel=SPLITTING)] = 0.1,
    folds: Annotated[
        int | None,
        typer.Option(help="Folds that take turns as the test: corpus.fold=0, 1, ...", rich_help_panel=SPLITTING),
    ] = None,
    crop: Annotated[
        str | None, typer.Option(help="The videos show faces: keep the mouth, or the face.", rich_help_panel=MAKING)
    ] = None,
    landmarks: Annotated[
        str, typer.Option(help="Face detector of --crop: mediapipe or dlib.", rich_help_panel=MAKING)
    ] = "mediapipe",
    spans: Annotated[
        str,
        typer.Option(help="Sentence spans, if not given: speech (voice activity) or whole.", rich_help_panel=MAKING),
    ] = "speech",
    language: Annotated[
        str | None, typer.Option(help="Language code of the transcripts.", rich_help_panel=MAKING)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one per core.", rich_help_panel=MAKING)
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="folder, table, kaldi, lhotse or hugging_face.", rich_help_panel=READING)
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=NAME: the column NAME of a table holds FIELD.", rich_help_panel=READING),
    ] = None,
    media: Annotated[
        Path | None, typer.Option(help="Folder that relative paths in the source start from.", rich_help_panel=READING)
    ] = None,
) -> None:
    """Make a corpus of your recordings, and check it. Interrupted, the same command goes on.

    Mostly, --to is all that is needed: dmlm corpus import recordings --to mine
    """
    from dmlm.corpus.manifest import read_corpus
    from dmlm.corpus.mouth_roi import REGIONS
    from dmlm.engines.lease import Leases
    from dmlm.importing import build
    from dmlm.importing.settings import ImportSettings
    from dmlm.importing.source import Reading, open_source
    from dmlm.plan.cell import validated

    columns = dict(_pair(text) for text in column or ())
    if crop and crop not in REGIONS:
        raise UserError(f"--crop {crop}: {did_you_mean(crop, REGIONS)}.")
    lips = {"lips": crop} if crop else {}
    rules = tuple(rule.strip() for text in leave_out or () for rule in text.split(",") if rule.strip())
    choice = {"split": split, "test": test, "val": val, "folds": folds, "spans": spans, "landmarks": landmarks}
    settings = validated(ImportSettings, {**choice, **lips, "leave_out": rules}, "dmlm corpus import")
    folder = _new_folder(to)
    if media and not media.expanduser().is_dir():
        raise UserError(f"--media {media}: there is no such folder.")
    start = media.expanduser().absolute() if media else None
    extracted = folder / "source"  # of one import only, since it may be large
    with Leases().hold_when_free(folder.with_name(f"{to}.lease"), print):
        try:
            found = open_source(source, Reading(columns, start, extracted), form)
            print(f"{source}: {counted(len(found.clips), 'clip')}, read as {found.form}")
            if found.unread:
                print(f"columns that are not read: {', '.join(found.unread)} (--column FIELD=NAME says what one holds)")
            if build.is_made(found.clips, folder, settings, found.faults):
                corpus = read_corpus(folder)
            elif (folder / "corpus.json").is_file() and not replace:
                raise UserError(
                    f"Corpus {to} exists, made of other clips, of files that have changed since, or with other settings; give"
                    " another name, or --replace (models that were trained on the old one keep their results)."
                )
            else:
                card = {"name": to, "version": "1", "licence": licence or found.card.get("licence") or "not stated"}
                card |= {"source": source, "form": found.form} | ({"language": language} if language else {})
                corpus = build.make_corpus(found.clips, folder, card, settings, found.faults, workers)
        finally:
            if (folder / "corpus.json").is_file():
                shutil.rmtree(extracted, ignore_errors=True)
    print("\n".join(build.describe(corpus)))
    errors = _report(folder / MANIFEST)
    if errors:
        raise typer.Exit(FAULTY)
    print(f"\nA grid reads it by `corpus: {to}`, for instance: {_grid_command(to, corpus)}")


def _grid_command(name: str, corpus: "Corpus") -> str:
    """Return the command of a first grid over a corpus: of what it has, and over its folds."""
    has = [kind for kind in ("lips", "image") if any(getattr(u, kind) for u in corpus.utterances)]
    part = {"lips": "lips", "image": "picture"}[has[0]] if has else "audio"
    folds = f" 'axes.corpus.fold={list(range(corpus.card['folds']))}'" if corpus.card.get("folds") else ""
    lacking = " corpus.lacking=empty" if has and any(getattr(u, has[0]) is None for u in corpus.utterances) else ""
    return f"dmlm grid run own:{part} name={name} corpus={name}{folds}{lacking}"


def _pair(text: str) -> tuple[str, str]:
    field, sign, name = text.partition("=")
    if not sign or not name:
        raise UserError(f"--column {text!r} must read FIELD=NAME, for example --column text=sentence.")
    return field, name


def _new_folder(name: str) -> Path:
    """Return the folder of a corpus to import.

    Raises:
        UserError: the name is none that a corpus may have.
    """
    from dmlm import recipes
    from dmlm.corpus.imported import NAME, OF_A_RECIPE, corpus_named

    if not NAME.fullmatch(name) or OF_A_RECIPE.fullmatch(name) or len(name) > 100:
        raise UserError(
            f"--to {name}: a corpus cannot be called so; use letters, digits, `_`, `-` and `.`, such as mine."
        )
    if name in recipes.names("datasets"):
        raise UserError(f"--to {name}: this is the name of a corpus recipe; choose another one.")
    return corpus_named(name)


def check(
    corpus: Annotated[
        str,
        typer.Argument(
            help="An imported corpus, a folder with manifest.jsonl, a manifest, or a corpus recipe: NAME or NAME:PRESET."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the faults as a JSON list.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Print more than 20 faults of a rule.")] = False,
) -> None:
    """List every fault of a corpus: media, lengths, texts, splits. Each file is read to its end once. Exit code 2: errors."""
    raise typer.Exit(FAULTY if _report(manifest_of(corpus), as_json, everything) else 0)


def _report(path: Path, as_json: bool = False, everything: bool = False) -> int:
    """Print the faults of a corpus; return the number of errors."""
    from dmlm import processes
    from dmlm.corpus.check import check_folder, check_manifest
    from dmlm.corpus.faults import RULES

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
    return sum(fault.is_error for fault in faults)


def manifest_of(name: str) -> Path:
    """Return the manifest of a corpus: in a folder, the file itself, an imported one, or of a recipe, made first if needed.

    Raises:
        UserError: there is no such corpus, or the recipe has several presets.
    """
    from dmlm.plan.cell import CorpusChoice
    from dmlm.sweep.parts import open_corpus

    path = Path(name).expanduser()
    if path.is_dir() and (path / MANIFEST).is_file():
        return path / MANIFEST
    if path.is_file() and path.suffix != ".py":
        return path
    recipe, _, preset = name.partition(":")
    return open_corpus(CorpusChoice(recipe=recipe, preset=preset)).folder / MANIFEST
