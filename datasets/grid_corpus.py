"""GRID, the audiovisual sentence corpus: 34 speakers, 1,000 sentences each of six words, such as "bin blue at f two now".

Sound and video of a speaker, the words and their times in `align` files. The folder may be laid out in any way in which
each file lies below a folder that is named after its speaker, as the published archives unpack:

    s1/bbaf2n.mpg or s1/video/mpg_6000/bbaf2n.mpg      the face; of two videos of a sentence, the last by path
    alignments/s1/bbaf2n.align or s1/align/...         start, end (in 1/25,000 s) and word; sil and sp are silence
    audio_25k/s1/bbaf2n.wav                            read only if `lips` is false and there is no video

or one folder `grid_s1` for each speaker, with mouths that are cropped already: audio/NAME.flac, lips/NAME.mp4, align/NAME.align.

The sound is the track of the video: the published recordings without video are cut at their ends, so the times of the align
files do not hold for them, and the whole clip is their span. A name spells its sentence, and a clip whose align file says
otherwise is left out. In the archive of alignments on Zenodo, folders of some speakers bear the name of another one; the
folder of a speaker is the one that has the names of his or her videos. What is left out is counted in the card.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dmlm.corpus import mouth_roi
from dmlm.corpus.manifest import Corpus
from dmlm.corpus.origin import Origin, recordings
from dmlm.errors import UserError, did_you_mean
from dmlm.importing.build import make_corpus
from dmlm.importing.clip import Stretch
from dmlm.importing.settings import ImportSettings
from dmlm.importing.source import Source

ORIGIN = Origin(
    name="grid",
    title="GRID audiovisual sentence corpus",
    licence="CC BY 4.0",
    cost="no account; 16 GB in all, about 0.4 GB for the videos of a speaker",
    get="download alignments.zip and sN.zip for each speaker N from https://zenodo.org/records/3625687 and unpack them there",
    citation="Cooke, Barker, Cunningham and Shao 2006, JASA 120(5), 2421-2424",
)
TICKS_HZ = 25_000  # of the times in align files: 1,000 to a video frame
SILENCES = ("sil", "sp")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = dict(zip(NUMBERS, "z123456789", strict=True))  # in the names of sentences
SPEAKER = re.compile(r"(?:grid_)?(s\d+)(?:_50kHz)?")  # name of a folder
LEFT_OUT = ("no_text", "no_audio", "lacking", "unreadable", "no_face")


class Settings(BaseModel):
    """Part of the corpus's identity: other settings are another corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path | None = Field(default=None, description="of the recordings, if they lie elsewhere")
    speakers: tuple[str, ...] = Field(default=(), description="such as s1; none: all that are there")
    lips: bool = Field(default=True, description="false: sound alone, which s21 has too")
    split: Literal["id", "speaker"] = Field(default="id", description="speaker: those of the test split are unseen")
    test: float = Field(default=0.11, gt=0, lt=1, description="share of the sentences, or of the speakers")
    val: float = Field(default=0.11, ge=0, lt=1, description="share of the sentences, or of the speakers")
    folds: int | None = Field(default=None, ge=3, description="parts that take turns as test split")
    landmarks: Literal["dlib", "mediapipe"] = Field(default="dlib", description="face detector")


PRESETS = {
    "s1": Settings(speakers=("s1",)),
    "folds": Settings(speakers=("s1",), folds=5),
    "all": Settings(),
    "unseen": Settings(split="speaker", test=0.15, val=0.1),
}
Files = dict[str, dict[str, Path]]  # path by speaker and name of the sentence


@dataclass(frozen=True)
class Recordings:
    """The files of the corpus that a folder holds."""

    videos: Files = field(default_factory=lambda: defaultdict(dict))
    mouths: Files = field(default_factory=lambda: defaultdict(dict))
    sounds: Files = field(default_factory=lambda: defaultdict(dict))
    aligned: Files = field(default_factory=lambda: defaultdict(dict))

    def add(self, speaker: str, path: Path) -> None:
        """Add a file; of two for one sentence, the later counts."""
        of_kind = {".mpg": self.videos, ".wav": self.sounds, ".flac": self.sounds, ".align": self.aligned}
        files = self.mouths if path.parent.name == "lips" else of_kind.get(path.suffix)
        if files is not None:
            files[speaker][path.stem] = path

    @property
    def speakers(self) -> list[str]:
        """Those with videos or sound, by number."""
        return sorted({*self.videos, *self.mouths, *self.sounds}, key=lambda name: int(name[1:]))

    def align_files(self, speaker: str, names: set[str]) -> dict[str, Path]:
        """Return the align files of a speaker by name: those of another folder if that one has most of the names."""
        best = max(self.aligned, key=lambda folder: len(names & self.aligned[folder].keys()), default=speaker)
        own = self.aligned.get(speaker, {})
        found = self.aligned.get(best, {})
        return found if len(names & found.keys()) > max(len(names) / 2, len(names & own.keys())) else own


