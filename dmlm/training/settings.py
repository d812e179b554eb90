"""Settings of a training: what changes its result, and how it is carried out. Imports neither torch nor pydantic."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from dmlm.limits import STRICT, Limits
from dmlm.modalities import MODALITIES

NotNegative = Annotated[float, Limits(ge=0)]
Positive = Annotated[float, Limits(gt=0)]
Share = Annotated[float, Limits(ge=0, lt=1)]
Count = Annotated[int, Limits(ge=1, le=10**9)]


@dataclass(frozen=True, kw_only=True)
class Lambdas:
    """Loss weight of each modality, by its letter; the defaults are in `dmlm.modalities`."""

    __pydantic_config__: ClassVar = STRICT

    A: NotNegative = MODALITIES["A"].default_lambda
    L: NotNegative = MODALITIES["L"].default_lambda
    I: NotNegative = MODALITIES["I"].default_lambda  # noqa: E741
    O: NotNegative = MODALITIES["O"].default_lambda  # noqa: E741
    T: Positive = MODALITIES["T"].default_lambda


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of a training. Every field changes the result."""

    __pydantic_config__: ClassVar = STRICT

    steps: Count = 1000
    batch_size: Count = 32
    lr: Positive = 1e-3
    final_lr_ratio: Annotated[float, Limits(ge=0, le=1)] = 0.05
    warmup_steps: Annotated[int, Limits(ge=0)] = 100
    weight_decay: NotNegative = 0.01
    beta2: Annotated[float, Limits(gt=0, lt=1)] = 0.98
    clip_norm: Positive = 1.0
    dropout: Share = 0.1
    input_mask: Share = 0.0  # share of prompt tokens hidden from the model
    # of matrix products; weights, optimizer and scan stay in fp32. In a sweep file also `auto`, see dmlm.plan.grid
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    draws: Count = 2  # versions of the training set, each with other noise
    objective: Literal["next_token"] = "next_token"  # a file of dmlm/training/objectives
    lambdas: Lambdas = Lambdas()


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a training is carried out on a machine. No field changes the result, except for rounding."""

    __pydantic_config__: ClassVar = STRICT

    micro_tokens: Annotated[int | None, Limits(ge=1)] = None  # most tokens in memory at once; a batch is cut
    recompute: bool = False  # keep only layer inputs for the backward pass: less memory
    data_parallel: Count = 1  # processes, on CUDA one a GPU, that share every batch
    token_device: Literal["cpu", "cuda"] = "cpu"  # where tokenizers that are networks run
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)  # beside train.jsonl


DEFAULT_EXECUTION = Execution()
