"""One utterance under one condition: what is known of it, and the files that `dmlm corpus look` writes.

clean.wav noisy.wav noise.wav    one scale: noisy = clean + noise, sample by sample; float32 at 16 kHz
lips.mp4                         the frames that encoders read, at 25 a second; every browser plays it
page.png recognised.txt          the page, and what the reader read on it
tokens.json sequence.txt         the token streams; the sequence of each template, a token a line
look.html                        all of it on one page, which opens offline

Shapes: audio is float32 (samples,) at 16 kHz; lips are uint8 (T, H, W) at 25 Hz; a page is uint8 (H, W, 3).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmlm import files, snr
from dmlm.corpus.condition import Condition
from dmlm.corpus.manifest import Utterance
from dmlm.corpus.media import write_video
from dmlm.errors import UserError
from dmlm.modalities import SAMPLE_RATE_HZ
from dmlm.results.records import UtteranceResult
from dmlm.sequence.template import ROLES, UNSCORED, Packed, Template

PAGE = "look.html"


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A mixture and its two parts, of one scale: `noisy = clean + noise`."""

    noisy: np.ndarray  # what encoders hear
    clean: np.ndarray
    noise: np.ndarray
    noise_file: Path | None  # that the noise is a stretch of; None for clean speech
    noisy_spans_s: tuple[tuple[float, float], ...]  # where noise was added; () for clean speech
    snr_db_measured: float

    @property
    def tracks(self) -> dict[str, np.ndarray]:
        """The waveforms by name; clean speech has one only."""
        every = {"noisy": self.noisy, "clean": self.clean, "noise": self.noise}
        return every if snr.noisy(self.snr_db_measured) else {"clean": self.clean}


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The tokens of one modality."""

    letter: str
    encoder: str  # its name with its fingerprint, or what the text vocabulary is
    ids: np.ndarray  # (T,) as the encoder gives them; of a text, those of the text vocabulary
    vocab_size: int
    rate_hz: float | None = None  # tokens a second; None where the modality has no clock
    text: str | None = None  # of a reader or the transcript
    pieces: tuple[str, ...] = ()  # of a text: that of each token


@dataclass(frozen=True, kw_only=True)
class PackedSequence:
    """The sequence of one template, as a model reads it, with the transcript that it is to write."""

    template: Template
    packed: Packed
    names: tuple[str, ...]  # of each position: `<A_17>`, `<T>`, or the text of a token
    text_size: int  # smaller IDs are text
    vocabulary_size: int

    @property
    def roles(self) -> list[str]:
        """Letter of the modality that each position counts for in the loss; empty if none."""
        return ["" if role == UNSCORED else ROLES[role] for role in self.packed.roles]

    def segments(self) -> Iterator[tuple[str, int, int]]:
        """Yield runs of one role: letter (empty for tags), start, end."""
        roles = self.roles
        starts = [n for n in range(len(roles)) if n == 0 or roles[n] != roles[n - 1]]
        yield from ((roles[a], a, b) for a, b in zip(starts, [*starts[1:], len(roles)], strict=True))


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What a trained model wrote of the utterance in this very condition."""

    model: str
    inputs: str  # such as `A+L`
    detail: str  # variant and seed
    result: UtteranceResult
    normaliser: str  # of the counts, with its version


@dataclass(frozen=True, kw_only=True)
class Look:
    """Everything that there is to show of one utterance."""

    utterance: Utterance
    corpus: str  # a readable name
    source: str  # the grid, or the corpus without a grid
    condition: Condition
    sound: Sound
    lips: np.ndarray | None
    page: np.ndarray | None
    streams: Mapping[str, Stream]  # by letter
    sequences: tuple[PackedSequence, ...]
    transcripts: tuple[Transcript, ...]
    notes: tuple[str, ...]  # what is not shown, and what to do about it

    @property
    def recognised(self) -> str | None:
        """What the reader read on the page; None without a reader."""
        return stream.text if (stream := self.streams.get("O")) else None


def check_folder(folder: Path) -> None:
    """Refuse a folder that may not be written to.

    Raises:
        UserError: it is a file, or holds something else than an earlier look.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder} is a file; give a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PAGE).is_file():
        raise UserError(f"--to {folder} holds something else; give a new or empty folder.")


def write(look: Look, folder: Path) -> list[Path]:
    """Write the files; those of an earlier look in the same folder are removed. Returns their paths, the page last.

    Raises:
        UserError: as `check_folder`.
    """
    from dmlm.results import look_page

    check_folder(folder)
    contents = _contents(look)
    for name in ("clean.wav", "noisy.wav", "noise.wav", "lips.mp4", "page.png", "recognised.txt", "tokens.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "sequence.txt").unlink(missing_ok=True)
    for name, save in contents.items():
        with files.atomic(folder / name) as temporary:
            save(temporary)
    files.write_text(folder / PAGE, look_page.render(look, folder))
    return [*(folder / name for name in contents), folder / PAGE]


def _contents(look: Look) -> dict[str, Any]:
    """Return what writes each file that there is something for, by its name; each takes a path."""
    import soundfile
    from PIL import Image

    contents: dict[str, Any] = {}
    for name, samples in look.sound.tracks.items():
        contents[f"{name}.wav"] = lambda path, samples=samples: soundfile.write(
            path, samples, SAMPLE_RATE_HZ, format="WAV", subtype="FLOAT"
        )
    if (frames := look.lips) is not None:
        height, width = frames.shape[1:]
        even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")  # the codec wants it so
        contents["lips.mp4"] = lambda path: write_video(path, np.repeat(even[..., None], 3, axis=-1))
    if (page := look.page) is not None:
        contents["page.png"] = lambda path: Image.fromarray(page).save(path, format="PNG")
    texts = {"recognised.txt": look.recognised}
    texts["tokens.json"] = json.dumps(_stored(look), indent=1, ensure_ascii=False) if look.streams else None
    texts["sequence.txt"] = "\n".join(map(_listing, look.sequences)) or None
    for name, text in texts.items():
        if text is not None:
            contents[name] = lambda path, text=text: path.write_text(f"{text.rstrip()}\n", encoding="utf-8")
    return contents


def _stored(look: Look) -> dict[str, Any]:
    """Return the token streams as they are stored in `tokens.json`."""
    streams = {}
    for letter, stream in look.streams.items():
        facts = {"encoder": stream.encoder, "vocab_size": stream.vocab_size, "rate_hz": stream.rate_hz}
        text = {} if stream.text is None else {"text": stream.text}
        streams[letter] = facts | text | {"ids": stream.ids.tolist()}
    return {"utterance": look.utterance.id, "condition": look.condition.key, "streams": streams}


def _listing(sequence: PackedSequence) -> str:
    """Return a sequence as text, a token a line."""
    packed = sequence.packed
    lines = [f"{sequence.template.notation}   {len(packed)} tokens of a vocabulary of {sequence.vocabulary_size:,}"]
    lines.append("position     ID  role  token")
    for position, (token, role, name) in enumerate(zip(packed.ids, sequence.roles, sequence.names, strict=True)):
        shown = json.dumps(name, ensure_ascii=False) if token < sequence.text_size else name
        lines.append(f"{position:>8} {token:>6}  {role or '-':<4}  {shown}")
    return "\n".join([*lines, ""])
