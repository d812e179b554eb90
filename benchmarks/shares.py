"""Training as a share of plain matrix products: the time of the products of a step, alone, over the time of the step.

The products of a few steps are recorded, forward and backward, and repeated with random numbers of the same shapes and
precision. Causal attention counts as the products of its lower half. What is left of a step is attention's softmax, norms,
the scan of Mamba, the loss, the optimiser, and the time between operations.

    python benchmarks/shares.py                    # sizes tiny and mini, fp32 and, if the CPU multiplies it, bf16
    python benchmarks/shares.py "opt-125m 8 fp32"  # minutes on a CPU
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import training
from harness import alternate, device, model, random_sequences, record, row, seconds
from torch.utils._python_dispatch import TorchDispatchMode

from dmlm.model.precision import fast_bf16

TARGETS = {"tiny": 0.5, "mini": 0.7, "125m": 0.8, "130m": 0.8}
Product = tuple[
    str, tuple[tuple[int, ...], ...], torch.dtype
]  # name of the operation, shapes of both factors, precision


class Products(TorchDispatchMode):
    """Records the matrix products that run inside it, and how often each."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Product] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            factors = args[1:3] if "add" in name else args
            # a transposed factor is repeated transposed: its memory is laid out as (columns, rows)
            shapes = tuple((*f.shape, int(f.stride(-1) != 1)) for f in factors)
            self.counts["bmm" if "bmm" in name else "mm", shapes, factors[0].dtype] += 1
        elif "scaled_dot_product" in name:
            q = args[1] if "backward" in name else args[0]
            *batch, length, width = q.shape
            rows = (int(torch.Size(batch).numel()),)
            scores, values = (*rows, length, width, 0), (*rows, width, length, 1)
            # forward: scores and their product with the values; backward: scores again, and four more
            self.counts["half", (scores, values), q.dtype] += 5 if "backward" in name else 2
        return function(*args, **(kwargs or {}))


def operations(counts: Counter[Product]) -> float:
    """Return the number of additions and multiplications of the products; masked halves are not counted."""
    total = 0.0
    for (kind, (left, right), _), count in counts.items():
        batch = left[0] if kind != "mm" else 1
        total += count * 2 * batch * left[-3] * left[-2] * right[-2] * (0.5 if kind == "half" else 1)
    return total


def repeated(counts: Counter[Product]) -> Callable[[], None]:
    """Return a function that computes the products."""
    jobs: list[tuple[Any, Any, Any, int]] = []
    for (kind, (left, right), dtype), count in counts.items():
        a, b = _factor(left, dtype), _factor(right, dtype)
        if kind == "half":  # every other product is left out: half of the scores are masked
            kind, count = "bmm", count / 2
        jobs.append((torch.bmm if kind == "bmm" else torch.mm, a, b, count))

    def run() -> None:
        for product, a, b, count in jobs:
            for _ in range(int(count)):
                product(a, b)
            if count % 1:
                product(a[: max(1, len(a) // 2)], b[: max(1, len(b) // 2)] if a.dim() == 3 else b)

    return run


def _factor(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    *sizes, transposed = shape
    if transposed:
        sizes[-1], sizes[-2] = sizes[-2], sizes[-1]
    tensor = torch.randn(*sizes, device=device()).to(dtype)
    return tensor.transpose(-1, -2) if transposed else tensor


def products_of(case: str) -> Counter[Product]:
    """Return the products of the timed steps of a training."""
    products = Products()
    with products:
        _train(case, on_warm=products.counts.clear)
    return products.counts


def _train(case: str, **more: Any) -> float:
    """Train a few steps; return the seconds."""
    name, batch, precision = case.split()
    vocabulary, steps = training.SIZES[name]
    sequences, net = random_sequences(vocabulary, 1024), model(name, vocabulary)
    return training.steps_of(net, sequences, vocabulary, int(batch), steps, precision=precision, **more)[1]


def contestant(side: str, case: str) -> Callable[[], float]:
    """Return a function that measures milliseconds a step: of training, or of its products alone."""
    steps = training.SIZES[case.split()[0]][1]
    if side == "ours":
        return lambda: 1e3 * _train(case) / steps
    run = repeated(products_of(case))
    return lambda: 1e3 * seconds(run) / steps


def cases() -> Iterator[str]:
    """Yield the default cases."""
    for name in ("opt-tiny", "mamba-tiny", "opt-mini", "mamba-mini"):
        for precision in ("fp32", *(["bf16"] if fast_bf16(device()) else [])):
            yield f"{name} 16 {precision}"


def main() -> None:
    """Measure the cases given on the command line, or the default ones."""
    for case in sys.argv[1:] or cases():
        name, batch, precision = case.split()
        step_ms, products_ms = alternate(__file__, case, rounds=5 if name.endswith(("tiny", "mini")) else 2)
        title = f"training step of {name}, batches of {batch}, {precision}, against its matrix products alone"
        record([row(title, step_ms, products_ms, "ms", TARGETS.get(name.partition("-")[2]))])


if __name__ == "__main__":
    main()
