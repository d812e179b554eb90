"""What a user chooses for an import: splits, folds, sentence spans, faces, and what to leave out."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dmlm.corpus.faults import check_rules
from dmlm.errors import UserError

# what an import itself finds; what only the check of a corpus finds, a grid leaves out
RULES = (
    "no_text", "empty_text", "not_spelled_out", "no_audio", "no_file", "clash", "no_face", "no_split", "outside", "lacking",
    "unreadable", "truncated",
)  # fmt: skip


def _known_rules(names: tuple[str, ...]) -> tuple[str, ...]:
    check_rules(names, "--leave-out")
    if later := next((name for name in names if name not in RULES), None):
        raise UserError(
            f"--leave-out {later}: an import does not look for this; leave such clips out in a grid, corpus.leave_out=[{later}]."
        )
    return names


class ImportSettings(BaseModel):
    """Settings of an import; all of them stand in the card of the corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # which split a clip is for: as the source says; or all clips of a speaker together; or each clip by its id
    split: Literal["given", "speaker", "id"] | None = None  # None: as given, else by id
    test: float = Field(default=0.2, gt=0, lt=1, description="share of the clips")
    val: float = Field(default=0.1, ge=0, lt=1, description="share of the clips")
    folds: int | None = Field(default=None, ge=3, description="parts that take turns as test split")
    # sentence spans of clips that come without: one for each stretch of speech between pauses, or the whole clip
    spans: Literal["speech", "whole"] = "speech"
    lips: Literal["as_given", "mouth", "face"] = "as_given"  # crop the videos, which show faces
    landmarks: Literal["mediapipe", "dlib"] = "mediapipe"  # face detector
    # pictures: on a white square of this side in pixels, larger or smaller; or as they are, an SVG 512 px long
    image_px: int | None = Field(default=None, ge=8, le=4096)
    leave_out: Annotated[tuple[str, ...], AfterValidator(_known_rules)] = ()

    @model_validator(mode="after")
    def _some_are_left(self) -> "ImportSettings":
        if self.test + self.val >= 1:
            raise ValueError(f"test ({self.test}) and val ({self.val}) leave nothing to train on")
        if self.folds and self.split == "given":
            raise ValueError(f"folds ({self.folds}) and split (given) contradict each other")
        return self
