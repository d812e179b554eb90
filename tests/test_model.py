"""Backbones, scan, loss and decoder against independent computations."""

import math

import numpy as np
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, OPTForCausalLM
from transformers.models.mamba import modeling_mamba

from dmlm.errors import UserError
from dmlm.model import backbones, scan
from dmlm.model.backbones import BackboneSpec, build, parameter_count
from dmlm.model.loss import modality_loss, role_weights
from dmlm.model.mamba import reference_scan
from dmlm.model.scan import selective_scan
from dmlm.model.sizes import MAMBA, OPT, check_name
from dmlm.run.decode import greedy
from dmlm.sequence.template import ROLES, UNSCORED, Packed, Template, pack
from dmlm.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary(300, {"A": 40})
CPU = torch.device("cpu")
FAMILIES = ("opt-nano", "mamba-nano")


def tiny(name: str, dropout: float = 0.0, seed: int = 0):
    ids = [VOCABULARY.special(special) for special in ("<pad>", "<bos>", "<eos>")]
    return build(BackboneSpec(name, VOCABULARY.size, 128, *ids, dropout=dropout), seed).eval()


def prompts(lengths):
    rng = np.random.default_rng(0)
    template = Template.parse("A -> T")
    return [pack(template, {"A": rng.integers(0, 40, n)}, VOCABULARY, {}, with_target=False) for n in lengths]


def test_the_loss_is_the_formula_by_hand():
    model = tiny("opt-nano")
    audio, text = ROLES.index("A"), ROLES.index("T")
    ids = torch.tensor([[341, 300, 301, 302, 5, 6, 342], [341, 310, 311, 7, 342, 340, 340]])
    roles = torch.tensor([[-1, audio, audio, audio, text, text, text], [-1, audio, audio, text, text, -1, -1]])
    lambdas = torch.tensor([0.3, 0.5, 0.5, 0.5, 0.7])
    loss, by_modality = modality_loss(model, ids, roles, lambdas)
    logits = model(ids).logits.double().log_softmax(-1)

    def surprise(row, positions):
        return [-logits[row, i - 1, ids[row, i]].item() for i in positions]

    first = 0.3 * np.mean(surprise(0, [1, 2, 3])) + 0.7 * np.mean(surprise(0, [4, 5, 6]))
    second = 0.3 * np.mean(surprise(1, [1, 2])) + 0.7 * np.mean(surprise(1, [3, 4]))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)
    assert by_modality["A"] == pytest.approx(np.mean(surprise(0, [1, 2, 3]) + surprise(1, [1, 2])), rel=1e-5)


def test_length_does_not_weigh_a_modality():
    roles = torch.tensor([[0] * 90 + [4] * 10, [0] * 10 + [4] * 10 + [UNSCORED] * 80])
    weights = role_weights(roles, torch.tensor([0.3, 0.5, 0.5, 0.5, 0.5]))
    for row in (0, 1):
        assert weights[row][roles[row] == 0].sum().item() == pytest.approx(0.3 / 2)
        assert weights[row][roles[row] == 4].sum().item() == pytest.approx(0.5 / 2)
    assert weights[1, 20:].sum() == 0


def test_a_weight_of_zero_takes_a_modality_out():
    model, ids = tiny("opt-nano"), torch.randint(0, 340, (2, 9))
    roles = torch.tensor([[0] * 5 + [4] * 4] * 2)
    _, by_modality = modality_loss(model, ids, roles, torch.tensor([0.0, 0.5, 0.5, 0.5, 0.5]))
    assert set(by_modality) == {"T"}


@pytest.mark.parametrize("name", FAMILIES)
def test_no_position_sees_the_future(name):
    model = tiny(name)
    embedded = model.get_input_embeddings()(torch.randint(0, 300, (1, 12))).detach().requires_grad_()
    model(inputs_embeds=embedded).logits[0, 6].sum().backward()
    reach = embedded.grad[0].abs().sum(-1)
    assert (reach[:7] > 0).all()
    assert (reach[7:] == 0).all()


@pytest.mark.parametrize(("batch", "channels", "length", "states"), [(3, 10, 17, 4), (1, 4, 1, 2), (2, 7, 33, 16)])
def test_the_scan_equals_the_reference_forward_and_backward(batch, channels, length, states):
    torch.manual_seed(0)
    shapes = [(batch, channels, length)] * 2 + [(channels, states)] + [(batch, states, length)] * 2
    shapes += [(channels,), (batch, channels, length), (channels,)]
    values = [torch.randn(shape) for shape in shapes]
    values[2] = -values[2].abs()

    def run(function):
        leaves = [value.clone().requires_grad_() for value in values]
        extra = {"D": leaves[5], "z": leaves[6], "delta_bias": leaves[7], "delta_softplus": True}
        output, last = function(*leaves[:5], return_last_state=True, **extra)
        output.sin().sum().backward()
        return [output.detach(), last.detach(), *(leaf.grad for leaf in leaves)]

    for ours, theirs in zip(run(selective_scan), run(reference_scan), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("step", "chunk"), [(24, 24), (24, 60), (1, 1), (10**6, 48)])
