"""The stamps of Tux Paint, a drawing program for children: a picture, what it is in a spoken sentence, and the sentence.

Several languages have about 900 spoken sentences each; nearly all have the text. As the Debian package holds them, below
stamps/:

    animals/birds/owl.png or .svg    the picture; of both, the PNG, which needs no fonts
    animals/birds/owl_desc_fr.ogg    the sentence, spoken in French (.ogg or .wav); English has no _en
    animals/birds/owl.txt            the sentence in English, then in other languages: fr.utf8=Un hibou.

All that is told of a picture belongs to one split, the same in every language: it depends on the English sentence, so two
pictures of the same thing are not in two splits. Pictures stand on a white square. What is left out is counted in the card:
speech without text or picture, and sentences with digits or signs such as $, which are not written as they are spoken.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dmlm.corpus.manifest import Corpus
from dmlm.corpus.origin import Origin
from dmlm.corpus.texts import signs
from dmlm.errors import UserError, did_you_mean
from dmlm.importing import svg
from dmlm.importing.build import make_corpus
from dmlm.importing.clip import Stretch
from dmlm.importing.settings import ImportSettings
from dmlm.importing.source import Source
from dmlm.importing.splits import split_of

ORIGIN = Origin(
    name="tuxpaint_stamps",
    title="Tux Paint's stamps",
    licence="GPL-2.0",
    cost="161 MB, no account",
    get="run: apt-get install tuxpaint-stamps-default; or, without installing it: apt-get download tuxpaint-stamps-default"
    " && dpkg -x tuxpaint-stamps-default_*.deb FOLDER, and set corpus.settings.folder=FOLDER",
    citation="Kendrick and others, tuxpaint.org; who drew and spoke them is in the package's changelog",
)
STAMPS = "usr/share/tuxpaint/stamps"
SPOKEN = re.compile(r"(.+)_desc(?:_([a-z]{2,3}(?:_[A-Z]{2})?(?:@[a-z]+)?))?\.(?:ogg|wav)")  # picture, language
LEFT_OUT = ("no_text", "lacking", "not_spelled_out")


class Settings(BaseModel):
    """Part of the corpus's identity: other settings are another corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path | None = Field(default=None, description="that the package was unpacked into, if it is not installed")
    languages: tuple[str, ...] = Field(
        default=("fr",), min_length=1, description="that are spoken, such as fr or pt_BR"
    )
    translations: tuple[str, ...] = Field(default=("en", "es", "fr", "ru"), description="of the text, kept beside it")
    image_px: int = Field(default=224, ge=16, le=2048, description="side of the square that a picture stands on")


PRESETS = {code: Settings(languages=(code,)) for code in ("fr", "es", "ru", "ca", "ro", "bg", "be", "el", "da", "en")}


def require(settings: Settings) -> None:
    """Check that the stamps are there, and what it takes to read them.

    Raises:
        UserError: they are not; or a package is missing that renders pictures, or a language is not spoken.
    """
    describe(settings)


def prepare(settings: Settings, folder: Path, workers: int | None = None) -> Corpus:
    """Make the corpus in a folder, or what of it is missing.

    Raises:
        UserError: as `require`.
    """
    source = describe(settings)
    card: dict[str, Any] = {"name": ORIGIN.name, "version": "1", "licence": ORIGIN.licence}
    card |= {"language": " ".join(settings.languages), "source": ORIGIN.sentence, "citation": ORIGIN.citation}
    how = ImportSettings(split="given", image_px=settings.image_px, leave_out=LEFT_OUT)
    return make_corpus(source.clips, folder, card, how, source.faults, workers)


def describe(settings: Settings) -> Source:
    """Return the clips that the stamps hold in the chosen languages, by path, and what is left out.

    Raises:
        UserError: as `require`.
    """
    stamps = ORIGIN.packaged(STAMPS, settings.folder)
    files = {path.relative_to(stamps).as_posix(): path for path in sorted(stamps.rglob("*")) if path.is_file()}
    spoken = [(match[1], match[2] or "en", name) for name in files if (match := SPOKEN.fullmatch(name))]
    counts = Counter(language for _, language, _ in spoken)
    for language in settings.languages:
        if language not in counts:
            raise UserError(f"languages: the stamps are not spoken in {language!r}; {did_you_mean(language, counts)}.")
    source = Source(ORIGIN.name)
    for picture, language, name in spoken:
        if language in settings.languages:
            _add(source, files, picture, language, name, settings)
    if any(clip.image and clip.image.suffix == ".svg" for clip in source.clips):
        svg.require()
    return source


def _add(source: Source, files: dict[str, Path], picture: str, language: str, name: str, settings: Settings) -> None:
    """Add what is told of a picture in a language, or what it lacks."""
    clip_id = f"{language}/{picture}"
    image = files.get(f"{picture}.png") or files.get(f"{picture}.svg")
    texts = sentences(files[f"{picture}.txt"]) if f"{picture}.txt" in files else {}
    if not (text := texts.get(language)):
        source.lack("no_text", f"it has no text in language {language}", files[name], clip_id)
    elif image is None:
        source.lack("lacking", "it has no picture", files[name], clip_id)
    elif found := signs(text):
        source.lack("not_spelled_out", f"its text has {' '.join(found)}: {text}", files[name], clip_id)
    else:
        others = {code: texts[code] for code in settings.translations if code != language and texts.get(code)}
        source.add(
            str(files[name]),
            id=clip_id,
            text=text,
            audio=(Stretch(path=files[name]),),
            image=image,
            category=picture.split("/")[0],
            translations=others or None,
            split=split_of(texts["en"].casefold()),
        )


def sentences(path: Path) -> dict[str, str]:
    """Return the sentence of a picture in each language of its text file; English is the first line.

    Raises:
        UserError: the file is not UTF-8.
    """
    try:
        first, *lines = path.read_text("utf-8-sig").splitlines() or [""]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); replace the file.") from None
    pairs = [line.partition(".utf8=") for line in lines]
    return {"en": " ".join(first.split())} | {code: " ".join(text.split()) for code, sign, text in pairs if sign}
