"""What a model costs, from its dimensions alone: parameters, operations, memory. Imports no torch.

An operation is an addition or a multiplication (a FLOP). Of a training step a token takes, with P weights that are multiplied,
6 P operations (2 forward, 4 backward) and those of its mixing with earlier tokens (Kaplan et al. 2020, arXiv 2001.08361,
table 1); of decoding it takes a third of that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

ADAMW_BYTES = 16  # of a parameter in training: itself, its gradient, and two moments, in fp32
STORED_BYTES = 4.3  # of a number that is kept until the backward pass, with what the allocator wastes; measured
LOGITS_BYTES = 3 * 4 << 24  # the logits of the loss that exist at once, their gradient and a copy (dmlm.model.loss)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model of one family and size costs."""

    width: int
    layers: int
    parameters: int
    head: int  # parameters of the output layer, which are those of the input embeddings
    multiplied: int  # parameters that every token is multiplied with: all but those that are looked up
    mixing: Callable[[float], float]  # operations of a forward pass for a token that attends to so many others
    stored: int  # numbers that training keeps of a token until the backward pass

    def train_operations(self, tokens: float, attended: float, recompute: bool = False) -> float:
        """Return the operations of a training on so many tokens that attend to `attended` others in the mean."""
        again = self.read_operations(tokens, attended) if recompute else 0.0
        return 3 * self.forward_operations(tokens, attended) + again

    def forward_operations(self, tokens: float, attended: float) -> float:
        """Return the operations of a forward pass that predicts what follows each of so many tokens."""
        return tokens * (2 * self.multiplied + self.mixing(attended))

    def read_operations(self, tokens: float, attended: float) -> float:
        """Return the operations of a forward pass without the output layer."""
        return tokens * (2 * (self.multiplied - self.head) + self.mixing(attended))

    def train_bytes(self, tokens: float, recompute: bool = False) -> float:
        """Return the estimated peak memory of a training with so many tokens at once: within a fifth of what fp32 takes."""
        stored = self.layers * self.width + self.stored / self.layers if recompute else self.stored
        return ADAMW_BYTES * self.parameters + STORED_BYTES * stored * tokens + LOGITS_BYTES


def opt(size: Mapping[str, int], vocabulary: int, context: int) -> Cost:
    """Return the cost of an OPT."""
    width, layers, inner = size["hidden_size"], size["num_hidden_layers"], size["ffn_dim"]
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    embeddings = vocabulary * width
    return Cost(
        width=width,
        layers=layers,
        head=embeddings,
        parameters=embeddings + (context + 2) * width + layers * layer + 2 * width,
        multiplied=embeddings + layers * (4 * width * width + 2 * width * inner),
        mixing=lambda attended: 4 * layers * width * attended,
        stored=layers * (12 * width + 2 * inner),
    )


def mamba(size: Mapping[str, int], vocabulary: int, context: int) -> Cost:
    """Return the cost of a Mamba; `context` is not used, as it has no positions."""
    width, layers, states = size["hidden_size"], size["num_hidden_layers"], size["state_size"]
    inner, rank, taps = 2 * width, -(-width // 16), 4
    products = width * 2 * inner + inner * (rank + 2 * states) + rank * inner + inner * width
    layer = products + inner + inner * (taps + 1) + inner * states + inner + width
    return Cost(
        width=width,
        layers=layers,
        head=vocabulary * width,
        parameters=vocabulary * width + layers * layer + width,
        multiplied=vocabulary * width + layers * products,
        mixing=lambda attended: layers * inner * (2 * taps + 6 * states),
        stored=layers * (3 * width + 14 * inner),
    )