def test_the_scan_is_the_same_in_pieces_and_chunks(monkeypatch, step, chunk):
    torch.manual_seed(0)
    shapes = [(5, 4, 9), (5, 4, 9), (4, 3), (5, 3, 9), (5, 3, 9)]
    values = [torch.randn(shape) for shape in shapes]
    values[1], values[2] = values[1].abs(), -values[2].abs()

    def run():
        leaves = [value.clone().requires_grad_() for value in values]
        output = selective_scan(*leaves)
        output.sin().sum().backward()
        return [output.detach(), *(leaf.grad for leaf in leaves)]

    whole = run()
    monkeypatch.setattr(scan, "STEP", step)
    monkeypatch.setattr(scan, "CHUNK", chunk)
    for parts, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(parts, expected)


def test_mamba_equals_the_stock_class_of_transformers():
    model = tiny("mamba-nano")
    ids = torch.randint(0, 300, (2, 30))
    ours = model(ids).logits
    stock = MambaForCausalLM(MambaConfig(**{**model.config.to_dict(), "use_mambapy": False})).eval()
    stock.load_state_dict(model.state_dict())
    chosen = modeling_mamba.mamba_selective_scan
    modeling_mamba.mamba_selective_scan = reference_scan
    try:
        torch.testing.assert_close(ours, stock(ids).logits, rtol=1e-4, atol=1e-5)
    finally:
        modeling_mamba.mamba_selective_scan = chosen


@pytest.mark.parametrize("name", FAMILIES)
def test_a_padded_batch_equals_single_items(name):
    model, items = tiny(name), prompts([3, 17, 9, 30])
    together = greedy(model, items, VOCABULARY, 12, CPU)
    alone = [greedy(model, [item], VOCABULARY, 12, CPU)[0] for item in items]
    assert [a.tolist() for a in together] == [a.tolist() for a in alone]
    assert sum(map(len, together)) > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_cached_decoding_equals_the_full_forward_pass(name):
    model, item = tiny(name, seed=1), prompts([11])[0]
    written = greedy(model, [item], VOCABULARY, 10, CPU)[0]
    ids = torch.from_numpy(item.ids)[None]
    for step in range(10):
        logits = model(ids).logits[0, -1]
        logits[VOCABULARY.text_size :] = -math.inf
        logits[VOCABULARY.special("<eos>")] = model(ids).logits[0, -1, VOCABULARY.special("<eos>")]
        best = int(logits.argmax())
        if best == VOCABULARY.special("<eos>"):
            assert len(written) == step
            return
        assert written[step] == best
        ids = torch.cat([ids, torch.tensor([[best]])], dim=1)
    assert len(written) == 10


@pytest.mark.parametrize("name", FAMILIES)
def test_only_text_is_ever_written(name):
    for answer in greedy(tiny(name), prompts([5, 6]), VOCABULARY, 20, CPU):
        assert all(0 <= token < VOCABULARY.text_size for token in answer)


@pytest.mark.parametrize(("opt", "mamba"), [("opt-nano", "mamba-nano"), ("opt-tiny", "mamba-tiny")])
def test_the_families_have_equal_sizes(opt, mamba):
    counts = [parameter_count(tiny(name), embeddings=False) for name in (opt, mamba)]
    assert counts[0] == pytest.approx(counts[1], rel=0.05 if opt == "opt-tiny" else 0.15)


def test_published_sizes_have_the_published_dimensions():
    """facebook/opt-125m config.json; state-spaces/mamba-130m config.json (d_model 768, n_layer 24)."""
    assert OPT["opt-125m"] == {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072}
    assert MAMBA["mamba-130m"] == {"hidden_size": 768, "num_hidden_layers": 24, "state_size": 16}


def test_equal_seeds_give_equal_weights():
    first, again, other = (tiny("opt-nano", seed=seed) for seed in (0, 0, 1))
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_structured_start_keeps_the_geometry_of_a_codebook():
    model = tiny("opt-nano")
    points = np.random.default_rng(0).standard_normal((40, 26)).astype(np.float32)
    before = model.get_input_embeddings().weight[:300].clone()
    backbones.structured_start(model, {300: points}, seed=0)
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


def test_packed_prompts_are_left_padded_without_effect_on_order():
    items = prompts([20, 4])
    assert isinstance(items[0], Packed)
    forwards = greedy(tiny("opt-nano"), items, VOCABULARY, 6, CPU)
    backwards = greedy(tiny("opt-nano"), items[::-1], VOCABULARY, 6, CPU)
    assert [a.tolist() for a in forwards] == [a.tolist() for a in backwards[::-1]]
