"""Is it fast? The rows of docs/performance.md that need a GPU: every comparison of `benchmarks/` in one process."""

import functools
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import length
import mamba_step
import memory
import shares
import torch
import training
from decoding import contestant as decoding_contestant
from gpu.steps import LeftOut, Row, Step, fact
from harness import FULL, VOCABULARY, device, model, random_sequences, row, seconds, synchronise

from dmlm.errors import OutOfMemory
from dmlm.model import backbones
from dmlm.model.layout import Layout
from dmlm.model.loss import modality_loss
from dmlm.sequence.template import ROLES

Contestant = Callable[[str, str], Callable[[], float]]
TINY, LARGE = ("opt-tiny", "mamba-tiny"), ("opt-125m", "mamba-130m")


def in_turns(contestant: Contestant, case: str, sides: Sequence[str], rounds: int) -> list[float]:
    """Return the median of each side over rounds in which they take turns, after one round that does not count."""
    contestants = [contestant(side, case) for side in sides]
    values = [[measure() for measure in contestants] for _ in range(rounds + 1)][1:]
    return [statistics.median(column) for column in zip(*values, strict=True)]


def _highest(dtype: torch.dtype, size: int) -> float:
    """Return the highest speed of products of square matrices up to this size, in operations a second."""
    best = 0.0
    for side in {max(256, size // 4), max(256, size // 2), size}:
        a, b = torch.randn(2, side, side, device=device()).to(dtype)
        started = time.monotonic()
        while size > 256 and time.monotonic() - started < 0.5:  # the clock of an idle GPU is low
            seconds(lambda a=a, b=b: a @ b)
        best = max(best, *(2 * side**3 / seconds(lambda a=a, b=b: a @ b) for _ in range(20)))
    return best


def peaks(toy: bool) -> Iterator[Row]:
    """The highest speed of matrix products, and of copies in memory."""
    for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, False), (torch.float32, True)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        best = _highest(dtype, 256 if toy else 8192)
        name = "TF32" if tf32 else str(dtype).removeprefix("torch.")
        yield row(f"matrix products, {name}", best / 1e12, None, "TFLOP/s", None)
    source = torch.empty(2**20 if toy else 2**30, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    moved = max(2 * len(source) / seconds(lambda: target.copy_(source)) for _ in range(6))
    yield row("copies in memory, read and written", moved / 1e9, None, "GB/s", None)


def trainings(toy: bool) -> Iterator[Row]:
    """Training against the Trainer of transformers, and tokens a second without it where it is missing."""
    has_trainer = importlib.util.find_spec("accelerate") is not None
    cases = ("opt-tiny 16", "opt-mini 16", "opt-125m 4", "opt-125m 16", "mamba-130m 4", "mamba-tiny 16")
    for case in ("opt-tiny 2",) if toy else cases:
        name, batch = case.split()
        slow = name.startswith("mamba")  # its loop over time, without kernels, takes seconds a step
        sides = ["ours", *(["theirs"] if has_trainer and not (slow and name != "mamba-tiny") else [])]
        contestant: Contestant = functools.partial(_training, toy=toy)
        ours, *theirs = in_turns(contestant, case, sides, rounds=1 if toy or slow else 3)
        note = "" if len(theirs) else "accelerate is not installed" if not has_trainer else "their loop is too slow"
        title = f"training {name}, batches of {batch}, against Trainer"
        yield row(title, ours, theirs[0] if theirs else None, "tokens/s", None, note)


def _training(side: str, case: str, toy: bool) -> Callable[[], float]:
    """Return `training.contestant`, with few steps at toy size and for the loop of Mamba without kernels."""
    if not toy and (side == "ours" or not case.startswith("mamba")):
        return training.contestant(side, case)
    name, batch = case.split()
    vocabulary, net = VOCABULARY, model(name, VOCABULARY)
    measure: Any = training.ours if side == "ours" else training.theirs
    return lambda: float(measure(net, random_sequences(vocabulary, 64), vocabulary, int(batch), 2, warm=1))


def share_of_products(toy: bool) -> Iterator[Row]:
    """A training step against its matrix products alone, in bf16; and against the measured peak."""
    yield from _shares(("opt-nano 2 fp32",) if toy else [f"{n} 16 bf16" for n in ("opt-tiny", "opt-mini", "opt-125m")])


def share_of_products_mamba(toy: bool) -> Iterator[Row]:
    """The same for Mamba."""
    cases = [f"{n} 16 bf16" for n in ("mamba-tiny", "mamba-mini", "mamba-130m")]
    yield from _shares(("mamba-nano 2 fp32",) if toy else cases)


def _shares(cases: Sequence[str]) -> Iterator[Row]:
    highest = _highest(torch.float32 if "fp32" in cases[0] else torch.bfloat16, 256 if "nano" in cases[0] else 8192)
    for case in cases:
        name, batch, precision = case.split()
        training.SIZES.setdefault(name, (VOCABULARY, 2))  # the toy sizes
        step_ms, products_ms = in_turns(shares.contestant, case, ("ours", "theirs"), rounds=3)
        done = shares.operations(shares.products_of(case)) / training.SIZES[name][1]
        title = f"training step of {name}, batches of {batch}, {precision}, against its matrix products alone"
        small = name.endswith(("tiny", "mini")) and torch.cuda.is_available()
        note = "on a GPU, launching them takes most of the time of such small products" if small else ""
        yield row(title, step_ms, products_ms, "ms", shares.TARGETS.get(name.partition("-")[2]), note)
        label = f"products of {name} in training, {precision}, against the highest speed of a product"
        yield row(label, done / step_ms / 1e9, highest / 1e12, "TFLOP/s", None)


def decodings(toy: bool) -> Iterator[Row]:
    """Greedy decoding against `generate`, at batches of 1, 32 and 256."""
    cases = itertools.product(("opt-nano", "mamba-nano") if toy else (*TINY, *LARGE), (2,) if toy else (1, 32, 256))
    for name, batch in cases:
        ours, theirs = in_turns(decoding_contestant, f"{name} {batch}", ("ours", "theirs"), rounds=1 if toy else 2)
        yield row(f"decoding {name}, batch {batch}, against generate", ours, theirs, "utt/s", 5.0)


def lengths(toy: bool) -> Iterator[Row]:
    """Transformer against Mamba at equal parameters over the length: is Mamba twice as fast?"""
    lengths = (32,) if toy else length.LENGTHS
    for pair in (("opt-nano", "mamba-nano"),) if toy else (LARGE, TINY):
        nets = [model(name, VOCABULARY, context=max(lengths) + length.NEW_TOKENS).to(device()) for name in pair]
        for tokens in lengths:
            (a, b, cache_a), (c, d, cache_b) = (length.measure(net, tokens) for net in nets)
            both = f"{pair[1]} against {pair[0]}, {tokens:,} tokens"
            yield row(f"training, {both}", c, a, "tokens/s", 2.0)
            yield row(f"decoding, {both}", d, b, "ms", 2.0)
            yield row(f"cache of a sequence, {both}", cache_b, cache_a, "MiB", None)


def memories(toy: bool) -> Iterator[Row]:
    """Peak memory of a training step of 16 x 2,048 tokens, plain and saving, against the Trainer."""
    if toy:
        raise LeftOut("measures the memory of a GPU")
    has_trainer = importlib.util.find_spec("accelerate") is not None
    for case in ("opt-125m 16", "opt-125m 16 saving", "mamba-130m 16 saving"):
        name, batch, *saving = case.split()
        found: list[float | None] = []
        for side in ("ours", "theirs"):
            if side == "theirs" and (not has_trainer or name.startswith("mamba")):
                found.append(None)
                continue
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                found.append(memory.contestant(side, case)())
            except (OutOfMemory, torch.OutOfMemoryError):
                found.append(None)
                yield fact(f"{case}, {side}", "does not fit")
        title = f"peak memory, {name} training step of {batch} x {memory.LENGTH:,} tokens"
        if found[0] is not None:
            yield row(title + (", both saving" if saving else ""), found[0], found[1], "GiB", 2.0)


def mamba_steps(toy: bool) -> Iterator[Row]:
    """A training step of Mamba against transformers without kernels, and against the kernels of mamba-ssm."""
    sides = {k: v for k, v in mamba_step.SIDES.items() if k != "mambapy" or importlib.util.find_spec("mambapy")}
    for case in ("mamba-nano 1 8",) if toy else ("mamba-tiny 4 128", "mamba-tiny 4 512"):
        name, batch, tokens = case.split()
        for rival, description in sides.items():
            ours, theirs = in_turns(mamba_step.contestant, case, ("ours", rival), rounds=1 if toy else 3)
            title = f"{name} training step, {batch} x {tokens} tokens, against {description}"
            yield row(title, ours, theirs, "s", {"theirs": 20.0, "mamba-ssm": 0.8}.get(rival))


def scan_tiles(toy: bool) -> Iterator[Row]:
    """The Triton scan, forward and backward, by the size of its tiles; at the shapes of mamba-130m."""
    if toy or not importlib.util.find_spec("triton"):
        raise LeftOut("measures a GPU" if toy else "triton is not installed")
    from dmlm.model import scan_triton

    batch, tokens, channels, states = 16, 512, 1536, 16
    u, dt = torch.randn(2, tokens, batch, channels, device=device())
    B, C = torch.randn(2, tokens, batch, states, device=device())
    A = -torch.rand(states, channels, device=device())
    leaves = [tensor.requires_grad_() for tensor in (u, dt.abs(), A, B, C)]
    chosen = scan_triton.STEPS, scan_triton.LANES, scan_triton.WARPS
    for steps, lanes, warps in ((16, 256, 4), (16, 512, 8), (16, 512, 4), (16, 128, 4), (8, 512, 4), (32, 128, 4), (16, 256, 2), (32, 256, 8)):  # fmt: skip
        scan_triton.STEPS, scan_triton.LANES, scan_triton.WARPS = steps, lanes, warps
        forward_ms = _milliseconds(lambda: scan_triton.selective_scan(*leaves), 7)
        both_ms = _milliseconds(lambda: scan_triton.selective_scan(*leaves)[0].sum().backward(), 7)
        label = f"tiles of {steps} steps x {lanes} channels and states, {warps} warps"
        yield fact(
            f"scan by {label}: milliseconds forward, and with backward", [round(forward_ms, 3), round(both_ms, 3)]
        )
    scan_triton.STEPS, scan_triton.LANES, scan_triton.WARPS = chosen


def _step_of(name: str, rows: int, tokens: int) -> tuple[Any, Callable[[], None]]:
    """Return a model, and a function that does its forward and backward pass for one batch of equal lengths in bf16."""
    vocabulary = FULL if name in LARGE else VOCABULARY
    net = model(name, vocabulary).to(device()).train()
    ids = torch.randint(0, vocabulary.text_size, (rows * tokens,), device=device())
    layout, lambdas = Layout([tokens] * rows, device()), torch.ones(len(ROLES), device=device())
    roles = torch.full_like(ids, ROLES.index("T"))
    roles[layout.positions == 0] = -1

    def step() -> None:
        net.zero_grad(set_to_none=False)
        with torch.autocast(device().type, torch.bfloat16):
            loss = modality_loss(net, ids, roles, layout, lambdas)[0]
        loss.backward()

    return net, step


def _milliseconds(work: Callable[[], object], times: int) -> float:
    work()
    return 1e3 * statistics.median(seconds(work) for _ in range(times))


def compiled(toy: bool) -> Iterator[Row]:
    """Forward and backward pass, compiled by `torch.compile` layer by layer, against as it is."""
    if toy:
        raise LeftOut("a compilation takes minutes on a CPU, where it does not pay (docs/performance-notes.md)")
    from dmlm.model import opt

    for name in ("opt-tiny", "opt-125m"):
        _, plain_step = _step_of(name, 16, 256)
        plain = _milliseconds(plain_step, 10)
        layer = opt._apply_layer
        opt._apply_layer = torch.compile(layer, dynamic=True)
        try:
            _, step = _step_of(name, 16, 256)
            start = time.perf_counter()
            step()
            synchronise()
            first = time.perf_counter() - start
            yield row(f"training step of {name}, 16 x 256 tokens, compiled, against plain", _milliseconds(step, 10), plain, "ms", None)  # fmt: skip
            yield fact(f"{name}: seconds of the first compiled step", round(first, 1))
        finally:
            opt._apply_layer = layer


def graphs(toy: bool) -> Iterator[Row]:
    """Decoding steps replayed as a CUDA graph against as they are: what launching the kernels costs."""
    for name, rows in itertools.product(("opt-nano",) if toy else (*TINY, *LARGE), (1,) if toy else (1, 32)):
        net = model(name, FULL if name in LARGE else VOCABULARY).to(device()).eval()
        code, ids = backbones.family(net), torch.zeros(rows, dtype=torch.long, device=device())
        with torch.inference_mode():
            cache = code.Cache(net, rows, 256 + 64)
            code.extend(net, ids.repeat(256), Layout([256] * rows, device()), cache)
            columns = getattr(cache, "columns", None)

            def step(
                code: Any = code, net: Any = net, ids: Any = ids, cache: Any = cache, columns: Any = columns
            ) -> None:
                if columns is not None:
                    cache.columns = columns  # every step at the same column, or the graph's shapes would change
                code.step(net, ids, cache)

            plain = _milliseconds(step, 20)
            title = f"a decoding step of {name}, batch {rows}, as a CUDA graph against as it is"
            if toy:
                yield fact("milliseconds of a decoding step (a CPU has no graphs)", round(plain, 3))
                continue
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            yield row(title, _milliseconds(graph.replay, 20), plain, "ms", None)


def profiles(toy: bool) -> Iterator[Row]:
    """What takes the time of a training step on this device: the kernels with the largest shares."""
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, *([] if toy else [activity.CUDA])]
    for name in ("opt-nano",) if toy else LARGE:
        _, step = _step_of(name, 2 if toy else 16, 16 if toy else 256)
        step()
        with torch.profiler.profile(activities=kinds) as profile:
            step()
            synchronise()
        attribute = "self_cpu_time_total" if toy else "self_device_time_total"
        cuda = torch.autograd.DeviceType.CUDA  # an operator has the time of its kernels, too
        events = [event for event in profile.key_averages() if toy or event.device_type == cuda]
        events.sort(key=lambda event: -getattr(event, attribute))
        total = sum(getattr(event, attribute) for event in events) or 1
        for event in events[: 3 if toy else 12]:
            yield fact(f"{name}, share of a step: {event.key[:70]}", round(getattr(event, attribute) / total, 3))


STEPS = [
    Step("peaks", "fast", 40, peaks),
    Step("share of products, opt", "fast", 90, share_of_products),
    Step("share of products, mamba", "fast", 90, share_of_products_mamba),
    Step("speed of training", "fast", 150, trainings),
    Step("speed by length", "fast", 120, lengths),
    Step("speed of decoding", "fast", 150, decodings),
    Step("peak memory", "fast", 90, memories),
    Step("speed of a mamba step", "fast", 60, mamba_steps),
    Step("scan tiles", "fast", 90, scan_tiles),
    Step("graphs", "fast", 60, graphs),
    Step("profiles", "fast", 40, profiles),
    Step("compile", "fast", 120, compiled),
]
