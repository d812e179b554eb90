"""Printing on any terminal: what its encoding lacks is written in its letters, and never ends a command."""

import codecs
import io
import sys

PLAIN = {"—": "-", "–": "-", "−": "-", "’": "'", "±": "+-", "×": "x", "λ": "lambda", "…": "...", "→": "->", "†": "+"}


def in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    r"""Handler of encoding errors: the nearest plain letters, else a backslash sequence.

    >>> codecs.register_error("plain", in_plain_letters)
    >>> "5 dB — λ ŋ".encode("ascii", "plain")
    b'5 dB - lambda \\u014b'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    written = (PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in letters)
    return "".join(written), error.end


def print_everything() -> None:
    """Let standard output and standard error write every text, whatever their encoding; see `in_plain_letters`."""
    codecs.register_error("plain", in_plain_letters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not None, nor what a notebook puts in its place
            stream.reconfigure(errors="plain")
