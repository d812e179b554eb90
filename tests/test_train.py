"""The training loop: it learns, it resumes exactly, and it survives what happens to files."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from training_here import train_here

from dmlm.errors import UserError
from dmlm.model.backbones import build
from dmlm.model.family import BackboneSpec
from dmlm.sequence.template import Template, pack
from dmlm.tokens.vocabulary import Vocabulary
from dmlm.training import checkpoint
from dmlm.training.loop import learning_rate
from dmlm.training.settings import Execution, TrainSettings
from dmlm.training.stop_requests import Interrupted

ROOT = Path(__file__).resolve().parent.parent
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
    return train_here(net, [corpus(0), corpus(1)], settings, folder, VOCABULARY.special("<pad>"), **more)


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
        replace(SETTINGS, steps=80),
        on_step=lambda step, loss: seen.append(loss),
    )
    assert np.mean(seen[-10:]) < 0.6 * np.mean(seen[:10])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    for stop in (8, 16):
        with pytest.raises(Interrupted):
            fit(model(), tmp_path, on_step=interrupt_at(stop))
    newest = sorted((tmp_path / "checkpoints").glob("*.pt"))[-1]
    whole = newest.read_bytes()
    flipped = whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]
    for damage in (b"", whole[:-100], flipped):
        newest.write_bytes(damage)
        state = checkpoint.newest(tmp_path / "checkpoints")
        assert state is not None
        assert state.step == 8
        assert newest.name in capsys.readouterr().err


def test_only_two_checkpoints_are_kept(tmp_path):
    fit(model(), tmp_path, replace(SETTINGS, steps=4), checkpoint_every_s=0.0)
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


PROGRAM = """
import json, sys
from pathlib import Path
from tests.test_train import in_sevens
from dmlm.training.peers import Peers
found = in_sevens(Path(sys.argv[1]))
if Peers.join().first:
    print(json.dumps(found))
"""


def in_sevens(folder):
    """Losses, and the sum of the weights, with batches of 7: the last of an epoch has 5 items, so the shares differ."""
    losses, net = [], model(dropout=0.0)
    fit(net, folder, replace(SETTINGS, batch_size=7), on_step=lambda step, loss: losses.append(loss))
    return {"losses": losses, "weights": weights(net).double().sum().item()}


def test_two_processes_train_the_model_that_one_trains(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    one = in_sevens(tmp_path / "one")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, str(program), str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads(done.stdout)
    for name in ("one", "two"):
        assert len((tmp_path / name / "train.jsonl").read_text().splitlines()) == 3
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-3)


def test_a_batch_in_parts_trains_the_same_model(tmp_path):
    whole, parts = model(dropout=0.0), model(dropout=0.0)
    losses: list[list[float]] = [[], []]
    fit(whole, tmp_path / "whole", on_step=lambda step, loss: losses[0].append(loss))
    execution = Execution(micro_tokens=25, recompute=True)
    fit(parts, tmp_path / "parts", execution=execution, on_step=lambda step, loss: losses[1].append(loss))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["opt-nano", "mamba-nano"])
def test_half_precision_learns_too(name, tmp_path):
    seen = []
    settings = replace(SETTINGS, steps=60, precision="bf16", dropout=0.0)
    net = model(name, dropout=0.0)
    fit(net, tmp_path, settings, on_step=lambda step, loss: seen.append(loss))
    assert np.mean(seen[-10:]) < 0.7 * np.mean(seen[:5])
    assert {p.dtype for p in net.parameters()} == {torch.float32}
