"""The one table of modalities: letter in templates, field in a manifest, and default weight in the loss."""

from dataclasses import dataclass
from typing import Literal

SAMPLE_RATE_HZ = 16_000  # of the audio that encoders read
FRAMES_HZ = 25  # frame rate of lip video


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One modality, a row of the table."""

    letter: str  # in templates
    name: str
    field: str  # of an utterance in the manifest
    file: Literal["audio", "video", "image"] | None = None  # kind of file that the field names; None: it is text
    input_rate_hz: int | None = None  # samples or frames per second of an encoder's input; None: no clock
    default_lambda: float  # loss weight: audio, text and image as in arXiv 2507.19037; lips as image, OCR as text

    @property
    def is_text(self) -> bool:
        """Whether it is written in tokens of the text vocabulary."""
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
FIELDS = {modality.field: modality for modality in INPUTS.values()}  # by field name in a manifest
FILES = tuple(modality.field for modality in INPUTS.values() if modality.file)  # fields that hold a file path
