"""The command `transcribe`: recordings to text with trained models. Transcripts go to standard output, the rest beside it."""

import gc
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmlm import snr
from dmlm.errors import UserError
from dmlm.plurals import counted

if TYPE_CHECKING:
    from dmlm.corpus.condition import Condition
    from dmlm.recognition.clips import Clip
    from dmlm.recognition.recogniser import Recogniser
    from dmlm.score.wer import ErrorCounts
    from dmlm.sweep.clip_readings import ClipReading

FAULTY = 2  # exit code if a recording could not be read
STDIN = Path("-")


def transcribe(
    recordings: Annotated[
        list[Path] | None,
        typer.Argument(help="Recordings of any form, folders of X.wav (X.mp4, X.png, X.txt), or - for standard input."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Folder of a trained model, or a grid: all of its models.")
    ] = "",
    lips: Annotated[Path | None, typer.Option(help="Video of the mouth, as `dmlm mouths` crops it.")] = None,
    image: Annotated[Path | None, typer.Option(help="The page that is spoken of.")] = None,
    ocr: Annotated[str | None, typer.Option(help="Text of the page, for models that read it.", metavar="TEXT")] = None,
    first_pass: Annotated[
        str | None,
        typer.Option(help="Transcript of another model, for models that choose lines by it.", metavar="TEXT"),
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help="Kind of noise to add: noise, music, babble, or several: music,babble.")
    ] = None,
    snr_db: Annotated[str | None, typer.Option("--snr", help="Its SNR in dB.", metavar="DB")] = None,
    noise_set: Annotated[Path | None, typer.Option(help="A folder with one sub-folder per kind of noise.")] = None,
    placement: Annotated[
        str | None,
        typer.Option(help="Noisy part of a sentence: second_half, random_half, whole; default: as in training."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="All models that the inputs suffice for; clean and noisy.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that is known, as a JSON list.")] = False,
) -> None:
    """Transcribe recordings with a trained model. Long ones are cut at silences. Exit code 2: some could not be read."""
    from dmlm.recognition.clips import find_clips

    if not model:
        raise UserError(
            "Say which model: --model FOLDER of a trained model, or --model GRID, such as --model quickstart."
        )
    if recordings and STDIN in recordings:
        with tempfile.NamedTemporaryFile() as file:
            file.write(sys.stdin.buffer.read())
            file.flush()
            here = [Path(file.name) if source == STDIN else source for source in recordings]
            found = find_clips(here, lips=lips, image=image, ocr=ocr)
            clips = [replace(clip, name="standard input") if clip.name == file.name else clip for clip in found]
            _run(clips, model, (noise, snr_db, noise_set, placement), first_pass, compare, as_json)
    else:
        clips = find_clips(recordings or [], lips=lips, image=image, ocr=ocr)
        _run(clips, model, (noise, snr_db, noise_set, placement), first_pass, compare, as_json)


def _run(
    clips: Sequence["Clip"],
    model: str,
    noise: tuple[str | None, str | None, Path | None, str | None],
    first_pass: str | None,
    compare: bool,
    as_json: bool,
) -> None:
    """Read each clip and print what was written; a clip that cannot be read does not stop the others."""
    models = _models(model, clips)
    from dmlm.sweep.clip_readings import read_clip

    conditions = _conditions(*noise, compare, next(iter(models.values())).description.placement)
    records: list[dict[str, object]] = []
    readings: list[ClipReading] = []
    failed: list[str] = []
    for clip in clips:
        usable = {label: one for label, one in models.items() if len(models) == 1 or not one.lacks(clip.inputs)}
        try:
            if not usable:
                raise UserError(_needed(models, clip))
            of_clip = read_clip(clip, usable, conditions, first_pass)
        except UserError as error:
            sentence = _in_words_of_the_command(str(error)).replace(str(clip.inputs.get("audio", clip.name)), clip.name)
            if len(clips) == 1:
                raise UserError(sentence) from None
            failed.append(clip.name)
            records.append({"file": clip.name, "error": sentence})
            print(f"error: {'' if clip.name in sentence else f'{clip.name}: '}{sentence}", file=sys.stderr)
            continue
        readings += of_clip
        records += [reading.record() for reading in of_clip]
        if not as_json:
            _print(clip, of_clip, alone=len(clips) == 1)
    if as_json:
        print(json.dumps(records, indent=1, ensure_ascii=False))
    elif len(clips) > 1:
        _print_rates(readings)
    if failed:
        print(
            f"error: {len(failed)} of {counted(len(clips), 'recording')} could not be read: {', '.join(failed)}",
            file=sys.stderr,
        )
        raise typer.Exit(FAULTY)


def _models(name: str, clips: Sequence["Clip"]) -> dict[str, "Recogniser"]:
    """Open the models that are meant, by label; of several, those that the inputs of some clip suffice for.

    Raises:
        UserError: there is none, or the inputs suffice for none.
    """
    with _without_collections():
        from dmlm.recognition.recogniser import Recogniser
        from dmlm.sweep.models import find_models

        loaded = [(named.label, Recogniser.load(named.folder)) for named in find_models(name)]
    opened = {label or recogniser.description.label: recogniser for label, recogniser in loaded}
    lacking = {label: min((one.lacks(clip.inputs) for clip in clips), key=len) for label, one in opened.items()}
    if all(lacking.values()):
        raise UserError(
            _needed(opened, min(clips, key=lambda clip: len(next(iter(opened.values())).lacks(clip.inputs))))
        )
    for label, missing in lacking.items():
        if missing:
            print(f"{label} is left out: it needs {' and '.join(map(_option, missing))} too.", file=sys.stderr)
    return {label: recogniser for label, recogniser in opened.items() if not lacking[label]}


