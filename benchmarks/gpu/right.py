"""Is it right? Everything that computes on a GPU against something that is known to be right."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from decoding import TextOnly
from gpu.steps import LeftOut, Row, Step, check, difference, fact
from harness import VOCABULARY, device, model, random_sequences
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import LogitsProcessorList, PreTrainedModel

from dmlm.model import backbones, scan_choice
from dmlm.model import loss as loss_module
from dmlm.model.layout import Layout
from dmlm.model.loss import modality_loss
from dmlm.recognition.decode import decode
from dmlm.recognition.settings import DecodeSettings
from dmlm.sequence.batches import collate
from dmlm.sequence.template import ROLES, Packed

FP32, BF16 = 2e-4, 3e-2  # relative differences: fp32 in another order; matrix products in bf16
SCAN = 1e-3  # as in dmlm.model.scan_choice
PAD, END = VOCABULARY.special("<pad>"), VOCABULARY.special("<eos>")
BACK_ENDS = (
    SDPBackend.MATH,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
)
SCAN_SHAPES = [  # L, B, D, N
    *((length, 3, 40, 8) for length in (1, 2, 15, 16, 17, 37, 255, 1024, 8192)),
    *((100, batch, 40, 16) for batch in (1, 2, 33)),
    *((64, 2, channels, 16) for channels in (1, 31, 32, 33, 344, 1536)),
    *((64, 2, 40, states) for states in (1, 3, 8, 16, 64)),
]
TOY_SCAN_SHAPES = [(1, 2, 5, 3), (17, 2, 33, 4)]


def exact_products() -> None:
    """Turn TF32 off, which rounds the inputs of fp32 products to 10 bits and is no part of what is compared."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _scan(name: str, load: Callable[[], scan_choice.Scan], toy: bool) -> Iterator[Row]:
    function = load()
    for shape in TOY_SCAN_SHAPES if toy else SCAN_SHAPES:
        label = f"{name} scan forward and backward, length x batch x channels x states {' x '.join(map(str, shape))}"
        yield check(label, scan_choice.deviation(function, device(), shape), SCAN)
    shape = TOY_SCAN_SHAPES[-1] if toy else (300, 3, 344, 16)
    yield check(f"{name} scan, inputs in bf16", scan_choice.deviation(function, device(), shape, torch.bfloat16), SCAN)
    yield check(f"{name} scan from a given state", scan_choice.deviation(function, device(), shape, state=True), SCAN)


def triton_scan(toy: bool) -> Iterator[Row]:
    """Mamba's scan in Triton against the loop over time."""
    if not importlib.util.find_spec("triton"):
        raise LeftOut("triton is not installed")
    from dmlm.model import scan_triton

    try:
        yield from _scan("Triton", lambda: scan_triton.selective_scan, toy)
    except Exception as error:
        if toy and type(error).__name__ == "InterpreterError":  # that of Triton 3.6 does not run with numpy 2.4
            raise LeftOut(f"the interpreter of this Triton fails here ({error})") from None
        raise
    if not toy:
        yield fact("scan that this machine chooses", scan_choice.fastest_scan("cuda")[0])


def mamba_ssm_scan(toy: bool) -> Iterator[Row]:
    """The scan of mamba-ssm against the loop over time."""
    if toy or not importlib.util.find_spec("mamba_ssm"):
        raise LeftOut("mamba-ssm is not installed" if not toy else "mamba-ssm needs a GPU")
    yield from _scan("mamba-ssm", dict(scan_choice.candidates("cuda"))["mamba-ssm"], toy)


def _padded(sequences: Sequence[Packed]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return IDs and attention mask (B, N), padded on the right, on the device."""
    ids = torch.full((len(sequences), max(map(len, sequences))), PAD)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = torch.from_numpy(sequence.ids)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(sequence) for sequence in sequences]).unsqueeze(1)
    return ids.to(device()), mask.to(device())


def _flat(sequences: Sequence[Packed]) -> tuple[torch.Tensor, torch.Tensor, Layout]:
    """Return IDs (T,), roles (T,) and layout on the device."""
    batch = collate(sequences)
    ids, roles = torch.from_numpy(batch.ids).to(device()), torch.from_numpy(batch.roles).to(device())
    return ids, roles, Layout(batch.lengths, device())


def _gradient(net: PreTrainedModel, loss: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a loss by all parameters, as one vector in fp64."""
    net.zero_grad()
    loss.backward()
    parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in net.parameters()]
    return torch.cat([part.double().flatten() for part in parts])


