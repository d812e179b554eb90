"""Settings of a training: what changes its result, and how it is carried out. Imports no torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dmlm.modalities import MODALITIES


class Lambdas(BaseModel):
    """Loss weight of each modality, by its letter; the defaults are in `dmlm.modalities`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    A: float = Field(default=MODALITIES["A"].default_lambda, ge=0)
    L: float = Field(default=MODALITIES["L"].default_lambda, ge=0)
    I: float = Field(default=MODALITIES["I"].default_lambda, ge=0)  # noqa: E741
    O: float = Field(default=MODALITIES["O"].default_lambda, ge=0)  # noqa: E741
    T: float = Field(default=MODALITIES["T"].default_lambda, gt=0)


class TrainSettings(BaseModel):
    """Settings of a training. Every field changes the result."""

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
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of matrix products; weights, optimizer and scan stay in fp32
    draws: int = Field(default=2, ge=1, description="versions of the training set, each with other noise")
    objective: Literal["next_token"] = "next_token"  # a file of dmlm/training/objectives
    lambdas: Lambdas = Lambdas()


class Execution(BaseModel):
    """How a training is carried out on a machine. No field changes the result, except for rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    micro_tokens: int | None = Field(default=None, ge=1, description="most tokens in memory at once; a batch is cut")
    recompute: bool = Field(default=False, description="keep only layer inputs for the backward pass: less memory")
    data_parallel: int = Field(default=1, ge=1, description="processes, on CUDA one a GPU, that share every batch")
    token_device: Literal["cpu", "cuda"] = Field(default="cpu", description="where tokenizers that are networks run")
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)  # beside train.jsonl


DEFAULT_EXECUTION = Execution()