def _needed(models: dict[str, "Recogniser"], clip: "Clip") -> str:
    """Return a sentence on what the first model lacks to read a clip."""
    label, first = next(iter(models.items()))
    missing = " and ".join(map(_option, first.lacks(clip.inputs)))
    return f"{label} reads {' and '.join(first.needs)}; give {missing}."


@contextmanager
def _without_collections() -> Iterator[None]:
    """Collect no garbage: of the seconds that PyTorch and transformers take to be imported, it takes a fifth, for nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _conditions(
    kinds: str | None, level: str | None, folder: Path | None, placement: str | None, compare: bool, trained: str
) -> list["Condition"]:
    """Return how the recordings are heard.

    Raises:
        UserError: an SNR without a noise or a noise without an SNR, or one of them is wrong.
    """
    from dmlm.corpus.condition import CLEAN
    from dmlm.sweep.noisy_clip import noise_condition

    if level is None and kinds is None and folder is None and placement is None:
        return [CLEAN]
    if level is None or kinds is None:
        raise UserError("Noise has a kind and a level; give both, such as --noise babble --snr 0.")
    try:
        snr_db = snr.parse(level)
    except ValueError as error:
        raise UserError(f"--snr {level}: {error}.") from None
    if not snr.noisy(snr_db):
        raise UserError("--snr clean is without noise; leave --noise and --snr out.")
    noisy = noise_condition(kinds, snr_db, folder, placement or trained)
    return [CLEAN, noisy] if compare else [noisy]


def _option(name: str) -> str:
    return "a recording" if name == "audio" else f"--{name} {'TEXT' if name == 'ocr' else 'FILE'}"


def _in_words_of_the_command(sentence: str) -> str:
    """Name options instead of arguments of the Python interface."""
    for name in ("audio", "lips", "image", "ocr"):
        sentence = sentence.replace(f"give {name}=...", f"give {_option(name)}")
        sentence = sentence.replace(f"leave {name} out", f"leave --{name} out")
    return sentence.replace("leave first_pass out", "leave --first-pass out").replace("first_pass=", "--first-pass ")


def _print(clip: "Clip", readings: Sequence["ClipReading"], alone: bool) -> None:
    """Print the transcripts of a clip to standard output, and what is to be known of them to standard error."""
    first, last = readings[0], readings[-1]
    if len(readings) == 1:
        written = first.transcript
        facts = [*_facts(first), *([f"WER {100 * first.errors.wer:.1f} %"] if first.errors else [])]
        if written.audio_s:
            factor = f"real-time factor {written.real_time_factor:.2f}"
            facts.append(f"{written.audio_s:.1f} s read in {written.seconds:.2f} s, {factor}")
        print(f"{clip.name}: {'; '.join([*facts, *_marks(first)]) or 'read'}", file=sys.stderr)
        print(written.text if alone else f"{clip.name}: {written.text}", flush=True)
        return
    if facts := _facts(last):  # the noisy one, if any is
        print(f"{clip.name}: {'; '.join(facts)}", file=sys.stderr)
    print(f"{clip.name}  (said: {clip.reference})" if clip.reference else clip.name)
    rows = [
        (
            snr.with_unit(reading.condition.snr_db or 0.0),
            reading.model,
            f"{100 * reading.errors.wer:.0f} %" if reading.errors else "",
            " ".join([reading.transcript.text, *(f"[{mark}]" for mark in _marks(reading))]),
        )
        for reading in readings
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for level, label, rate, text in rows:
        print(f"  {level:<{widths[0]}}  {label:<{widths[1]}}  {rate:>{widths[2]}}  {text}".rstrip(), flush=True)


def _facts(reading: "ClipReading") -> list[str]:
    """Return how a recording was heard and cut."""
    pieces, facts = reading.transcript.pieces, []
    if not reading.condition.clean:
        kinds = "/".join(reading.condition.noise.kinds)
        facts.append(f"{kinds} at {reading.snr_db_measured:z.2f} dB SNR, measured")
    if len(pieces) > 1:
        facts.append(f"cut into {counted(sum(piece.speech for piece in pieces), 'piece')}")
    if silent_s := sum(piece.end_s - piece.start_s for piece in pieces if not piece.speech):
        facts.append(f"{silent_s:.1f} s without speech not read")
    if forced := [f"{piece.end_s:.1f}" for piece in pieces if piece.ends_in_speech]:
        facts.append(f"without a silence, so cut at the quietest place: at {', '.join(forced)} s")
    return facts


def _marks(reading: "ClipReading") -> list[str]:
    """Return what is wrong with a transcript."""
    marks = {"cut: it has as many tokens as it may have": reading.transcript.cut}
    marks["stopped: it repeated itself"] = reading.transcript.looped
    return [mark for mark, applies in marks.items() if applies]


def _print_rates(readings: Sequence["ClipReading"]) -> None:
    """Print the WER over all recordings with a reference, by model and condition."""
    from dmlm.score.wer import pool

    groups: dict[tuple[str, str], list[ErrorCounts]] = {}
    for reading in readings:
        if reading.errors:
            key = reading.model, snr.with_unit(reading.condition.snr_db or 0.0)
            groups.setdefault(key, []).append(reading.errors)
    for (label, level), of_group in groups.items():
        rate = f"WER {100 * pool(of_group).wer:.1f} %"
        print(f"{label}, {level}: {rate} over {counted(len(of_group), 'recording')}", file=sys.stderr)
