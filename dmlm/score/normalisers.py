"""Normalisers of transcripts, by name and version: both texts go through one before they are compared.

Every normaliser ends in Unicode NFC with single spaces, so that equal text counts as equal however it was typed. The
version goes up whenever a text can come out otherwise, and stands with every number: `basic/2`.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Literal

from dmlm.errors import UserError

Name = Literal["none", "basic", "words", "english"]
FIRST = "lower-whitespace/1"  # what results that name no normaliser were scored with: `basic` without NFC
SPELLINGS_SHA256 = "6607f948be9824d2e1b2fa2223cd94c06c45afa4e05ea0e3d5e1f2bdffde2465"


@dataclass(frozen=True)
class Normaliser:
    """A normaliser of texts. Called, it returns the text in the form that is compared.

    >>> BASIC(" 16  minus X "), str(BASIC)
    ('16 minus x', 'basic/2')
    """

    name: str
    version: int
    convert: Callable[[str], str]

    def __call__(self, text: str) -> str:
        return " ".join(unicodedata.normalize("NFC", self.convert(text)).split())

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    def require(self) -> None:
        """Check that what it needs is installed.

        Raises:
            UserError: it is not; the sentence has the command that installs it.
        """
        self("")


def _words(text: str) -> str:
    """Return a text in lower case without punctuation; apostrophes and hyphens within a word stay.

    >>> WORDS("Set red, with O'Neill's well-known 'six', now.")
    "set red with o'neill's well-known six now"
    """
    text = unicodedata.normalize("NFC", text).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    within = {match.start() for match in re.finditer(r"(?<=\w)['-](?=\w)", text)}
    is_mark = [unicodedata.category(c).startswith("P") and n not in within for n, c in enumerate(text)]
    return "".join(" " if mark else c for c, mark in zip(text, is_mark, strict=True))


@lru_cache(maxsize=1 << 14)  # a reference comes again under every condition
def _english(text: str) -> str:
    return _english_normaliser()(unicodedata.normalize("NFC", text))


@cache
def _english_normaliser() -> Callable[[str], str]:
    """Open Whisper's normaliser of English: the code of transformers, and the published table of British spellings.

    Raises:
        UserError: the table is not installed, or is another one.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    try:
        table = (resources.files("whisper_normalizer") / "normalizers" / "english.json").read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        raise UserError(
            'corpus.normaliser=english needs the table of spellings of the package whisper-normalizer: pip install -e ".[english]"'
        ) from None
    if hashlib.sha256(table).hexdigest() != SPELLINGS_SHA256:
        raise UserError(
            "whisper-normalizer is installed with another table of spellings than english/1 stands for:"
            ' pip install -e ".[english]"'
        )
    normaliser: Callable[[str], str] = EnglishTextNormalizer(json.loads(table))
    return normaliser


NONE = Normaliser("none", 1, lambda text: text)
BASIC = Normaliser("basic", 2, str.lower)  # digits, signs and punctuation stay, as in the references
WORDS = Normaliser("words", 1, _words)  # for texts written with punctuation, in any language
ENGLISH = Normaliser("english", 1, _english)  # of Radford et al., arXiv 2212.04356, appendix C
NORMALISERS: Mapping[str, Normaliser] = {normaliser.name: normaliser for normaliser in (NONE, BASIC, WORDS, ENGLISH)}


def of_stored(label: str) -> Normaliser:
    """Return the normaliser that a stored result names, to align its texts again.

    Raises:
        UserError: this version has no such normaliser, or another version of it.

    >>> of_stored("basic/2") is of_stored(FIRST)
    True
    """
    known = {FIRST: BASIC} | {str(normaliser): normaliser for normaliser in NORMALISERS.values()}
    if label not in known:
        raise UserError(f"A result was scored with normaliser {label!r}; this version has {', '.join(known)}.")
    return known[label]
