"""LibriSpeech: 1,000 hours of audio books, read in English by 2,484 speakers, in parts of which none shares a speaker.

As the archives of openslr.org/12 unpack, all into one folder:

    LibriSpeech/SPEAKERS.TXT                                    SPEAKER | F | PART | minutes | name
    LibriSpeech/test-clean/1089/134686/1089-134686-0000.flac    part/speaker/chapter/utterance, 16 kHz
    LibriSpeech/test-clean/1089/134686/1089-134686.trans.txt    1089-134686-0000 HE HOPED THERE WOULD BE STEW

The texts are in capitals, without punctuation; here they are in lower case, which loses nothing. A clip's category is its
part, and its span is the whole clip: utterances were cut at pauses. What is left out is counted in the card: recordings
without a text, and texts without a recording.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dmlm.corpus.manifest import Corpus, Split
from dmlm.corpus.origin import Origin
from dmlm.errors import UserError
from dmlm.importing.build import make_corpus
from dmlm.importing.clip import Stretch
from dmlm.importing.settings import ImportSettings
from dmlm.importing.source import Source

ORIGIN = Origin(
    name="LibriSpeech",
    title="LibriSpeech",
    licence="CC BY 4.0",
    cost="no account; train-clean-100 6.3 GB, train-clean-360 23 GB, train-other-500 30 GB, the others 0.3 GB each",
    get="download the parts from https://www.openslr.org/12 and unpack them; the folder is LibriSpeech",
    citation="Panayotov, Chen, Povey and Khudanpur 2015, ICASSP",
)
PARTS = (
    "train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other",
    "train-clean-5", "dev-clean-2",  # of Mini LibriSpeech, openslr.org/31, in the same layout
)  # fmt: skip
LEFT_OUT = ("no_text", "no_audio")


class Settings(BaseModel):
    """Part of the corpus's identity: other settings are another corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path | None = Field(default=None, description="LibriSpeech, if it lies elsewhere")
    train: tuple[str, ...] = Field(default=("train-clean-100",), min_length=1, description="parts to train on")
    val: tuple[str, ...] = Field(default=("dev-clean",), description="parts to choose by")
    test: tuple[str, ...] = Field(default=("test-clean",), min_length=1, description="parts to test on")

    @model_validator(mode="after")
    def _each_part_once(self) -> "Settings":
        chosen = self.train + self.val + self.test
        for part in chosen:
            if part not in PARTS:
                raise ValueError(f"there is no part {part!r}; the parts are {', '.join(PARTS)}")
            if chosen.count(part) > 1:
                raise ValueError(f"part {part} is chosen twice")
        return self


ALL = ("train-clean-100", "train-clean-360", "train-other-500")
PRESETS = {
    "clean100": Settings(),
    "clean460": Settings(train=ALL[:2]),
    "all960": Settings(train=ALL, val=("dev-clean", "dev-other"), test=("test-clean", "test-other")),
    "mini": Settings(train=("train-clean-5",), val=("dev-clean-2",)),
}


def require(settings: Settings) -> None:
    """Check that the chosen parts are there.

    Raises:
        UserError: one is not; says how to get it.
    """
    folder = ORIGIN.folder(settings.folder)
    if missing := [part for _, part in _parts(settings) if not (folder / part).is_dir()]:
        raise UserError(f"{folder} has no {', '.join(missing)}. {ORIGIN.sentence}.")


def prepare(settings: Settings, folder: Path, workers: int | None = None) -> Corpus:
    """Make the corpus in a folder, or what of it is missing.

    Raises:
        UserError: as `require`; or a list of texts is damaged.
    """
    require(settings)
    source = describe(settings)
    card: dict[str, Any] = {"name": "librispeech", "version": "1", "licence": ORIGIN.licence, "language": "en"}
    card |= {"source": ORIGIN.sentence, "citation": ORIGIN.citation}
    how = ImportSettings(split="given", spans="whole", leave_out=LEFT_OUT)
    return make_corpus(source.clips, folder, card, how, source.faults, workers)


def describe(settings: Settings) -> Source:
    """Return the utterances of the chosen parts, by part, speaker, chapter and number, and what is left out.

    Raises:
        UserError: a list of texts is damaged.
    """
    folder = ORIGIN.folder(settings.folder)
    source = Source("librispeech")
    for split, part in _parts(settings):
        for chapter in sorted((folder / part).glob("*/*/")):
            _add_chapter(source, chapter, split, part)
    return source


def _parts(settings: Settings) -> Iterator[tuple[Split, str]]:
    yield from (("train", part) for part in settings.train)
    yield from (("val", part) for part in settings.val)
    yield from (("test", part) for part in settings.test)


def _add_chapter(source: Source, chapter: Path, split: Split, part: str) -> None:
    speaker = chapter.parent.name
    listing = chapter / f"{speaker}-{chapter.name}.trans.txt"
    texts = _texts(listing) if listing.is_file() else {}
    recordings = {path.stem: path for path in chapter.glob("*.flac")}
    for name in sorted(recordings | texts):
        if name not in recordings:
            source.lack("no_audio", f"there is no {name}.flac", listing, name)
        elif name not in texts:
            source.lack("no_text", f"{listing.name} has no text of it", recordings[name], name)
        else:
            audio = (Stretch(path=recordings[name]),)
            fields = {"id": name, "text": texts[name], "audio": audio, "split": split, "category": part}
            source.add(str(listing), **fields, speaker=speaker)


def _texts(listing: Path) -> dict[str, str]:
    """Return the texts of a chapter, by utterance.

    Raises:
        UserError: the file is no text.
    """
    try:
        lines = listing.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{listing} is not text ({error.reason}); unpack its part again.") from None
    pairs = (line.split(maxsplit=1) for line in lines)
    return {pair[0]: " ".join(pair[1].lower().split()) for pair in pairs if len(pair) == 2}
