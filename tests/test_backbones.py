"""The fast paths of both families against the stock classes of transformers, which hold the same weights."""

import numpy as np
import pytest
import torch
from small_models import FAMILIES, tiny
from transformers import OPTConfig, OPTForCausalLM

from dmlm.errors import UserError
from dmlm.model import backbones
from dmlm.model.backbones import family, parameter_count
from dmlm.model.family import MAMBA, OPT, check_name
from dmlm.model.layout import Layout

LENGTHS = [5, 17, 1, 9]


def stock(model, ids):
    """Hidden states of one sequence, by transformers' own forward pass."""
    return model.base_model(input_ids=ids.unsqueeze(0)).last_hidden_state[0]


def sequences(lengths=LENGTHS, seed=0):
    return list(torch.randint(0, 290, (sum(lengths),), generator=torch.Generator().manual_seed(seed)).split(lengths))


def gradients(model, hidden):
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    parameters = [p for n, p in model.base_model.named_parameters() if "k_proj.bias" not in n]  # these have none
    return torch.autograd.grad((hidden * weights).sum(), parameters, allow_unused=True)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_flat_batch_equals_single_items_of_the_stock_class(name, recompute):
    model, parts = tiny(name).train(), sequences()
    ours = family(model).hidden_states(model, torch.cat(parts), Layout(LENGTHS), recompute)
    theirs = torch.cat([stock(model, part) for part in parts])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for got, wanted in zip(gradients(model, ours), gradients(model, theirs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "shape",
    [
        {"do_layer_norm_before": False, "word_embed_proj_dim": 32},  # as in facebook/opt-350m
        {"enable_bias": False, "activation_function": "gelu"},  # as in Galactica
    ],
)
def test_every_kind_of_opt_is_read_as_the_stock_class_reads_it(shape):
    torch.manual_seed(0)
    config = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 96}
    model = OPTForCausalLM(OPTConfig(**config, max_position_embeddings=64, dropout=0.0, **shape)).eval()
    parts = sequences()
    ours = family(model).hidden_states(model, torch.cat(parts), Layout(LENGTHS))
    torch.testing.assert_close(ours, torch.cat([stock(model, part) for part in parts]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_extended_in_pieces_equals_the_whole_sequence(name):
    model = tiny(name)
    read, parts = family(model), sequences()
    cache = read.Cache(model, len(parts), 40)
    for lengths, seed in ((LENGTHS, 0), ([3, 2, 6, 1], 2)):
        more = sequences(lengths, seed)
        parts = more if seed == 0 else [torch.cat(pair) for pair in zip(parts, more, strict=True)]
        hidden = read.extend(model, torch.cat(more), Layout(lengths), cache)
        torch.testing.assert_close(hidden, torch.stack([stock(model, p)[-1] for p in parts]), rtol=1e-4, atol=1e-5)
    rows = torch.tensor([2, 0, 0, 3])
    cache.select(rows)
    parts = [parts[i] for i in rows]
    for seed in (3, 4, 5):
        token = torch.cat(sequences([1, 1, 1, 1], seed))
        hidden = read.step(model, token, cache)
        parts = [torch.cat([part, new.unsqueeze(0)]) for part, new in zip(parts, token, strict=True)]
        torch.testing.assert_close(hidden, torch.stack([stock(model, p)[-1] for p in parts]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_sequence_sees_the_future_or_its_neighbours(name):
    """All tokens are different, so the gradient of an embedding tells whether its token was seen."""
    model = tiny(name)
    hidden = family(model).hidden_states(model, torch.arange(10, 35), Layout([8, 12, 5]))
    (hidden[8 + 6] * torch.randn(hidden.shape[1])).sum().backward()
    seen = model.get_input_embeddings().weight.grad.abs().sum(-1) > 0
    assert seen.nonzero().squeeze(1).tolist() == list(range(18, 25))


@pytest.mark.parametrize("lengths", [[1], [4], [2, 7, 7, 1], [3] * 5])
def test_a_layout_moves_rows_there_and_back(lengths):
    layout, rows = Layout(lengths), torch.randn(sum(lengths), 3, requires_grad=True)
    padded = layout.pad(rows)
    assert padded.shape == (max(lengths), len(lengths), 3)
    for column, part in enumerate(rows.split(lengths)):
        assert torch.equal(padded[: len(part), column], part)
        assert not padded[len(part) :, column].any()
    assert torch.equal(layout.token_mask(), padded.abs().sum(-1) > 0)
    back = layout.unpad(padded)
    assert torch.equal(back, rows)
    (back * torch.arange(rows.numel()).view_as(rows)).sum().backward()
    assert torch.equal(rows.grad, torch.arange(rows.numel(), dtype=torch.float32).view_as(rows))


@pytest.mark.parametrize(("opt", "mamba"), [("opt-nano", "mamba-nano"), ("opt-tiny", "mamba-tiny")])
def test_the_families_have_equal_sizes(opt, mamba):
    counts = [parameter_count(tiny(name), embeddings=False) for name in (opt, mamba)]
    assert counts[0] == pytest.approx(counts[1], rel=0.05 if opt == "opt-tiny" else 0.15)


def test_published_sizes_have_the_published_dimensions():
    """facebook/opt-125m config.json; state-spaces/mamba-130m config.json (d_model 768, n_layer 24)."""
    assert OPT.sizes["opt-125m"] == {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "ffn_dim": 3072,
    }
    assert MAMBA.sizes["mamba-130m"] == {"hidden_size": 768, "num_hidden_layers": 24, "state_size": 16}


def test_equal_seeds_give_equal_weights():
    first, again, other = (tiny("opt-nano", seed=seed) for seed in (0, 0, 1))
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_structured_start_keeps_the_geometry_of_a_codebook():
    model = tiny("opt-nano")
    points = np.random.default_rng(0).standard_normal((40, 26)).astype(np.float32)
    before = model.get_input_embeddings().weight[:300].clone()
    backbones.start_at_sinusoids(model)
    backbones.start_at_centroids(model, {300: points}, seed=0)
    table = model.get_input_embeddings().weight
    distances = [torch.cdist(x, x).flatten() for x in (torch.from_numpy(points), table[300:340].detach())]
    assert np.corrcoef(*(d.numpy() for d in distances))[0, 1] > 0.8
    assert torch.equal(table[:300], before)
    assert isinstance(model, OPTForCausalLM)
    positions = model.model.decoder.embed_positions.weight
    near, far = (torch.dist(positions[50], positions[50 + step]).item() for step in (1, 20))
    assert near < far


def test_an_unknown_backbone_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'opt-tiny'"):
        check_name("opt-tinny")
