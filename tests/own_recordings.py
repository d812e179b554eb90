"""A few small recordings, and the same ones in every form that an import reads; and an import of them."""

import csv
import json
from pathlib import Path
from typing import Any

import av
import films
import numpy as np
import soundfile
from PIL import Image
from typer.testing import CliRunner

from dmlm.cli.main import app
from dmlm.corpus.imported import corpus_named
from dmlm.corpus.manifest import Corpus, read_corpus

RATE_HZ = 16_000
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
DMLM = "from dmlm.cli.main import main; main()"  # the command, as a program of Python
MORE = ("lips", "image", "ocr", "speaker", "category", "split")


def tone(number: int, seconds: float = 0.4, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Float samples whose pitch and loudness differ by number; they are those of a 16-bit file."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    swell = 0.2 + 0.6 * np.abs(np.sin(3 * time_s + number))
    return np.round(swell * np.sin(2 * np.pi * (180 + 37 * number) * time_s) * 32_767) / 32_768


def write_folder(folder: Path, count: int = 12) -> list[dict[str, str]]:
    """Write X.wav and X.txt for a number of clips; return them as rows, whose paths start from the folder."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        name = f"clip-{number:02}"
        soundfile.write(folder / f"{name}.wav", tone(number), RATE_HZ, "PCM_16")
        text = f"{WORDS[number % 12]} of {WORDS[(number + 1) % 12]}"
        (folder / f"{name}.txt").write_text(f"{text}\n")
        rows.append({"id": name, "text": text, "audio": f"{name}.wav"})
    return rows


def with_more(folder: Path, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Give the clips of a folder videos, pictures and all that a clip can have."""
    for number, row in enumerate(rows):
        films.write(folder / f"{row['id']}.mp4", 10, 25)
        Image.new("RGB", (40, 20), (20 * number, 40, 90)).save(folder / f"{row['id']}.png")
        row |= {
            "lips": f"{row['id']}.mp4",
            "image": f"{row['id']}.png",
            "ocr": f"page {number}",
            "speaker": f"s{number % 4}",
        }
        row |= {"category": "odd" if number % 2 else "even", "split": ("train", "train", "val", "test")[number % 4]}
    return rows


def imported(source: object, *options: str, to: str = "mine") -> Corpus:
    """Import a source by the command, and return the corpus; spans are whole clips unless the options say otherwise."""
    spans = () if "--spans" in options else ("--spans", "whole")
    result = CliRunner().invoke(app, ["corpus", "import", str(source), "--to", to, *spans, *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return read_corpus(corpus_named(to))


def write_jsonl(path: Path, rows: list[dict[str, str]], media: Path) -> Path:
    """Write a table of JSON lines; like in all these forms, its paths are absolute."""
    path.write_text("".join(json.dumps(_absolute(row, media)) + "\n" for row in rows))
    return path


def write_csv(path: Path, rows: list[dict[str, str]], media: Path) -> Path:
    """Write a table of text: CSV, or TSV by its suffix."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(_absolute(row, media) for row in rows)
    return path


def write_kaldi(folder: Path, rows: list[dict[str, str]], media: Path) -> Path:
    """Write a Kaldi data folder; half of the recordings are decoded by a pipe."""
    folder.mkdir(parents=True)
    files = {"text": "text", "utt2spk": "speaker", "lips.scp": "lips", "image.scp": "image", "ocr": "ocr"}
    files |= {"utt2category": "category", "utt2split": "split"}
    rows = [_absolute(row, media) for row in rows]
    for name, field in files.items():
        if field in rows[0]:
            (folder / name).write_text("".join(f"{row['id']} {row[field]}\n" for row in rows))
    pipes = ("{}", "flac -c -d -s '{}' |", "sox {} -t wav -r 16k - |")
    recordings = [(row["id"], pipes[number % 3].format(row["audio"])) for number, row in enumerate(rows)]
    (folder / "wav.scp").write_text("".join(f"{name} {pipe}\n" for name, pipe in recordings))
    return folder


def write_cuts(path: Path, rows: list[dict[str, str]], media: Path) -> Path:
    """Write a CutSet of lhotse; needs the package."""
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    cuts = []
    for row in (_absolute(row, media) for row in rows):
        recording = Recording.from_file(row["audio"], recording_id=row["id"])
        said = {"start": 0.0, "duration": recording.duration, "text": row["text"], "speaker": row.get("speaker")}
        supervision = SupervisionSegment(row["id"], row["id"], **said)
        custom = {name: row[name] for name in row if name in MORE and name != "speaker"} or None
        cuts.append(MonoCut(row["id"], 0.0, recording.duration, 0, [supervision], recording=recording, custom=custom))
    CutSet.from_cuts(cuts).to_file(path)
    return path


def write_dataset(
    folder: Path, rows: list[dict[str, str]], media: Path, form: str = "disk", embedded: bool = True
) -> Path:
    """Write a dataset of Hugging Face, as `save_to_disk` does or as Parquet; needs the package."""
    import datasets

    held = {"audio": datasets.Audio(decode=False), "image": datasets.Image(decode=False)}
    rows = [dict(row, audio=_held(media / row["audio"], embedded)) for row in rows]
    rows = [row | ({"image": _held(media / row["image"], embedded)} if "image" in row else {}) for row in rows]
    rows = [row | ({"lips": str(media / row["lips"])} if "lips" in row else {}) for row in rows]
    features = {name: held.get(name, datasets.Value("string")) for name in rows[0] if name != "split"}
    splits = {"dev": "validation", "val": "validation"}
    parts: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        part = row.pop("split", "train")
        parts.setdefault(splits.get(part, part), []).append(row)
    made = {name: _with_licence(datasets.Dataset.from_list(part), features) for name, part in parts.items()}
    if form == "parquet":
        folder.mkdir(parents=True)
        for name, dataset in made.items():
            dataset.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))
    elif len(made) == 1:
        made["train"].save_to_disk(str(folder))
    else:
        datasets.DatasetDict(made).save_to_disk(str(folder))
    return folder


def _with_licence(dataset: Any, features: dict[str, Any]) -> Any:
    """Cast columns to files; written through `features`, they would need a decoder."""
    import datasets

    dataset = dataset.cast(datasets.Features(features))
    dataset.info.license = "CC-BY-4.0"
    return dataset


def _held(path: Path, embedded: bool) -> dict:
    return {"bytes": path.read_bytes(), "path": path.name} if embedded else {"bytes": None, "path": str(path)}


def _absolute(row: dict[str, str], media: Path) -> dict[str, str]:
    return {name: str(media / value) if name in ("audio", "lips", "image") else value for name, value in row.items()}


FORMS = {  # each with what writes rows in it to a path: (path, rows, folder of their media)
    "jsonl": lambda path, *of: write_jsonl(path.with_suffix(".jsonl"), *of),
    "csv": lambda path, *of: write_csv(path.with_suffix(".csv"), *of),
    "tsv": lambda path, *of: write_csv(path.with_suffix(".tsv"), *of),
    "kaldi": write_kaldi,
    "lhotse": lambda path, *of: write_cuts(path.with_suffix(".jsonl.gz"), *of),
    "hugging_face": write_dataset,
    "parquet": lambda *of: write_dataset(*of, form="parquet"),
}
NEEDS = {"lhotse": "lhotse", "hugging_face": "datasets", "parquet": "datasets"}  # a package, by form


def encode(
    path: Path,
    samples: np.ndarray,
    rate_hz: int,
    codec: str,
    video: bool = False,
    options: dict[str, str] | None = None,
) -> Path:
    """Write float samples (n,) or (n, channels) by FFmpeg, perhaps beside a video of the same length."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with av.open(str(path), "w", options=options or {}) as container:
        pictures = container.add_stream("libx264", rate=25) if video else None
        sound = container.add_stream(codec, rate=rate_hz, layout="mono" if channels == 1 else "stereo")
        sound.bit_rate = 64_000
        if pictures:
            pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
            for number in range(len(samples) * 25 // rate_hz):
                grey = np.full((48, 64, 3), 3 * number % 256, np.uint8)
                container.mux(pictures.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(pictures.encode(None))
        block = np.round(samples.reshape(1, -1) * 32_767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(block, format="s16", layout=sound.layout.name)
        frame.sample_rate, frame.pts = rate_hz, 0
        container.mux([*sound.encode(frame), *sound.encode(None)])
    return path