def toy_or_tiny(family: str, toy: bool) -> str:
    """Return the name of a backbone: of 0.6 M parameters, or at toy size the smallest."""
    return f"{family}-{'nano' if toy else 'tiny'}"


def _against_transformers(family: str, toy: bool) -> Iterator[Row]:
    """Loss and gradients of flat batches against the class of `transformers` on padded ones, in fp32 and in bf16."""
    exact_products()
    name = toy_or_tiny(family, toy)
    sequences, net = random_sequences(VOCABULARY, 3 if toy else 12), model(name, VOCABULARY).to(device()).train()
    ids, _, layout = _flat(sequences)
    roles = torch.where(layout.positions == 0, -1, 0)  # as in transformers: all tokens but the first, as one modality
    lambdas = torch.ones(len(ROLES), device=device())
    padded, mask = _padded(sequences)
    share = 1 / (mask.sum(1) - 1)

    def ours() -> torch.Tensor:
        return modality_loss(net, ids, roles, layout, lambdas)[0]

    def theirs() -> torch.Tensor:
        logits = net(input_ids=padded, attention_mask=mask.long()).logits[:, :-1].float()
        surprise = cross_entropy(logits.transpose(1, 2), padded[:, 1:], reduction="none")
        return ((surprise * mask[:, 1:]).sum(1) * share).mean()

    right_loss, right = (value := theirs()).detach(), _gradient(net, value)
    loss, gradient = (value := ours()).detach(), _gradient(net, value)
    yield check(f"{name} loss, fp32, against transformers", difference(loss, right_loss), FP32)
    yield check(f"{name} gradient, fp32, against transformers", difference(gradient, right), 5 * FP32)
    with torch.autocast(device().type, torch.bfloat16):
        loss, stock = ours(), theirs()
    gradient, stock_gradient = _gradient(net, loss), _gradient(net, stock)
    yield check(f"{name} loss, bf16, against transformers in fp32", difference(loss, right_loss), BF16)
    error, stock_error = ((g - right).norm() / right.norm() for g in (gradient, stock_gradient))
    yield check(f"{name} gradient, bf16: error, relative to its norm", error, 0.1)
    yield fact(f"{name} gradient, bf16: error of transformers", float(f"{stock_error:.4g}"))
    for kind in BACK_ENDS if family == "opt" else ():
        for half, limit in ((False, 5 * FP32), (True, 0.1)):
            label = (
                f"{name} gradient, {'bf16' if half else 'fp32'}, attention by {kind.name.lower()}, against transformers"
            )
            try:
                with sdpa_kernel(kind), torch.autocast(device().type, torch.bfloat16, enabled=half):
                    gradient = _gradient(net, ours())
            except RuntimeError as error:
                yield fact(label, f"not here ({str(error).splitlines()[0][:80]})")
                continue
            yield check(label, (gradient - right).norm() / right.norm(), limit)
    small = loss_module.MAX_LOGITS
    loss_module.MAX_LOGITS = 7 * VOCABULARY.size
    yield check(f"{name} loss in chunks of 7 tokens", difference(ours(), right_loss), FP32)
    loss_module.MAX_LOGITS = small


def _alone(family: str, toy: bool) -> Iterator[Row]:
    """A sequence of a batch computes what it computes alone: nothing crosses the borders."""
    exact_products()
    name = toy_or_tiny(family, toy)
    sequences, net = random_sequences(VOCABULARY, 3 if toy else 12), model(name, VOCABULARY).to(device()).eval()
    code = backbones.family(net)
    with torch.no_grad():
        ids, _, layout = _flat(sequences)
        together = code.hidden_states(net, ids, layout).split(layout.lengths.tolist())
        alone = [code.hidden_states(net, *_flat([sequence])[::2]) for sequence in sequences]
    worst = max(difference(a, b) for a, b in zip(together, alone, strict=True))
    yield check(f"{name}: a sequence in a batch against alone", worst, FP32)
    weights = net.get_input_embeddings().weight
    code.hidden_states(net, ids, layout).split(layout.lengths.tolist())[0].sum().backward()
    strange = sorted(set(ids.tolist()) - set(ids[: layout.lengths[0]].tolist()))
    leaked = weights.grad[strange].abs().max() if strange else torch.zeros(())
    yield check(f"{name}: gradient of a sequence by the tokens of others", leaked, 0.0)


