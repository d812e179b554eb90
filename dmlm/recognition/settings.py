"""How a transcript is written: plain, checked settings. No torch here."""

from pydantic import BaseModel, ConfigDict, Field


class DecodeSettings(BaseModel):
    """How a transcript is written. Every field changes the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=64, ge=1, description="a transcript without an end is cut here")
    beams: int = Field(default=1, ge=1, description="1 is greedy")
    length_penalty: float = Field(default=1.0, ge=0, description="log p is divided by length to this power; beams only")
    max_repeats: int = Field(default=0, ge=0, description="greedy stops after a run said so often in a row; 0: never")
    longest_loop: int = Field(default=8, ge=1, description="longest such run, in tokens")
