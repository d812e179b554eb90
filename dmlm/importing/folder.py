"""A folder of recordings: X.wav with its text in X.txt, and perhaps a video X.mp4 and a picture X.png beside it.

Folders below it are read too. A recording is any file whose suffix says sound; without one, the sound of the video. The id
is the path without suffix, relative to the folder. A folder with `metadata.csv` or `manifest.jsonl` is read as that table.
"""

from collections import defaultdict
from pathlib import Path

from dmlm.importing import table
from dmlm.importing.clip import Stretch
from dmlm.importing.source import Reading, Source, text_of

SOUNDS = {
    ".wav",
    ".flac",
    ".ogg",
    ".opus",
    ".mp3",
    ".m4a",
    ".aac",
    ".wma",
    ".aiff",
    ".aif",
    ".g722",
    ".sph",
    ".au",
    ".caf",
}
VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m4v"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".svg"}
TABLES = ("manifest.jsonl", "metadata.jsonl", "metadata.csv", "metadata.tsv")
KINDS = (
    {".txt": "text"} | dict.fromkeys(SOUNDS, "audio") | dict.fromkeys(VIDEOS, "lips") | dict.fromkeys(PICTURES, "image")
)


def read(folder: Path | str, reading: Reading) -> Source:
    """Read a folder.

    Raises:
        UserError: a text is not UTF-8.
    """
    folder = Path(folder)
    for name in TABLES:
        if (folder / name).is_file():
            return table.read(folder / name, reading)
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.rglob("*")):
        if (kind := KINDS.get(path.suffix.lower())) and path.is_file():
            clip_id = path.relative_to(folder).with_suffix("").as_posix()
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                found[clip_id][kind].append(path)
    source = Source("folder")
    for clip_id, files in found.items():
        _add(source, folder, clip_id, files)
    return source


def _add(source: Source, folder: Path, clip_id: str, files: dict[str, list[Path]]) -> None:
    if twice := next(((kind, several) for kind, several in files.items() if len(several) > 1), None):
        kind, (first, second, *_) = twice
        source.lack("clash", f"{first.name} and {second.name} are both its {kind}", first.parent, clip_id)
        return
    text, sound, video = (files.get(kind, [None])[0] for kind in ("text", "audio", "lips"))
    recording = sound or video
    if recording is None:
        if text is not None:  # a picture alone is none of ours
            source.lack("no_audio", "it has no recording beside it", text, clip_id)
        return
    if text is None:
        source.lack("no_text", f"it has no transcript beside it, {Path(clip_id).name}.txt", recording, clip_id)
        return
    words = " ".join(text_of(text).split())
    fields = {"id": clip_id, "text": words, "audio": (Stretch(path=recording),), "image": files.get("image", [None])[0]}
    source.add(str(text), **fields, lips=Stretch(path=video) if video else None)
