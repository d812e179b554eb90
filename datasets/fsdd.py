"""Digit strings built from the Free Spoken Digit Dataset: 6 speakers who said each digit 50 times.

A string is drawn for one speaker, with silence of a drawn length between its digits, and is its own span. Each recording
serves one split only, and all recordings of a speaker in a split equally often. Who or what is in which split:

    unseen: true     all of a speaker together; those of the test split are not heard in training
    unseen: false    by the index in the name: 0 to 4 test, as the owners say, 5 to 9 val, the others train
    folds: true      a fold for each speaker, so that a grid can test each one with a model of the others (corpus.fold)
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dmlm.corpus.manifest import SPLITS, Corpus, Split
from dmlm.corpus.origin import Origin
from dmlm.errors import UserError, did_you_mean
from dmlm.importing.build import make_corpus
from dmlm.importing.clip import Clip, Stretch
from dmlm.importing.settings import ImportSettings
from dmlm.seeding import generator

ORIGIN = Origin(
    name="fsdd",
    title="Free Spoken Digit Dataset",
    licence="CC BY-SA 4.0",
    cost="no account; 25 MB",
    get="git clone https://github.com/Jakobovski/free-spoken-digit-dataset and rename the folder",
    citation="Jackson and others 2016, doi:10.5281/zenodo.1342401",
)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
TESTED, VALIDATED = range(5), range(5, 10)  # indices


class Settings(BaseModel):
    """Everything that determines the corpus, besides the recordings. Equal settings give the same corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path | None = Field(default=None, description="of the recordings, if they lie elsewhere")
    least: int = Field(default=3, ge=1, le=50, description="digits of a string")
    most: int = Field(default=6, ge=1, le=50, description="digits of a string")
    gap_ms: tuple[int, int] = Field(default=(50, 300), description="silence between digits: least, most")
    train: int = Field(default=3000, ge=1, description="strings")
    val: int = Field(default=200, ge=1, description="strings")
    test: int = Field(default=300, ge=1, description="strings; with folds, of each speaker")
    unseen: bool = Field(default=True, description="whether speakers of the test split are unseen")
    test_speakers: tuple[str, ...] = Field(default=("theo",), min_length=1, description="if unseen")
    val_speakers: tuple[str, ...] = Field(default=("lucas",), min_length=1, description="if unseen")
    folds: bool = Field(default=False, description="a fold for each speaker")
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        if self.least > self.most:
            raise ValueError(f"least ({self.least}) must not exceed most ({self.most})")
        if not 0 <= self.gap_ms[0] <= self.gap_ms[1]:
            raise ValueError(f"gap_ms {self.gap_ms} must be a range: least, most")
        if both := {*self.test_speakers} & {*self.val_speakers}:
            raise ValueError(f"test_speakers and val_speakers share {', '.join(sorted(both))}")
        return self


PRESETS = {
    "unseen": Settings(),
    "seen": Settings(unseen=False),
    "folds": Settings(folds=True),
    "digits": Settings(least=1, most=1, train=2000, val=500, test=500),
}


@dataclass(frozen=True)
class Recording:
    """One digit."""

    path: Path
    digit: int
    speaker: str
    index: int


@dataclass(frozen=True)
class Part:
    """The recordings that the strings of a split, or of a fold, are drawn from."""

    name: str
    split: Split
    fold: int | None
    recordings: list[Recording]
    strings: int


def scan(settings: Settings) -> list[Recording]:
    """Find the recordings, in the order of their names; files are not opened.

    Raises:
        UserError: there is no such folder, or it holds none, or lacks a speaker.
    """
    folder = ORIGIN.folder(settings.folder)
    found = []
    for path in sorted([*folder.glob("*.wav"), *folder.glob("recordings/*.wav")], key=lambda path: path.name):
        if match := NAME.fullmatch(path.name):
            found.append(Recording(path, int(match[1]), match[2], int(match[3])))
    if not found:
        raise UserError(f"{folder} holds no recordings such as recordings/7_jackson_32.wav. {ORIGIN.sentence}.")
    speakers = {recording.speaker for recording in found}
    if settings.unseen and not settings.folds:
        for speaker in (*settings.test_speakers, *settings.val_speakers):
            if speaker not in speakers:
                raise UserError(f"{folder} has no speaker {speaker}; {did_you_mean(speaker, sorted(speakers))}.")
    return found


