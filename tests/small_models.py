"""Small models and prompts that several tests share."""

import numpy as np
import torch

from dmlm.model.backbones import build
from dmlm.model.family import BackboneSpec
from dmlm.sequence.template import Template, pack
from dmlm.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary(300, {"A": 40})
CPU = torch.device("cpu")
FAMILIES = ("opt-nano", "mamba-nano")


def tiny(name: str, dropout: float = 0.0, seed: int = 0):
    ids = [VOCABULARY.special(special) for special in ("<pad>", "<bos>", "<eos>")]
    return build(BackboneSpec(name, VOCABULARY.text_size, VOCABULARY.size, 128, *ids, dropout=dropout), seed).eval()


def prompts(lengths, seed: int = 0):
    rng = np.random.default_rng(seed)
    template = Template.parse("A -> T")
    return [pack(template, {"A": rng.integers(0, 40, n)}, VOCABULARY, {}, with_target=False) for n in lengths]
