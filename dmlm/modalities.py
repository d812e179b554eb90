"""The one table of modalities: how each is written, where it stands in a manifest, and its weight in the loss."""

from dataclasses import dataclass
from typing import Literal

SAMPLE_RATE_HZ = 16_000  # of audio, as encoders are given it
FRAMES_HZ = 25  # of lip video


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One row."""

    letter: str  # in the notation of templates
    name: str
    field: str  # of an utterance in the manifest
    file: Literal["audio", "video", "image"] | None = None  # what kind of file that field names; None: it is text
    input_rate_hz: int | None = None  # samples or frames a second of what an encoder is given; None: no clock
    default_lambda: float  # loss weight: speech, text and image from arXiv 2507.19037; lips as image, OCR as text

    @property
    def is_text(self) -> bool:
        """Whether its tokens are those of the text vocabulary."""
        return self.file is None


MODALITIES = {
    row.letter: row
    for row in (
        Modality(
            letter="A", name="audio", field="audio", file="audio", input_rate_hz=SAMPLE_RATE_HZ, default_lambda=0.3
        ),
        Modality(letter="L", name="lips", field="lips", file="video", input_rate_hz=FRAMES_HZ, default_lambda=0.5),
        Modality(letter="I", name="image", field="image", file="image", default_lambda=0.5),
        Modality(letter="O", name="recognised text", field="ocr", default_lambda=0.5),
        Modality(letter="T", name="transcript", field="text", default_lambda=0.5),
    )
}
TARGET = "T"
INPUTS = {letter: modality for letter, modality in MODALITIES.items() if letter != TARGET}
FIELDS = {modality.field: modality for modality in INPUTS.values()}  # by field of the manifest
FILES = tuple(modality.field for modality in INPUTS.values() if modality.file)  # fields that name a file
