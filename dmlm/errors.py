"""The exceptions that the command line prints as one sentence, with exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can fix. The message says in one sentence what is wrong, where, and what to do.

    A second argument, if there is one, has the details: lines that are printed above the sentence.
    """

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    @property
    def details(self) -> str:
        """The lines that are printed above the sentence; empty if there are none."""
        return str(self.args[1]) if len(self.args) > 1 else ""


class BrokenRecipe(UserError):
    """The file of a recipe cannot be loaded; the message names the file and the line."""


class NotFinite(UserError):
    """The training loss became NaN or infinite."""


class OutOfMemory(UserError):
    """A training step did not fit into memory; `args[0]` is the number of tokens that were processed at once."""

    def __str__(self) -> str:
        return (
            f"out of memory with {self.args[0]:,} tokens at once; set execution.micro_tokens to less,"
            " or execution.recompute=true."
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest known name, then all known names.

    >>> did_you_mean("audio_mfc", ["audio_mfcc", "lips_dct"])
    "did you mean 'audio_mfcc'? known: audio_mfcc, lips_dct"
    """
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    listing = f"known: {', '.join(known) or 'none'}"
    return f"did you mean {near[0]!r}? {listing}" if near else listing
