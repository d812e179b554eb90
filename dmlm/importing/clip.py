"""A clip as its source describes it, before any media file is read: text, stretches of recordings, and who speaks."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dmlm.corpus.faults import Fault
from dmlm.corpus.manifest import NonEmpty, Split


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Stretch(_Plain):
    """A stretch of a recording or a video."""

    path: Path
    start_s: float = Field(default=0.0, ge=0)
    end_s: float | None = Field(default=None, gt=0)  # None: the end of the file
    silence_s: float = Field(default=0.0, ge=0)  # of digital silence that is put before it

    @model_validator(mode="after")
    def _has_length(self) -> "Stretch":
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"end_s ({self.end_s}) must be later than start_s ({self.start_s})")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether it is the file from its start to its end."""
        return self.start_s == 0 and self.end_s is None


class Clip(_Plain):
    """One utterance to be. The clip is the stretches of `audio`, one after the other."""

    id: NonEmpty
    text: str
    audio: tuple[Stretch, ...] = Field(min_length=1)
    lips: Stretch | None = None  # a video of the mouth, or of the face if it is to be cropped
    image: Path | None = None  # PNG, JPEG, ... or SVG, which is rendered
    ocr: str | None = None
    speaker: str | None = None
    category: str | None = None
    translations: dict[str, str] | None = None  # by language code
    split: Split | None = None
    fold: int | None = Field(default=None, ge=0)
    spans: tuple[tuple[float, float], ...] | None = None  # of the sentences, in seconds from the start of the clip
    source: str = ""  # where it is described, for error messages: a file, or a file and a line

    def fault(self, rule: str, what: str, file: object = None) -> Fault:
        """Return a fault of this clip; `file` is what is faulty, by default where the clip is described."""
        return Fault(rule, what, str(file or self.source), None, self.id, self.split)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that it is made from, each once."""
        video = [self.lips.path] if self.lips else []
        image = [self.image] if self.image else []
        return tuple(dict.fromkeys([*(stretch.path for stretch in self.audio), *video, *image]))
