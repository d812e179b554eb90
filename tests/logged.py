"""Trainings with loggers, some of them killed, and the values that `train.jsonl` has of them."""

import json

import pytest
from test_train import fit, model

from dmlm.training.loggers import open_loggers

SPEC = {"seed": 0, "train": {"lr": 0.003, "steps": 24}, "noise": ["a", "b"]}


class Killed(BaseException):
    """The process is gone, with nothing saved."""


def die_at(step_wanted):
    def on_step(step, loss):
        if step == step_wanted:
            raise Killed

    return on_step


def fit_with(names, folder, **more):
    with open_loggers(names, folder, SPEC) as opened:
        return fit(model(), folder, loggers=opened, **more)


def fit_in_three_sessions(names, folder):
    """Checkpoints after every step up to 13; a session that logs steps 20 and 24 in vain; and a last one from 13 on."""
    with pytest.raises(Killed):
        fit_with(names, folder, on_step=die_at(14), checkpoint_every_s=0.0)
    with pytest.raises(Killed):
        fit_with(names, folder, on_step=die_at(24))
    assert fit_with(names, folder).steps == 24


def told(folder):
    """(tag, step) -> value, as `train.jsonl` has it."""
    values = {}
    for line in map(json.loads, (folder / "train.jsonl").read_text().splitlines()):
        values["train/loss", line["step"]], values["train/lr", line["step"]] = line["loss"], line["lr"]
        values |= {(f"train/loss_{k}", line["step"]): v for k, v in line["loss_by_modality"].items()}
    return {key: pytest.approx(value, abs=2e-5) for key, value in values.items()}