def opt(toy: bool) -> Iterator[Row]:
    """OPT on flat batches."""
    yield from _against_transformers("opt", toy)
    yield from _alone("opt", toy)


def mamba(toy: bool) -> Iterator[Row]:
    """Mamba on flat batches; its reference is the loop of transformers, without kernels."""
    yield from _against_transformers("mamba", toy)
    yield from _alone("mamba", toy)


def attention(toy: bool) -> Iterator[Row]:
    """Which back ends of PyTorch's attention run, and what each computes, at OPT-125M's width of a head."""
    exact_products()
    rows, heads, length, width = (2, 2, 33, 16) if toy else (8, 12, 777, 64)
    q, k, v = torch.randn(3, rows, heads, length, width, device=device())
    with sdpa_kernel(SDPBackend.MATH):
        right = scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
    for dtype, limit in ((torch.float32, FP32), (torch.bfloat16, BF16)):
        tensors = [tensor.to(dtype) for tensor in (q, k, v)]
        for kind in BACK_ENDS:
            label = f"{kind.name.lower().removesuffix('_attention')}, {str(dtype).removeprefix('torch.')}"
            try:
                with sdpa_kernel(kind):
                    found = scaled_dot_product_attention(*tensors, is_causal=True)
            except RuntimeError as error:
                yield fact(f"attention by {label}", f"not here ({str(error).splitlines()[0][:80]})")
                continue
            yield check(f"attention by {label}, against fp64", difference(found, right), limit)
        yield fact(f"kernels of attention that OPT uses, {dtype}", _attention_kernels(tensors))


def _attention_kernels(tensors: Sequence[torch.Tensor]) -> str:
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, *([activity.CUDA] if torch.cuda.is_available() else [])]
    with torch.profiler.profile(activities=kinds) as profile:
        scaled_dot_product_attention(*tensors, is_causal=True)
    marks = ("attention", "fmha", "flash", "sdpa")
    names = [event.key for event in profile.key_averages() if any(mark in event.key.lower() for mark in marks)]
    return "; ".join(name[:70] for name in names if name.removeprefix("aten::") != "scaled_dot_product_attention")


def decoding(toy: bool) -> Iterator[Row]:
    """Transcripts against `generate`, greedy and by beams, and in a batch against alone."""
    exact_products()
    prompts = random_sequences(VOCABULARY, 3 if toy else 32, with_target=False)
    for name in (toy_or_tiny("opt", toy), toy_or_tiny("mamba", toy)):
        net = model(name, VOCABULARY).to(device()).eval()
        with torch.no_grad():
            net.get_output_embeddings().weight.normal_(std=0.5, generator=torch.Generator(device()).manual_seed(1))
        for beams in (1, 3):
            settings = DecodeSettings(max_new_tokens=6 if toy else 40, beams=beams)
            together = [answer.ids for answer in decode(net, prompts, VOCABULARY, settings, device())]
            alone = [decode(net, [prompt], VOCABULARY, settings, device())[0].ids for prompt in prompts]
            kind = "greedy" if beams == 1 else f"{beams} beams"
            yield check(f"{name} {kind}: transcripts that differ alone", _differing(together, alone), 0.1)
            if beams > 1:
                continue  # beams of transformers end in another way
            stock = []
            for prompt in prompts:
                written = net.generate(
                    torch.from_numpy(prompt.ids)[None].to(device()),
                    max_new_tokens=settings.max_new_tokens,
                    do_sample=False,
                    pad_token_id=PAD,
                    eos_token_id=END,
                    logits_processor=LogitsProcessorList([TextOnly()]),
                )[0, len(prompt) :]
                ids = written.cpu().numpy()
                stock.append(ids[: np.flatnonzero(ids == END)[0]] if END in ids else ids)
            yield check(f"{name} {kind}: transcripts that differ from `generate`", _differing(together, stock), 0.1)


def _differing(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    return float(np.mean([not np.array_equal(a, b) for a, b in zip(some, others, strict=True)]))


STEPS = [
    Step("scan triton", "right", 120, triton_scan),
    Step("scan mamba-ssm", "right", 60, mamba_ssm_scan),
    Step("model opt", "right", 60, opt),
    Step("model mamba", "right", 60, mamba),
    Step("attention", "right", 30, attention),
    Step("transcripts", "right", 60, decoding),
]