def scan(settings: Settings) -> Recordings:
    """Find the recordings; files are not opened.

    Raises:
        UserError: there is no such folder, or it lacks a speaker or all of the align files.
    """
    alone = [recordings() / f"{ORIGIN.name}_{speaker}" for speaker in settings.speakers]
    prepared = settings.folder is None and alone and all(folder.is_dir() for folder in alone)
    folders = alone if prepared else [ORIGIN.folder(settings.folder)]
    found = Recordings()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            parts = [SPEAKER.fullmatch(part) for part in path.relative_to(folder.parent).parts[:-1]]
            if named := [match[1] for match in parts if match]:
                found.add(named[-1], path)
    where = ", ".join(map(str, folders))
    for speaker in settings.speakers:
        if speaker not in found.speakers:
            known = did_you_mean(speaker, found.speakers) if found.speakers else "there is none at all"
            raise UserError(f"{where} has no recordings of speaker {speaker}; {known}. {ORIGIN.sentence}.")
    if not found.speakers or not found.aligned:
        what = "no recordings" if not found.speakers else "no align files"
        raise UserError(f"{where} holds {what} below folders named s1, s2, .... {ORIGIN.sentence}.")
    return found


def require(settings: Settings) -> None:
    """Check that the recordings are there, and the face detector if mouths are to be cropped.

    Raises:
        UserError: something is missing; says how to get it.
    """
    found = scan(settings)
    if settings.lips and not _is_cropped(found, settings):
        mouth_roi.detector(settings.landmarks)


def prepare(settings: Settings, folder: Path) -> Corpus:
    """Make the corpus in a folder, or what of it is missing; see `dmlm.importing.build.make_corpus`."""
    found = scan(settings)
    source = sentences(found, settings)
    card = {"name": "grid_corpus", "version": "1", "licence": ORIGIN.licence, "language": "en"}
    card |= {"source": ORIGIN.title, "citation": ORIGIN.citation}
    crop = settings.lips and not _is_cropped(found, settings)
    chosen = ImportSettings(
        **settings.model_dump(include={"split", "test", "val", "folds", "landmarks"}),
        lips="mouth" if crop else "as_given",
        spans="whole",
        leave_out=LEFT_OUT,
    )
    return make_corpus(source.clips, folder, card, chosen, source.faults)


def sentences(found: Recordings, settings: Settings) -> Source:
    """Return the clips of the speakers, in the order of their names, and what others lack."""
    source = Source("grid")
    for speaker in settings.speakers or found.speakers:
        _add_speaker(source, found, speaker, settings)
    return source


def _is_cropped(found: Recordings, settings: Settings) -> bool:
    """Whether the mouths of all speakers are there, cropped."""
    return all(speaker in found.mouths for speaker in settings.speakers or found.speakers)


def _add_speaker(source: Source, found: Recordings, speaker: str, settings: Settings) -> None:
    """Add the clips of a speaker, in the order of their names."""
    videos, sounds, mouths = (files.get(speaker, {}) for files in (found.videos, found.sounds, found.mouths))
    lips = mouths if _is_cropped(found, settings) else videos
    recorded = {*videos, *sounds, *mouths}
    aligned = found.align_files(speaker, recorded)
    for name in sorted(recorded | aligned.keys()):
        clip_id, sound = f"{speaker}_{name}", videos.get(name) or sounds.get(name)
        if sound is None:
            source.lack("no_audio", "it has no recording", aligned.get(name, name), clip_id)
        elif settings.lips and name not in lips:
            source.lack("lacking", "it has no video", sound, clip_id)
        elif name not in aligned:
            source.lack("no_text", f"it has no {name}.align", sound, clip_id)
        elif (words := read_align(aligned[name])) is None or spelt(words) != name:
            source.lack("no_text", "it is not the sentence that its name spells", aligned[name], clip_id)
        else:
            source.add(
                str(aligned[name]),
                id=clip_id,
                text=" ".join(word for _, _, word in words),
                audio=(Stretch(path=sound),),
                lips=Stretch(path=lips[name]) if settings.lips else None,
                speaker=speaker,
                spans=None if sound.suffix == ".wav" else ((words[0][0], words[-1][1]),),
            )


def read_align(path: Path) -> list[tuple[float, float, str]] | None:
    """Return start and end in seconds and word, without silences; None if the file cannot be read as such."""
    try:
        rows = [line.split() for line in path.read_text("ascii").splitlines() if line.strip()]
        words = [(int(start) / TICKS_HZ, int(end) / TICKS_HZ, word) for start, end, word in rows]
    except ValueError:
        return None
    return [row for row in words if row[2] not in SILENCES]


def spelt(words: list[tuple[float, float, str]]) -> str:
    """Return the name of a sentence: first letters, but the digit as a digit, and zero as z.

    >>> spelt([(0, 0, word) for word in "bin blue at f two now".split()])
    'bbaf2n'
    """
    return "".join(DIGITS.get(word, word[0]) for _, _, word in words)
