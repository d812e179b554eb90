"""The weighted loss against a computation by hand, and its chunks against autograd."""

import numpy as np
import pytest
import torch
from small_models import FAMILIES, tiny

from dmlm.model import loss as loss_module
from dmlm.model.layout import Layout
from dmlm.model.loss import modality_loss, role_weights
from dmlm.sequence.template import ROLES

LAMBDAS = torch.tensor([0.3, 0.5, 0.5, 0.5, 0.7])
A, T = ROLES.index("A"), ROLES.index("T")


def batch():
    ids = torch.tensor([341, 300, 301, 302, 5, 6, 342, 341, 310, 311, 7, 342])
    roles = torch.tensor([-1, A, A, A, T, T, T, -1, A, A, T, T])
    return ids, roles, Layout([7, 5])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_is_the_formula_by_hand(name):
    model = tiny(name)
    ids, roles, layout = batch()
    loss, sums = modality_loss(model, ids, roles, layout, LAMBDAS)

    def surprise(part, positions):
        log_p = model(part.unsqueeze(0)).logits[0].double().log_softmax(-1)
        return [-log_p[i - 1, part[i]].item() for i in positions]

    first = 0.3 * np.mean(surprise(ids[:7], [1, 2, 3])) + 0.7 * np.mean(surprise(ids[:7], [4, 5, 6]))
    second = 0.3 * np.mean(surprise(ids[7:], [1, 2])) + 0.7 * np.mean(surprise(ids[7:], [3, 4]))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)
    assert sums[1].tolist() == [5, 0, 0, 0, 5]
    assert sums[0, A].item() == pytest.approx(sum(surprise(ids[:7], [1, 2, 3]) + surprise(ids[7:], [1, 2])), rel=1e-5)


@pytest.mark.parametrize("logits", [1, 700, 1 << 24])
def test_the_gradient_is_that_of_whole_logits(logits, monkeypatch):
    monkeypatch.setattr(loss_module, "MAX_LOGITS", logits)
    model = tiny("opt-nano")
    ids, roles, layout = batch()
    modality_loss(model, ids, roles, layout, LAMBDAS)[0].mul(3).backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    weights = role_weights(roles, layout, LAMBDAS)
    for part, weight in zip(ids.split([7, 5]), weights.split([7, 5]), strict=True):
        log_p = model(part.unsqueeze(0)).logits[0, :-1].log_softmax(-1)
        (-3 * (weight[1:] * log_p.gather(1, part[1:, None]).squeeze(1)).sum()).backward()
    for got, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_part_without_weight_has_no_loss_and_no_gradient():
    model = tiny("opt-nano")
    ids, roles, layout = batch()
    loss, sums = modality_loss(model, ids, roles, layout, torch.zeros_like(LAMBDAS))
    loss.backward()
    assert loss.item() == 0
    assert not sums.any()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_parts_of_a_batch_add_up_to_it():
    model = tiny("mamba-nano")
    ids, roles, layout = batch()
    total, _ = modality_loss(model, ids, roles, layout, LAMBDAS)
    halves = [
        modality_loss(model, i, r, Layout([len(i)]), LAMBDAS, batch_size=2)[0].item()
        for i, r in zip(ids.split([7, 5]), roles.split([7, 5]), strict=True)
    ]
    assert sum(halves) == pytest.approx(total.item(), rel=1e-6)


def test_length_does_not_weigh_a_modality():
    layout = Layout([100, 20])
    weights = role_weights(torch.tensor([A] * 90 + [T] * 10 + [A] * 10 + [T] * 10), layout, LAMBDAS)
    roles = torch.tensor([A] * 90 + [T] * 10 + [A] * 10 + [T] * 10)
    for part in (slice(0, 100), slice(100, 120)):
        assert weights[part][roles[part] == A].sum().item() == pytest.approx(0.3 / 2)
        assert weights[part][roles[part] == T].sum().item() == pytest.approx(0.7 / 2)


def test_a_weight_of_zero_takes_a_modality_out():
    ids, roles, layout = batch()
    _, sums = modality_loss(tiny("opt-nano"), ids, roles, layout, torch.tensor([0.0, 0.5, 0.5, 0.5, 0.5]))
    assert sums[1].tolist() == [0, 0, 0, 0, 5]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_small_weights(kind):
    """In a long batch, weights of 1e-6 times probabilities of 1e-3 would underflow in fp16."""
    model = tiny("opt-nano")
    ids, roles, layout = batch()
    exact, half = [], []
    for gradients, kinds in ((exact, None), (half, kind)):
        model.zero_grad()
        with torch.autocast("cpu", kinds or torch.bfloat16, enabled=kinds is not None):
            loss, _ = modality_loss(model, ids, roles, layout, LAMBDAS, batch_size=10**6)
        loss.mul(1024.0).backward()  # as a gradient scaler does
        gradients.append(model.get_input_embeddings().weight.grad.clone())
    assert (half[0] - exact[0]).norm() < 0.05 * exact[0].norm()
