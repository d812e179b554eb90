"""What reaches the model in training: noise draws, loss weights, masks, dropout, clipping, clocks, and where it starts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_corpus import in_this_process, small_cell, write_tones
from small_models import tiny
from training_here import train_here

from dmlm.engines.lease import Leases
from dmlm.model.backbones import family, load
from dmlm.model.layout import Layout
from dmlm.sequence.batches import stream
from dmlm.sequence.template import Template, pack, unpack
from dmlm.sweep.materials import prepare
from dmlm.sweep.train_trial import packed_draws, train_trial
from dmlm.sweep.trial import trial_of
from dmlm.tokens.vocabulary import Vocabulary
from dmlm.training.settings import Lambdas, TrainSettings

VOCABULARY = Vocabulary(270, {"A": 12, "L": 10, "I": 8})  # fits into that of `tiny`
STILL = TrainSettings(steps=6, batch_size=4, lr=1e-30, warmup_steps=0, dropout=0.0)  # the weights stay as they are
MOVING = replace(STILL, lr=3e-3)


def items(count: int, notation: str = "A -> T", seed: int = 0, length: int = 20):
    """Sequences of random tokens."""
    rng = np.random.default_rng(seed)
    sizes = VOCABULARY.sizes | {"T": 200}
    streams = [{letter: rng.integers(0, size, length) for letter, size in sizes.items()} for _ in range(count)]
    return [pack(Template.parse(notation), each, VOCABULARY, {"A": 50.0, "L": 25.0}) for each in streams]


def losses(draws, settings, folder, model=None, **more):
    """The loss of every step."""
    seen: list[float] = []
    model = model or tiny("opt-nano", settings.dropout)
    pad = VOCABULARY.special("<pad>")
    train_here(model, draws, settings, folder, pad, on_step=lambda step, loss: seen.append(loss), **more)
    return seen


@pytest.fixture
def trial_and_materials(tmp_path, monkeypatch):
    """A function: a cell with its tokens, ready to be trained."""
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    write_tones(tmp_path / "tones")

    def made(**changes):
        cell = small_cell(tmp_path / "tones", **changes)
        (materials,) = prepare([cell], run=in_this_process)
        return trial_of(cell, materials, cell.template), materials

    return made


def test_each_draw_of_the_training_set_is_heard_in_other_noise(trial_and_materials):
    trial, materials = trial_and_materials()
    first, second = packed_draws(trial, materials)
    vocabulary, template = materials.vocabulary(("A",)), Template.parse("A -> T")
    pairs = [[unpack(item, template, vocabulary) for item in pair] for pair in zip(first, second, strict=True)]
    assert all(np.array_equal(one["T"], other["T"]) for one, other in pairs)
    assert sum(not np.array_equal(one["A"], other["A"]) for one, other in pairs) > len(pairs) / 2


def test_every_epoch_reads_the_next_draw(tmp_path):
    """Eight items in batches of four: two steps an epoch."""
    first, second = items(8, seed=0), items(8, seed=1)
    both, only_first, only_second = (
        losses(draws, STILL, tmp_path / str(number))
        for number, draws in enumerate([[first, second], [first, first], [second, second]])
    )
    assert both == only_first[:2] + only_second[2:4] + only_first[4:]
    assert not set(only_first) & set(only_second)


@pytest.mark.parametrize("silenced", ["A", "L", "I"])
def test_a_loss_weight_belongs_to_the_modality_of_its_name(silenced, tmp_path):
    lambdas = Lambdas(**{"A": 0.2, "L": 0.3, "I": 0.4, silenced: 0.0})
    settings = replace(STILL, lambdas=lambdas, batch_size=1, steps=1)
    (loss,) = losses([items(1, "A+L+I -> T")], settings, tmp_path)
    (line,) = (tmp_path / "train.jsonl").read_text().splitlines()
    means = json.loads(line)["loss_by_modality"]
    assert set(means) == set("ALIT") - {silenced}
    assert loss == pytest.approx(sum(getattr(lambdas, letter) * mean for letter, mean in means.items()), abs=1e-4)


def test_every_step_hides_other_tokens_of_the_prompt(tmp_path):
    """One sequence over and over: without a mask every step has the same loss."""
    draws = [items(1) * 8]
    assert len(set(losses(draws, STILL, tmp_path / "plain"))) == 1
    masked = replace(STILL, input_mask=0.3, batch_size=1)
    assert len(set(losses(draws, masked, tmp_path / "masked"))) == STILL.steps


def test_dropout_is_active_in_training_and_in_no_other_use(tmp_path):
    model, ids = tiny("opt-nano", dropout=0.3), torch.arange(20)
    dropping = replace(STILL, dropout=0.3)
    assert len(set(losses([items(1) * 8], dropping, tmp_path, model))) == STILL.steps
    in_training = [family(model).hidden_states(model.train(), ids, Layout([20])) for _ in range(2)]
    assert not torch.equal(*in_training)
    otherwise = [family(model).hidden_states(model.eval(), ids, Layout([20])) for _ in range(2)]
    assert torch.equal(*otherwise)


def test_no_gradient_is_longer_than_the_clip_norm(tmp_path):
    model = tiny("opt-nano")
    lengths = []

    def measure(step, loss):
        parts = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
        lengths.append(torch.stack(parts).norm().item())

    settings = replace(MOVING, clip_norm=1e-3)
    train_here(model, [items(8)], settings, tmp_path, VOCABULARY.special("<pad>"), on_step=measure)
    assert lengths == pytest.approx([1e-3] * settings.steps, rel=1e-3)


def test_interleaved_streams_keep_their_own_clocks():
    """Audio at 50 Hz is in its middle at 10, 30, 50, 70 ms; lips at 25 Hz at 20, 60 ms."""
    streams = {"A": np.array([1, 2, 3, 4]), "L": np.array([5, 6]), "T": np.array([7])}
    rates_hz = {"A": 50.0, "L": 25.0}
    for notation, tags in (("interleave(A,L) -> T", "AL"), ("interleave(L,A) -> T", "LA")):
        packed = pack(Template.parse(notation), streams, VOCABULARY, rates_hz)
        audio, lips = VOCABULARY.offset("A"), VOCABULARY.offset("L")
        assert packed.ids.tolist() == [
            VOCABULARY.special("<bos>"),
            *(VOCABULARY.special(f"<{letter}>") for letter in tags),
            *(audio + 1, lips + 5, audio + 2, audio + 3, lips + 6, audio + 4),
            *(VOCABULARY.special("<T>"), 7, VOCABULARY.special("<eos>")),
        ]


def test_every_epoch_has_other_batches():
    batches = stream(np.full(64, 9), 8, seed=0)
    epochs: list[list[frozenset[int]]] = [[], [], []]
    for _ in range(8 * len(epochs)):
        epoch, indices = next(batches)
        epochs[epoch].append(frozenset(indices.tolist()))
    assert [len(epoch) for epoch in epochs] == [8, 8, 8]
    assert not set(epochs[0]) & set(epochs[1])
    assert not set(epochs[1]) & set(epochs[2])


def trained(trial, materials):
    """The model that a training leaves whose learning rate is too small to move it."""
    with Leases().hold(trial.folder / "train.lease"):
        train_trial(trial, materials, 60.0)
    return load(trial.folder / "model")


def likeness(points, others) -> float:
    """Correlation of the distances between points and those between others."""
    pairs = np.triu_indices(len(points), 1)
    return float(np.corrcoef(*(torch.cdist(x, x).numpy()[pairs] for x in map(torch.as_tensor, (points, others))))[0, 1])


@pytest.mark.parametrize("start", ["structured", "random"])
def test_a_structured_start_puts_every_unit_at_its_own_centroid(start, trial_and_materials):
    trial, materials = trial_and_materials(model={"context": 128, "start": start})
    model, units = trained(trial, materials), materials.vocabulary(("A",)).range("A")
    centroids = materials.sources["A"].encoder.codebook.centroids
    table = model.get_input_embeddings().weight.detach()
    positions = model.model.decoder.embed_positions.weight
    near, far = (torch.dist(positions[50], positions[50 + step]).item() for step in (1, 20))
    structured = start == "structured"
    assert (likeness(centroids, table[units.start : units.stop]) > 0.9) == structured
    assert (near < 0.5 * far) == structured