def parts(settings: Settings, found: list[Recording]) -> list[Part]:
    """Deal the recordings to the splits, or to the folds.

    Raises:
        UserError: none is left for a split, or there are fewer than three speakers for folds.
    """
    if settings.folds:
        speakers = sorted({recording.speaker for recording in found})
        if len(speakers) < 3:
            raise UserError(f"Folds by speaker need 3 speakers, and there are {len(speakers)}.")
        return [
            Part(
                speaker, {0: SPLITS[2], 1: SPLITS[1]}.get(fold, SPLITS[0]), fold,
                [recording for recording in found if recording.speaker == speaker], settings.test,
            )
            for fold, speaker in enumerate(speakers)
        ]  # fmt: skip
    apart: dict[str, Split] = {speaker: "val" for speaker in settings.val_speakers}
    apart |= {speaker: "test" for speaker in settings.test_speakers}
    dealt: dict[Split, list[Recording]] = defaultdict(list)
    for recording in found:
        by_index: Split = "test" if recording.index in TESTED else "val" if recording.index in VALIDATED else "train"
        dealt[apart.get(recording.speaker, "train") if settings.unseen else by_index].append(recording)
    if empty := [split for split in SPLITS if not dealt[split]]:
        raise UserError(f"No recording is left for the {empty[0]} split; change test_speakers or val_speakers.")
    return [Part(split, split, None, dealt[split], getattr(settings, split)) for split in SPLITS]


def require(settings: Settings) -> None:
    """Check that the recordings are there.

    Raises:
        UserError: something is missing; says how to get it.
    """
    parts(settings, scan(settings))


def prepare(settings: Settings, folder: Path) -> Corpus:
    """Make the corpus in a folder, or what of it is missing; see `dmlm.importing.build.make_corpus`."""
    card = {"name": "fsdd", "version": "1", "licence": ORIGIN.licence, "language": "en"}
    card |= {"source": ORIGIN.title, "citation": ORIGIN.citation}
    clips = [clip for part in parts(settings, scan(settings)) for clip in strings(settings, part)]
    return make_corpus(clips, folder, card, ImportSettings(split="given", spans="whole"))


def strings(settings: Settings, part: Part) -> Iterator[Clip]:
    """Yield the clips of a part; its speakers take turns."""
    of_speaker: dict[str, list[Recording]] = defaultdict(list)
    for recording in part.recordings:
        of_speaker[recording.speaker].append(recording)
    drawn = {
        speaker: _endless(some, generator(settings.seed, part.name, speaker)) for speaker, some in of_speaker.items()
    }
    for number in range(part.strings):
        speaker = list(drawn)[number % len(drawn)]
        rng = generator(settings.seed, part.name, number)
        digits = list(islice(drawn[speaker], int(rng.integers(settings.least, settings.most, endpoint=True))))
        gaps_ms = [0, *rng.integers(*settings.gap_ms, len(digits) - 1, endpoint=True)]
        yield Clip(
            id=f"{part.name}-{number:05d}",
            text=" ".join(WORDS[digit.digit] for digit in digits),
            audio=tuple(
                Stretch(path=digit.path, silence_s=int(gap_ms) / 1000)
                for digit, gap_ms in zip(digits, gaps_ms, strict=True)
            ),
            speaker=speaker,
            split=part.split,
            fold=part.fold,
        )


def _endless(some: list[Recording], rng: np.random.Generator) -> Iterator[Recording]:
    """Yield all recordings in a drawn order, then all in another one, and so on."""
    while True:
        yield from (some[index] for index in rng.permutation(len(some)))
