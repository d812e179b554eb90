"""The paper's notation for the order of modalities, and packing of an utterance's token streams into one sequence.

    "A+L -> T"               <bos> <A> a1..aN <L> l1..lM <T> t1..tK <eos>
    "interleave(A,L) -> T"   <bos> <A> <L> a and l merged by time <T> t1..tK <eos>

A audio, L lips, I image, O recognised text (OCR), T transcript. The order in the sequence is the written order.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dmlm.errors import UserError
from dmlm.modalities import INPUTS, MODALITIES
from dmlm.tokens.vocabulary import Vocabulary

UNSCORED = -1  # role of special tokens other than <eos>: they do not enter the loss
ROLES = tuple(MODALITIES)  # modality letters; the role of a token is an index into this tuple
_SEGMENT = re.compile(r"interleave\(([A-Z]),([A-Z])\)|([A-Z])")


@dataclass(frozen=True)
class Template:
    """Segments of the prompt in order. A segment is one modality letter, or two that are interleaved by time."""

    segments: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, notation: str) -> "Template":
        """Parse the notation.

        Raises:
            UserError: a syntax error, an unknown or repeated letter, or a target other than T.

        >>> Template.parse("A + L->T").notation
        'A+L -> T'
        """
        inputs, arrow, target = notation.replace(" ", "").partition("->")
        if not arrow or target != "T":
            raise UserError(f"Template {notation!r} must read like 'A+L -> T': modalities joined by +, then '-> T'.")
        segments = []
        for part in re.split(r"\+(?![^(]*\))", inputs):
            match = _SEGMENT.fullmatch(part)
            if not match:
                raise UserError(f"Template {notation!r}: {part!r} is neither a modality letter nor 'interleave(A,L)'.")
            segments.append(tuple(letter for letter in match.groups() if letter))
        letters = [letter for segment in segments for letter in segment]
        for letter in letters:
            if letter not in INPUTS:
                known = ", ".join(f"{key} ({modality.name})" for key, modality in INPUTS.items())
                raise UserError(f"Template {notation!r}: there is no input modality {letter!r}; known are {known}.")
            if letters.count(letter) > 1:
                raise UserError(f"Template {notation!r} names {letter} twice; name each modality once.")
        return cls(tuple(segments))

    @property
    def letters(self) -> tuple[str, ...]:
        """Letters of the input modalities in order."""
        return tuple(letter for segment in self.segments for letter in segment)

    @property
    def notation(self) -> str:
        """The template in normalised notation: the inverse of `parse`."""
        parts = [s[0] if len(s) == 1 else f"interleave({','.join(s)})" for s in self.segments]
        return f"{'+'.join(parts)} -> T"


@dataclass(frozen=True)
class Packed:
    """One sequence of an utterance: token IDs, and the role of each token in the loss."""

    ids: np.ndarray  # (N,) int64
    roles: np.ndarray  # (N,) int8: index into ROLES, or UNSCORED

    def __len__(self) -> int:
        return len(self.ids)


def merge_by_time(lengths: tuple[int, int], rates_hz: tuple[float, float]) -> np.ndarray:
    """Return the order in which to interleave two streams: by the time of each token's middle.

    The result indexes the concatenation of both streams. At equal times the first stream comes first.

    >>> merge_by_time((2, 4), (25.0, 50.0)).tolist()
    [2, 0, 3, 4, 1, 5]
    """
    times = [(np.arange(n) + 0.5) / rate for n, rate in zip(lengths, rates_hz, strict=True)]
    return np.argsort(np.concatenate(times).round(6), kind="stable")


def pack(
    template: Template,
    streams: Mapping[str, np.ndarray],
    vocabulary: Vocabulary,
    rates_hz: Mapping[str, float | None],
    with_target: bool = True,
) -> Packed:
    """Concatenate the token streams of an utterance in the template's order.

    Args:
        template: the modalities and their order.
        streams: each tokenizer's own IDs (T,) by modality letter; `T` is the transcript.
        vocabulary: maps each tokenizer's IDs into the shared ID space.
        rates_hz: tokens a second by letter; None for a modality without a clock.
        with_target: False leaves the transcript out: the sequence ends with the tag `<T>` and is the decoder's prompt.

    Raises:
        UserError: the template interleaves a modality that has no clock.
    """
    ids: list[np.ndarray] = [np.array([vocabulary.special("<bos>")])]
    roles: list[np.ndarray] = [np.array([UNSCORED])]

    def add(values: np.ndarray, role: np.ndarray | int) -> None:
        ids.append(values)
        roles.append(np.broadcast_to(np.asarray(role), values.shape))

    for segment in template.segments:
        add(np.array([vocabulary.special(f"<{letter}>") for letter in segment]), UNSCORED)
        values = np.concatenate([vocabulary.shift(letter, streams[letter]) for letter in segment])
        role = np.concatenate([np.full(len(streams[letter]), ROLES.index(letter)) for letter in segment])
        if len(segment) == 2:
            first, second = (rates_hz.get(letter) for letter in segment)
            if not first or not second:
                raise UserError(
                    f"Template {template.notation!r} interleaves a modality without a clock; join it with + instead."
                )
            order = merge_by_time((len(streams[segment[0]]), len(streams[segment[1]])), (first, second))
            values, role = values[order], role[order]
        add(values, role)
    add(np.array([vocabulary.special("<T>")]), UNSCORED)
    if with_target:
        add(vocabulary.shift("T", streams["T"]), ROLES.index("T"))
        add(np.array([vocabulary.special("<eos>")]), ROLES.index("T"))  # the decoder must learn to stop
    return Packed(np.concatenate(ids).astype(np.int64), np.concatenate(roles).astype(np.int8))


def unpack(packed: Packed, template: Template, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """Return the token streams of a packed sequence by letter, in each tokenizer's own IDs: the inverse of `pack`."""
    is_eos = packed.ids == vocabulary.special("<eos>")
    streams = {}
    for letter in (*template.letters, "T"):
        selected = (packed.roles == ROLES.index(letter)) & ~is_eos
        streams[letter] = packed.ids[selected] - vocabulary.offset(letter)
    return streams
