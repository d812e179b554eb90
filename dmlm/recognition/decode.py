"""Batched greedy decoding and beam search, with preallocated caches.

Each prompt is processed once. Prompts with a common prefix (one utterance at several SNRs) share the cache of that
prefix. Finished rows are removed from the batch. Only text IDs and <eos> can be generated, and only their logits are
computed.

Shapes: B rows of the batch, P prompts, K beams of a prompt, D model width, W text IDs and <eos>.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from dmlm.model import backbones
from dmlm.model.layout import Layout
from dmlm.recognition.settings import DecodeSettings
from dmlm.sequence.template import Packed
from dmlm.tokens.vocabulary import Vocabulary

BATCH_TOKENS = 1 << 14  # padded prompt tokens of a batch; on a GPU as many as its memory allows
MOST_CACHE_TOKENS = 1 << 18  # of a batch on a GPU, written ones included
COMPACT_BELOW = 0.75  # finished rows are removed when the share of unfinished rows falls below this


@dataclass(frozen=True, eq=False)
class Decoded:
    """The answer to one prompt, and why it ended: with <eos> unless it was `cut` or `looped`."""

    ids: np.ndarray  # (N,) text IDs, without <eos>
    log_probabilities: (
        np.ndarray
    )  # (N,) float32, natural, among what may be written; (N + 1,) if it ended: then of <eos>
    cut: bool  # it has `max_new_tokens` tokens and no <eos>
    looped: bool  # it was stopped because a phrase had occurred `max_repeats` times in a row


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Packed],
    vocabulary: Vocabulary,
    settings: DecodeSettings,
    device: torch.device,
    batch_tokens: int | None = None,
) -> list[Decoded]:
    """Return what the model generates after each prompt, in the order of the prompts.

    The result of a prompt does not depend on the other prompts of its batch (tested, for both families).
    """
    model.to(device).eval()  # type: ignore[arg-type]  # transformers' wrapper of `to` loses self
    decoder = _Decoder(model, vocabulary, settings, device)
    outputs: dict[int, Decoded] = {}
    beams, room = settings.beams, settings.max_new_tokens
    if batch_tokens is None and device.type == "cuda":
        batches = _batches(
            [prompt.ids for prompt in prompts], _cache_tokens(model, device), lambda n: beams * (n + room)
        )
    else:
        batches = _batches([prompt.ids for prompt in prompts], batch_tokens or BATCH_TOKENS)
    for indices in batches:
        for index, output in zip(indices, decoder.decode([prompts[i].ids for i in indices]), strict=True):
            outputs[index] = output
    return [outputs[index] for index in range(len(prompts))]


def _cache_tokens(model: PreTrainedModel, device: torch.device) -> int:
    """Return how many tokens, of all rows and beams, the cache of a batch may hold on a GPU.

    Keys and values of so many, and the copy that is made when rows are removed, take at most half of the free memory.
    """
    bytes_per_token = 2 * 8 * model.config.num_hidden_layers * model.config.hidden_size
    return min(MOST_CACHE_TOKENS, torch.cuda.mem_get_info(device)[0] // 2 // bytes_per_token)


def _batches(
    prompts: Sequence[np.ndarray], batch_tokens: int, tokens_of: Callable[[int], int] = lambda length: length
) -> list[list[int]]:
    """Split the prompts into batches of at most `batch_tokens` padded tokens; return their indices.

    `tokens_of` says how many tokens a prompt of a length counts as.

    Prompts are ordered by length, then by content, so that those with a common prefix meet in a batch.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i].tobytes())):
        if not batches or (len(batches[-1]) + 1) * tokens_of(len(prompts[index])) > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def shared_prefixes(prompts: Sequence[np.ndarray], min_tokens: int = 16) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the common prefixes of groups of prompts, and for each prompt the index of its prefix.

    Prompts that agree in their first `min_tokens` tokens form a group. Its prefix is the longest that all its prompts
    share and that is shorter than each of them.

    >>> same = np.arange(20)
    >>> prefixes, prefix_index = shared_prefixes([np.append(same, 5), np.append(same, 7), np.arange(3)])
    >>> [len(prefix) for prefix in prefixes], prefix_index.tolist()
    ([20, 2], [0, 0, 1])
    """
    groups: dict[bytes, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt[:min_tokens].tobytes(), []).append(index)
    prefixes, prefix_index = [], np.zeros(len(prompts), np.int64)
    for number, members in enumerate(groups.values()):
        prefix_index[members] = number
        first = prompts[members[0]]
        length = min(len(prompts[i]) for i in members) - 1
        for i in members[1:]:
            differing = np.flatnonzero(prompts[i][:length] != first[:length])
            length = int(differing[0]) if len(differing) else length
        prefixes.append(first[:length])
    return prefixes, prefix_index


@dataclass
class _Decoder:
    """Decodes batches of prompts with one model."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    settings: DecodeSettings
    device: torch.device

    def __post_init__(self) -> None:
        text_size, eos = self.vocabulary.text_size, self.vocabulary.special("<eos>")
        allowed = torch.tensor([*range(text_size), eos], device=self.device)
        self.family: Any = backbones.family(self.model)
        self.output_weights = self.model.get_output_embeddings().weight[allowed].t().contiguous()  # (D, W)
        self.end = text_size  # column of <eos>, the last one; text IDs are their own columns

    def decode(self, prompts: Sequence[np.ndarray]) -> list[Decoded]:
        """Return what is generated after each prompt."""
        cache, hidden = self._prefill(prompts)
        if self.settings.beams > 1:
            return [self._decoded(*output, False) for output in zip(*self._beam(cache, hidden), strict=True)]
        return [self._decoded(*output) for output in zip(*self._greedy(cache, hidden), strict=True)]

    def _prefill(self, prompts: Sequence[np.ndarray]) -> tuple[Any, torch.Tensor]:
        """Process the prompts, common prefixes once; return the cache and the last hidden state (B, D) of each."""
        prefixes, prefix_index = shared_prefixes(prompts)
        if len(prefixes) == len(prompts):
            cache = self._new_cache(len(prompts), prompts)
            return cache, self._extend(cache, prompts)
        rests = [prompt[len(prefixes[number]) :] for prompt, number in zip(prompts, prefix_index, strict=True)]
        cache = self._new_cache(len(prefixes), prefixes, rests)
        self._extend(cache, prefixes)
        cache.select(torch.from_numpy(prefix_index).to(self.device))
        return cache, self._extend(cache, rests)

    def _new_cache(self, rows: int, *blocks: Sequence[np.ndarray]) -> Any:
        """Allocate a cache for blocks of prompt tokens and the generated tokens."""
        capacity = sum(max(map(len, block)) for block in blocks) + self.settings.max_new_tokens
        return self.family.Cache(self.model, rows, capacity)

    def _extend(self, cache: Any, sequences: Sequence[np.ndarray]) -> torch.Tensor:
        """Append a sequence of IDs to each row of the cache; return the last hidden state (B, D) of each."""
        layout = Layout([len(sequence) for sequence in sequences], self.device)
        ids = torch.from_numpy(np.concatenate(sequences)).to(self.device)
        return self.family.extend(self.model, ids, layout, cache)

    def _greedy(self, cache: Any, hidden: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Generate the likeliest token of each row, step by step, until all rows have stopped.

        Whether a row stops depends on its own tokens only: one that has stopped writes nothing but <eos> from then on.

        Returns:
            IDs (B, steps), their log-probabilities (B, steps), and (B,) bool: which rows were stopped for a loop.
        """
        steps = self.settings.max_new_tokens
        outputs = torch.full((steps, len(hidden)), self.end, device=self.device)
        log_ps = torch.zeros((steps, len(hidden)), device=self.device)
        looped = torch.zeros(len(hidden), dtype=torch.bool, device=self.device)
        rows = torch.arange(len(hidden), device=self.device)  # column in `outputs` of each row of the cache
        stopped = torch.zeros_like(looped)  # of each row of the cache: it has ended, or was stopped for a loop
        for step in range(steps):
            logits = hidden @ self.output_weights
            tokens = logits.argmax(-1).masked_fill(stopped, self.end)
            outputs[step].index_copy_(0, rows, tokens)
            log_ps[step].index_copy_(0, rows, _log_probability(logits, tokens))
            stopped |= tokens == self.end
            if self.settings.max_repeats:
                looping = self._looping(outputs[: step + 1, rows].t()) & ~stopped
                looped[rows] |= looping
                stopped |= looping
            alive_count = len(rows) - int(stopped.sum())
            if alive_count == 0 or step == steps - 1:
                break
            if alive_count < COMPACT_BELOW * len(rows):
                alive_rows = (~stopped).nonzero().squeeze(1)
                rows, tokens, stopped = rows[alive_rows], tokens[alive_rows], stopped[alive_rows]
                cache.select(alive_rows)
            hidden = self.family.step(self.model, tokens, cache)
        return outputs.t().cpu().numpy(), log_ps.t().cpu().numpy(), looped.cpu().numpy()

    def _beam(self, cache: Any, hidden: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Beam search: return the hypothesis of each prompt with the largest log p / length ** length_penalty.

        Returns:
            IDs (P, steps) and their log-probabilities (P, steps).
        """
        beams, steps, prompt_count = self.settings.beams, self.settings.max_new_tokens, len(hidden)
        width = self.output_weights.shape[1]
        scores = torch.full((prompt_count, beams), -torch.inf, device=self.device)
        scores[:, 0] = 0.0  # all beams of a prompt start equal, so only one of them is extended in the first step
        cache.select(torch.arange(prompt_count, device=self.device).repeat_interleave(beams))
        hidden = hidden.repeat_interleave(beams, 0)
        outputs = torch.full((prompt_count, beams, steps), self.end, device=self.device)
        log_ps = torch.zeros((prompt_count, beams, steps), device=self.device)
        first_row = torch.arange(prompt_count, device=self.device).unsqueeze(1) * beams  # of each prompt in the cache
        for step in range(steps):
            log_p = (hidden @ self.output_weights).float().log_softmax(-1).view(prompt_count, beams, width)
            ended = (outputs[:, :, step - 1] == self.end) if step else torch.zeros_like(scores, dtype=torch.bool)
            # an ended hypothesis has one continuation, another <eos>, which leaves its score unchanged
            log_p = log_p.masked_fill(ended.unsqueeze(-1), -torch.inf)
            log_p[..., self.end] = log_p[..., self.end].masked_fill(ended, 0.0)
            scores, indices = (scores.unsqueeze(-1) + log_p).flatten(1).topk(beams)  # (P, K)
            chosen = log_p.flatten(1).gather(1, indices)
            parents, tokens = indices // width, indices % width
            outputs = outputs.gather(1, parents.unsqueeze(-1).expand(-1, -1, steps))
            log_ps = log_ps.gather(1, parents.unsqueeze(-1).expand(-1, -1, steps))
            outputs[:, :, step], log_ps[:, :, step] = tokens, chosen
            if bool((tokens == self.end).all()) or step == steps - 1:
                break
            cache.select((first_row + parents).flatten())
            hidden = self.family.step(self.model, tokens.flatten(), cache)
        lengths = (outputs != self.end).sum(-1) + 1
        best = (scores / lengths**self.settings.length_penalty).argmax(1)
        prompts = torch.arange(prompt_count, device=self.device)
        return outputs[prompts, best].cpu().numpy(), log_ps[prompts, best].cpu().numpy()

    def _looping(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return (B,) bool: whether `outputs` (B, steps) end with a phrase that is repeated `max_repeats` times.

        A phrase has up to `longest_loop` tokens.
        """
        repeats, length = self.settings.max_repeats, outputs.shape[1]
        looping = torch.zeros(len(outputs), dtype=torch.bool, device=outputs.device)
        for period in range(1, self.settings.longest_loop + 1):
            span = period * repeats
            if span <= length:
                tail = outputs[:, length - span :]
                looping |= (tail[:, period:] == tail[:, :-period]).all(1)
        return looping

    def _decoded(self, output: np.ndarray, log_ps: np.ndarray, looped: bool) -> Decoded:
        """Return the IDs before the first <eos>, and why they end there."""
        ends = np.flatnonzero(output == self.end)
        length = int(ends[0]) if len(ends) else len(output)
        ended = bool(len(ends)) and not looped  # the <eos> of one that was stopped for a loop is not the model's
        return Decoded(output[:length], log_ps[: length + ended], not len(ends) and not looped, bool(looped))


def _log_probability(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the log-probability (B,) of the tokens (B,) by logits (B, W)."""
    return logits.float().log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
