"""The cost of a model from its dimensions against the model itself."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dmlm.model import backbones
from dmlm.model.family import SIZES, BackboneSpec

VOCABULARY, CONTEXT = 1000, 96


def built(name: str):
    with torch.device("meta"):
        return backbones.build(BackboneSpec(name, 900, VOCABULARY, CONTEXT, 997, 998, 999), seed=0)


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_those_of_the_model(name):
    cost = SIZES[name].cost(SIZES[name].sizes[name], VOCABULARY, CONTEXT)
    assert cost.parameters == backbones.parameter_count(built(name))


@pytest.mark.parametrize("name", ["opt-nano", "opt-tiny", "mamba-nano"])
def test_operations_are_those_that_pytorch_counts(name):
    """In the matrix products of a forward pass; of attention, PyTorch counts masked scores too, twice the causal ones."""
    cost, net, length = SIZES[name].cost(SIZES[name].sizes[name], VOCABULARY, CONTEXT), built(name).eval(), 64
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(input_ids=ids, use_cache=False)
    expected = length * 2 * cost.multiplied
    if name.startswith("opt"):
        assert counter.get_total_flops() == pytest.approx(cost.forward_operations(length, length), rel=0.01)
    else:
        assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)
    assert cost.train_operations(length, 32) == 3 * cost.forward_operations(length, 32)
