"""What is to be transcribed: recordings as they are named, and folders of `X.wav` with `X.mp4`, `X.png`, `X.txt` beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dmlm.corpus.noise_files import ENDINGS
from dmlm.errors import UserError

AUDIO = (
    *ENDINGS,
    ".aac",
    ".amr",
    ".m4a",
    ".mka",
    ".weba",
    ".wma",
)  # of recordings in a folder; named files may be anything
VIDEO = (".mp4", ".avi", ".mkv", ".mov", ".mpg", ".webm")
IMAGE = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Clip:
    """One recording to transcribe."""

    name: str  # for the user
    inputs: dict[str, Path | str] = field(
        default_factory=dict
    )  # by name of the modality, as `Recogniser.read` takes them
    reference: str | None = None  # what is said in it
    named: bool = True  # each input was named by the user, so that one that no model reads is a mistake

    @property
    def stem(self) -> str:
        """The name of its file without folder and ending."""
        return Path(self.name).stem


def find_clips(sources: Sequence[Path], **others: Path | str | None) -> list[Clip]:
    """Return the clips that recordings and folders are. Whether a file can be read is seen when it is.

    Args:
        sources: recordings, and folders of them
        others: what goes with the only recording, by name: `lips`, `image`, `ocr`

    Raises:
        UserError: there is nothing to read, a folder has no recording, or several go with one page or one video.
    """
    given = {name: value for name, value in others.items() if value is not None}
    if not sources:
        if not given:
            raise UserError("Say what to transcribe: dmlm transcribe talk.wav --model FOLDER.")
        return [Clip(str(next(iter(given.values()))), given)]
    clips: list[Clip] = []
    for source in sources:
        clips += _of_folder(source) if source.is_dir() else [Clip(str(source), {"audio": source, **given})]
    if given and (len(clips) > 1 or not clips[0].named):
        raise UserError(
            f"--{next(iter(given))} goes with one recording; put files of one name side by side (X.wav, X.mp4, X.png) and"
            " give their folder."
        )
    return clips


def _of_folder(folder: Path) -> list[Clip]:
    """Return the recordings of a folder and of those below it: audio files, and videos that have none beside them.

    Raises:
        UserError: there is none, or two have one name.
    """
    beside: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        for kind, endings in (("audio", AUDIO), ("lips", VIDEO), ("image", IMAGE), ("text", (".txt",))):
            if path.suffix.lower() in endings:
                beside.setdefault(str(path.with_suffix("")), {}).setdefault(kind, []).append(path)
    clips = []
    for kinds in beside.values():
        if twice := next((paths for paths in kinds.values() if len(paths) > 1), None):
            raise UserError(f"{twice[0].parent} has both {twice[0].name} and {twice[1].name}; keep one of the two.")
        inputs: dict[str, Path | str] = {kind: path for kind, (path,) in kinds.items() if kind != "text"}
        if "lips" in inputs and "audio" not in inputs:
            inputs["audio"] = inputs["lips"]  # its sound track
        if "audio" in inputs:
            reference = _text(kinds["text"][0]) if "text" in kinds else None
            clips.append(Clip(str(inputs["audio"]), inputs, reference, named=False))
    if not clips:
        raise UserError(f"{folder} has no recording; audio is what ends with {' '.join(AUDIO)}.")
    return clips


def _text(path: Path) -> str:
    """Read a reference.

    Raises:
        UserError: it is not UTF-8, or empty.
    """
    try:
        text = path.read_text("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8.") from None
    if not text:
        raise UserError(f"{path} is empty; write what is said in the recording, or remove it.")
    return text
