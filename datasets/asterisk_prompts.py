"""The prompts of the Asterisk telephone exchange: some hundred sentences of one voice, with text, in each of five languages.

As the Debian packages hold them:

    asterisk/sounds/en_US_f_Allison/conf-full.g722             16 kHz, G.722
    doc/asterisk-core-sounds-en/core-sounds-en.txt.gz          conf-full: That conference is full.

A text is not always what the voice says. A sign in brackets ("dot [.]") and the dots of a sentence that goes on elsewhere
are cut off. The rest is left out, and counted in the card: what is a remark and no speech ("[this is a simple beep tone]"),
remarks of which nothing tells whether they are spoken, digits and signs, and prompts without a text of their own. Equal
sentences belong to one split.
"""

import gzip
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dmlm.corpus.manifest import Corpus
from dmlm.corpus.origin import Origin
from dmlm.corpus.texts import signs
from dmlm.errors import UserError
from dmlm.importing.build import make_corpus
from dmlm.importing.clip import Stretch
from dmlm.importing.settings import ImportSettings
from dmlm.importing.source import Source
from dmlm.importing.splits import split_of

ORIGIN = Origin(
    name="asterisk_prompts",
    title="Asterisk core sounds",
    licence="CC BY-SA 3.0 (en, es, fr) or CC BY 3.0 (it, ru)",
    cost="10 to 13 MB for a language, no account",
    get="run for a language such as en: apt-get install asterisk-core-sounds-en asterisk-core-sounds-en-g722; or, without"
    " installing them: apt-get download the two, dpkg -x each of them FOLDER, and set corpus.settings.folder=FOLDER",
    citation="Allison Smith (en, es), June Wallack (fr), Carlo Flora (it), ivrvoice.ru (ru)",
)
SOUNDS = "usr/share/asterisk/sounds"
VOICES = {
    "en": "en_US_f_Allison",
    "es": "es_MX_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "ru": "ru_RU_f_IvrvoiceRU",
}
LICENCES = {"it": "CC BY 3.0", "ru": "CC BY 3.0"}  # of the others: CC BY-SA 3.0
LEFT_OUT = ("no_text", "no_audio", "not_spelled_out", "outside")
BARE_SIGN = re.compile(r"\s*\[\W?\]\s*")
OPEN_END = re.compile(r"^(?:\.{2,}|…)\s*|\s*(?:\.{2,}|…)$")
REMARK = re.compile(r"[\[(<][^\])>]*[\])>]")


class Settings(BaseModel):
    """Part of the corpus's identity: other settings are another corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path | None = Field(default=None, description="that the packages were unpacked into, if not installed")
    language: Literal["en", "es", "fr", "it", "ru"] = "en"


PRESETS = {code: Settings(language=code) for code in ("en", "es", "fr", "it", "ru")}


def require(settings: Settings) -> None:
    """Check that the prompts and their texts are there.

    Raises:
        UserError: they are not; says how to get them.
    """
    _places(settings)


def prepare(settings: Settings, folder: Path, workers: int | None = None) -> Corpus:
    """Make the corpus in a folder, or what of it is missing.

    Raises:
        UserError: as `require`; or the list of texts is damaged.
    """
    source = describe(settings)
    card: dict[str, Any] = {"name": ORIGIN.name, "version": "1"}
    card |= {"licence": LICENCES.get(settings.language, "CC BY-SA 3.0"), "language": settings.language}
    card |= {"source": ORIGIN.sentence, "citation": ORIGIN.citation}
    how = ImportSettings(split="given", leave_out=LEFT_OUT)
    return make_corpus(source.clips, folder, card, how, source.faults, workers)


def describe(settings: Settings) -> Source:
    """Return the prompts of a language that have a text, by name, and what is left out.

    Raises:
        UserError: as `prepare`.
    """
    sounds, listing = _places(settings)
    prompts = {path.relative_to(sounds).with_suffix("").as_posix(): path for path in sorted(sounds.rglob("*.g722"))}
    texts = _texts(listing)
    source = Source(ORIGIN.name)
    for name in sorted(prompts | texts):
        if name not in prompts:
            source.lack("no_audio", "the list has its text, but there is no recording", listing, name)
        elif len(texts[name]) != 1:
            source.lack("no_text", f"the list has {len(texts[name])} texts of it", prompts[name], name)
        else:
            _add(source, name, prompts[name], texts[name][0], settings.language)
    return source


def _add(source: Source, name: str, path: Path, written: str, language: str) -> None:
    """Add a prompt, or why its text is not what is said."""
    text = OPEN_END.sub("", BARE_SIGN.sub(" ", written).strip())
    if not REMARK.sub("", text).strip():
        source.lack("no_text", f"it is no speech: {written}" if written else "its text is empty", path, name)
    elif REMARK.search(text):
        source.lack("not_spelled_out", f"its text has a remark: {written}", path, name)
    elif found := signs(text):
        source.lack("not_spelled_out", f"its text has {' '.join(found)}: {written}", path, name)
    else:
        source.add(
            str(path),
            id=name,
            text=text,
            audio=(Stretch(path=path),),
            speaker=VOICES[language],
            category=name.split("/")[0] if "/" in name else "prompts",
            split=split_of(text.casefold()),
        )


def _places(settings: Settings) -> tuple[Path, Path]:
    """Return the folder of the recordings and the list of the texts.

    Raises:
        UserError: one of them is missing.
    """
    code = settings.language
    sounds = ORIGIN.packaged(f"{SOUNDS}/{VOICES[code]}", settings.folder)
    listing = sounds.parents[2] / "doc" / f"asterisk-core-sounds-{code}" / f"core-sounds-{code}.txt.gz"
    if not any(sounds.glob("*.g722")):
        raise UserError(f"There are no G.722 recordings in {sounds}. {ORIGIN.sentence}.")
    if not listing.is_file():
        raise UserError(
            f"There is no list of texts {listing}; where packages are installed without documents, as in small images,"
            f" unpack them instead. {ORIGIN.sentence}."
        )
    return sounds, listing


def _texts(listing: Path) -> dict[str, list[str]]:
    """Return the texts of each prompt: one, but for mistakes of the list.

    Raises:
        UserError: the file is damaged.
    """
    try:
        lines = gzip.decompress(listing.read_bytes()).decode("utf-8-sig").splitlines()
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{listing} cannot be read ({error}); install its package again.") from None
    texts: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        name, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            texts[name.strip()].append(" ".join(text.split()))
    return texts
