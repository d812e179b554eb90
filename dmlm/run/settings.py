"""How a model is trained: plain, checked settings. No torch here."""

from pydantic import BaseModel, ConfigDict, Field


class Lambdas(BaseModel):
    """Loss weight of each modality. Speech, text and image from arXiv 2507.19037; lips as image, OCR as text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    A: float = Field(default=0.3, ge=0)
    L: float = Field(default=0.5, ge=0)
    I: float = Field(default=0.5, ge=0)  # noqa: E741
    O: float = Field(default=0.5, ge=0)  # noqa: E741
    T: float = Field(default=0.5, gt=0)


class TrainSettings(BaseModel):
    """How a model is trained. Every field changes the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=32, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    final_lr_ratio: float = Field(default=0.05, ge=0, le=1)
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    beta2: float = Field(default=0.98, gt=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    input_mask: float = Field(default=0.0, ge=0, lt=1, description="share of prompt tokens hidden from the model")
    draws: int = Field(default=2, ge=1, description="versions of the training set, each with other noise")
    lambdas: Lambdas = Lambdas()
