"""One spelling for recognised text, so that what two engines read can be compared and tokenised alike.

A normaliser has a name and a version; whoever uses it puts the name in its fingerprint.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Name = Literal["equations/1", "words/1", "authors/1"]

RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ", "0123456789n", strict=True))
SAME = str.maketrans({"−": "-", "–": "-", "—": "-", "⁄": "/", "÷": "/", "×": "x", "∗": "", "*": ""})
SYMBOLS = r"[-+=/()^.,]"


def equations(text: str) -> str:
    """Recognised school algebra, version 1: every number, letter, function name and sign apart, in lower case.

    A raised digit becomes `^` and the digit, which keeps what the engine saw (NFKC would make x³ into x3); × is taken
    for a letter x, since such a page holds no other; characters that it cannot hold are dropped.

    >>> equations("12x³ + log (45y) = 8")
    '12 x ^ 3 + log ( 45 y ) = 8'
    >>> equations("V3z — 3t¹⁰ =27;")
    'v 3 z - 3 t ^ 10 = 27'
    """
    return " ".join(re.findall(rf"log|[a-z]|[0-9]+|{SYMBOLS}", _plain(text)))


def words(text: str) -> str:
    """Recognised prose such as slides, version 1: as `equations`, but runs of letters stay words.

    >>> words("Results (Fig. 3): don't over-fit")
    'results ( fig . 3 ) dont over - fit'
    """
    return " ".join(re.findall(rf"[a-z]+|[0-9]+|{SYMBOLS}", re.sub("['’]", "", _plain(text))))


def authors(text: str) -> str:
    """One box as the authors of 3-Equations clean it, version 1: upper case, then letters, digits, +, - and = alone.

    After `data_process/get_OCR.py` of YiwenLiebesleid/3-Equations (commit 5f0eb6a): spaces inside a box go as well,
    and so do brackets, fraction bars and raised digits. There an empty box leaves a second space; here it leaves none.

    >>> authors("12x³ + log (45y) = 8")
    '12X+LOG45Y=8'
    """
    return re.sub(r"[^a-zA-Z0-9+\-=]", "", text.upper())


def _plain(text: str) -> str:
    """Lower case; raised digits marked; compatibility forms, accents and look-alike signs made plain."""
    text = re.sub(f"[{''.join(RAISED)}]+", lambda run: " ^ " + "".join(RAISED[c] for c in run[0]) + " ", text)
    text = unicodedata.normalize("NFKD", text).translate(SAME).lower()
    return "".join(c for c in text if not unicodedata.combining(c))


NORMALISERS: dict[Name, Callable[[str], str]] = {"equations/1": equations, "words/1": words, "authors/1": authors}


def digest() -> str:
    """SHA-256 of this file: a changed normaliser changes the fingerprint of every reader."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
