"""Normalise the spelling of recognised text, so that the output of two engines can be compared and tokenised alike.

A normaliser has a name and a version; the fingerprint of a reader contains both.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Name = Literal["equations/1", "words/1", "authors/1"]

SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ", "0123456789n", strict=True))
EQUIVALENTS = str.maketrans({"−": "-", "–": "-", "—": "-", "⁄": "/", "÷": "/", "×": "x", "∗": "", "*": ""})
SYMBOLS = r"[-+=/()^.,]"


def equations(text: str) -> str:
    """Normalise school algebra, version 1: lower case, with spaces between numbers, letters, function names and signs.

    A superscript digit becomes `^` and the digit (NFKC would turn x³ into x3). × becomes the letter x, since these pages
    have no multiplication sign. Characters that these pages cannot contain are dropped.

    >>> equations("12x³ + log (45y) = 8")
    '12 x ^ 3 + log ( 45 y ) = 8'
    >>> equations("V3z — 3t¹⁰ =27;")
    'v 3 z - 3 t ^ 10 = 27'
    """
    return " ".join(re.findall(rf"log|[a-z]|[0-9]+|{SYMBOLS}", _plain(text)))


def words(text: str) -> str:
    """Normalise prose such as slides, version 1: like `equations`, but words stay together.

    >>> words("Results (Fig. 3): don't over-fit")
    'results ( fig . 3 ) dont over - fit'
    """
    return " ".join(re.findall(rf"[a-z]+|[0-9]+|{SYMBOLS}", re.sub("['’]", "", _plain(text))))


def authors(text: str) -> str:
    """Clean the text of one box like the authors of 3-Equations, version 1: upper case; only letters, digits, +, - and =.

    From `data_process/get_OCR.py` of YiwenLiebesleid/3-Equations (commit 5f0eb6a). Spaces inside a box, brackets,
    fraction bars and superscript digits are removed. One difference: there an empty box leaves a second space.

    >>> authors("12x³ + log (45y) = 8")
    '12X+LOG45Y=8'
    """
    return re.sub(r"[^a-zA-Z0-9+\-=]", "", text.upper())


def _plain(text: str) -> str:
    """Lower-case text with `^` before superscripts, NFKD forms without accents, and ASCII signs."""
    text = re.sub(f"[{''.join(SUPERSCRIPTS)}]+", lambda run: f" ^ {''.join(SUPERSCRIPTS[c] for c in run[0])} ", text)
    text = unicodedata.normalize("NFKD", text).translate(EQUIVALENTS).lower()
    return "".join(c for c in text if not unicodedata.combining(c))


NORMALISERS: dict[Name, Callable[[str], str]] = {"equations/1": equations, "words/1": words, "authors/1": authors}


def digest() -> str:
    """SHA-256 of this file. It enters the fingerprint of every reader, so a changed normaliser changes them."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
