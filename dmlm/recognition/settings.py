"""The settings of decoding. This file imports neither torch nor pydantic."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from dmlm.limits import STRICT, Limits

ONCE = 1, "every phrase occurs once; give 0 (never stop) or at least 2"


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """How a model generates transcripts. Every field changes the result."""

    __pydantic_config__: ClassVar = STRICT

    max_new_tokens: Annotated[int, Limits(ge=1)] = 64  # a transcript that does not end is cut here
    beams: Annotated[int, Limits(ge=1)] = 1  # 1 is greedy
    length_penalty: Annotated[float, Limits(ge=0)] = 1.0  # log p is divided by length to this power; beams only
    # greedy decoding stops when a phrase has occurred so often in a row; 0: never
    max_repeats: Annotated[int, Limits(ge=0, never=ONCE)] = 0
    longest_loop: Annotated[int, Limits(ge=1)] = 8  # longest such phrase, in tokens

    def __post_init__(self) -> None:
        if self.max_repeats == ONCE[0]:
            raise ValueError(ONCE[1])
