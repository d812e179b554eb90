"""The training loop: it learns, it resumes exactly, and it survives what happens to files."""

import os
import signal
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch

from dmlm.errors import UserError
from dmlm.model.backbones import BackboneSpec, build
from dmlm.run import checkpoint
from dmlm.run.settings import TrainSettings
from dmlm.run.train import Interrupted, learning_rate, train
from dmlm.sequence.template import Template, pack
from dmlm.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary(256, {"A": 12})
SETTINGS = TrainSettings(steps=24, batch_size=8, lr=3e-3, warmup_steps=4, draws=2)


def corpus(seed: int = 0):
    """A code to break: each text ID is a function of the audio ID at its place."""
    rng = np.random.default_rng(seed)
    audio = [rng.integers(0, 12, rng.integers(3, 6)) for _ in range(40)]
    template = Template.parse("A -> T")
    return [pack(template, {"A": a, "T": 100 + a * 3}, VOCABULARY, {}) for a in audio]


def model(name="opt-nano", dropout=0.1):
    special = [VOCABULARY.special(s) for s in ("<pad>", "<bos>", "<eos>")]
    return build(BackboneSpec(name, VOCABULARY.text_size, VOCABULARY.size, 64, *special, dropout=dropout), seed=0)


def fit(net, folder, settings=SETTINGS, **more):
    return train(
        net, [corpus(0), corpus(1)], settings, 0, folder, VOCABULARY.special("<pad>"), torch.device("cpu"), **more
    )


def weights(net):
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def interrupt_at(step_wanted):
    def on_step(step, loss):
        if step == step_wanted:
            os.kill(os.getpid(), signal.SIGTERM)  # SIGINT is ignored in background jobs

    return on_step


@pytest.mark.parametrize("name", ["opt-nano", "mamba-nano"])
def test_an_interrupted_training_ends_with_the_same_weights(name, tmp_path):
    whole = model(name)
    fit(whole, tmp_path / "whole")
    first = model(name)
    with pytest.raises(Interrupted):
        fit(first, tmp_path / "cut", on_step=interrupt_at(9))
    torch.manual_seed(12345)  # another process would have another generator
    second = model(name)
    fit(second, tmp_path / "cut")
    assert torch.equal(weights(whole), weights(second))
    logs = [(tmp_path / part / "train.jsonl").read_text().splitlines() for part in ("whole", "cut")]
    assert [line.split('"elapsed_s"')[0] for line in logs[0]] == [line.split('"elapsed_s"')[0] for line in logs[1]]


def test_the_loss_falls(tmp_path):
    seen = []
    fit(
        model(dropout=0.0),
        tmp_path,
        SETTINGS.model_copy(update={"steps": 80}),
        on_step=lambda step, loss: seen.append(loss),
    )
    assert np.mean(seen[-10:]) < 0.6 * np.mean(seen[:10])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    for stop in (8, 16):
        with pytest.raises(Interrupted):
            fit(model(), tmp_path, on_step=interrupt_at(stop))
    newest = sorted((tmp_path / "checkpoints").glob("*.pt"))[-1]
    for damage in (b"", newest.read_bytes()[:-100]):
        newest.write_bytes(damage)
        state = checkpoint.newest(tmp_path / "checkpoints")
        assert state is not None
        assert state.step == 8
        assert newest.name in capsys.readouterr().err


def test_only_two_checkpoints_are_kept(tmp_path):
    fit(model(), tmp_path, SETTINGS.model_copy(update={"steps": 4}), checkpoint_every_s=0.0)
    assert len(list((tmp_path / "checkpoints").glob("*.pt"))) == 2
    checkpoint.clear(tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()


def test_a_loss_that_is_not_a_number_stops_with_a_sentence(tmp_path):
    net = model()
    with torch.no_grad():
        net.get_input_embeddings().weight[:] = float("nan")
    with pytest.raises(UserError, match="the loss became nan at step 0"):
        fit(net, tmp_path)


def test_training_works_outside_the_main_thread(tmp_path):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(fit(model(), tmp_path).steps))
    thread.start()
    thread.join()
    assert ended == [24]


def test_the_learning_rate_warms_up_and_decays():
    settings = TrainSettings(steps=100, warmup_steps=10, lr=1.0, final_lr_ratio=0.1)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
