"""The settings of decoding. This file does not import torch."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _never_or_twice(count: int) -> int:
    if count == 1:
        raise ValueError("every phrase occurs once; give 0 (never stop) or at least 2")
    return count


class DecodeSettings(BaseModel):
    """How a model generates transcripts. Every field changes the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=64, ge=1, description="a transcript that does not end is cut here")
    beams: int = Field(default=1, ge=1, description="1 is greedy")
    length_penalty: float = Field(default=1.0, ge=0, description="log p is divided by length to this power; beams only")
    max_repeats: Annotated[int, AfterValidator(_never_or_twice)] = Field(
        default=0, ge=0, description="greedy decoding stops when a phrase has occurred so often in a row; 0: never"
    )
    longest_loop: int = Field(default=8, ge=1, description="longest such phrase, in tokens")
