"""Greedy decoding and beam search, batched, over caches that are set aside once.

A prompt is read once, whatever is written after it; prompts that begin alike (one utterance at several SNRs) share that
reading. What is finished leaves the batch. Only text IDs and <eos> can be written, and only their logits are computed.

Shapes: B rows of the batch, K beams of an item, D model width, W text IDs and <eos>.
"""

from collections.abc import Sequence
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

BATCH_TOKENS = 1 << 14  # prompt tokens read together
LIVE = 0.75  # share of unfinished rows below which the batch is packed again


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Packed],
    vocabulary: Vocabulary,
    settings: DecodeSettings,
    device: torch.device,
    batch_tokens: int = BATCH_TOKENS,
) -> list[np.ndarray]:
    """Text IDs that the model writes after each prompt, without <eos>, in the order of the prompts.

    A prompt's answer does not depend on what it is batched with (tested, for both families).
    """
    model.to(device).eval()  # type: ignore[arg-type]  # transformers' wrapper of `to` loses self
    writer = _Writer(model, vocabulary, settings, device)
    answers: list[np.ndarray] = [np.empty(0, np.int64)] * len(prompts)
    for chosen in _batches([prompt.ids for prompt in prompts], batch_tokens):
        for index, written in zip(chosen, writer.write([prompts[i].ids for i in chosen]), strict=True):
            answers[index] = written
    return answers


def _batches(prompts: Sequence[np.ndarray], batch_tokens: int) -> list[list[int]]:
    """Indices in order of length, then of content, at most `batch_tokens` of padded prompt a batch."""
    batches: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i].tobytes())):
        if not batches or (len(batches[-1]) + 1) * len(prompts[index]) > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def shared_prefixes(prompts: Sequence[np.ndarray], least: int = 16) -> tuple[list[np.ndarray], np.ndarray]:
    """Beginnings that are read once, and for each prompt the number of its own.

    Prompts that agree in their first `least` tokens form a group, whose beginning is as long as all of it agrees, but
    leaves every prompt a token of its own.

    >>> same = np.arange(20)
    >>> shared, group = shared_prefixes([np.append(same, 5), np.append(same, 7), np.arange(3)])
    >>> [len(s) for s in shared], group.tolist()
    ([20, 2], [0, 0, 1])
    """
    groups: dict[bytes, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt[:least].tobytes(), []).append(index)
    shared, group = [], np.zeros(len(prompts), np.int64)
    for number, members in enumerate(groups.values()):
        group[members] = number
        shortest = min(len(prompts[i]) for i in members) - 1
        first, alike = prompts[members[0]], shortest
        for i in members[1:]:
            different = np.flatnonzero(prompts[i][:alike] != first[:alike])
            alike = int(different[0]) if len(different) else alike
        shared.append(first[:alike])
    return shared, group


@dataclass
class _Writer:
    """A model, and what it may write."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    settings: DecodeSettings
    device: torch.device

    def __post_init__(self) -> None:
        text, end = self.vocabulary.text_size, self.vocabulary.special("<eos>")
        allowed = torch.tensor([*range(text), end], device=self.device)
        self.family: Any = backbones.family(self.model)
        self.table = self.model.get_output_embeddings().weight[allowed].t().contiguous()  # (D, W); the last is <eos>
        self.end = text

    def write(self, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What is written after each prompt."""
        cache, hidden = self._read(prompts)
        search = self._greedy if self.settings.beams == 1 else self._beam
        return [self._cut(written) for written in search(cache, hidden)]

    def _read(self, prompts: Sequence[np.ndarray]) -> tuple[Any, torch.Tensor]:
        """Cache and last hidden state (B, D) of each prompt, common beginnings read once."""
        shared, group = shared_prefixes(prompts)
        if len(shared) == len(prompts):
            cache = self._room(len(prompts), prompts)
            return cache, self._extend(cache, prompts)
        own = [prompt[len(shared[number]) :] for prompt, number in zip(prompts, group, strict=True)]
        cache = self._room(len(shared), shared, own)
        self._extend(cache, shared)
        cache.select(torch.from_numpy(group).to(self.device))
        return cache, self._extend(cache, own)

    def _room(self, rows: int, *blocks: Sequence[np.ndarray]) -> Any:
        room = sum(max(map(len, block)) for block in blocks) + self.settings.max_new_tokens
        return self.family.Cache(self.model, rows, room)

    def _extend(self, cache: Any, parts: Sequence[np.ndarray]) -> torch.Tensor:
        layout = Layout([len(part) for part in parts], self.device)
        return self.family.extend(self.model, torch.from_numpy(np.concatenate(parts)).to(self.device), layout, cache)

    def _greedy(self, cache: Any, hidden: torch.Tensor) -> list[np.ndarray]:
        """The likeliest token, then the next, for each row until it ends."""
        steps = self.settings.max_new_tokens
        written = torch.full((steps, len(hidden)), self.end, device=self.device)
        rows = torch.arange(len(hidden), device=self.device)  # of `written`, for each row that the cache holds
        for step in range(steps):
            best = (hidden @ self.table).argmax(-1)
            written[step].index_copy_(0, rows, best)
            alive = best != self.end
            if self.settings.max_repeats:
                alive &= ~self._looping(written[: step + 1, rows].t())
            left = int(alive.sum())
            if left == 0 or step == steps - 1:
                break
            if left < LIVE * len(rows):
                kept = alive.nonzero().squeeze(1)
                rows, best = rows[kept], best[kept]
                cache.select(kept)
            # a row that ended but is still in the batch writes on; `_cut` drops what follows its end
            hidden = self.family.step(self.model, best, cache)
        return list(written.t().cpu().numpy())

    def _beam(self, cache: Any, hidden: torch.Tensor) -> list[np.ndarray]:
        """The likeliest of `beams` hypotheses that are extended side by side, log p over length ** length_penalty."""
        beams, steps, items = self.settings.beams, self.settings.max_new_tokens, len(hidden)
        width = self.table.shape[1]
        scores = torch.full((items, beams), -torch.inf, device=self.device)
        scores[:, 0] = 0.0
        cache.select(torch.arange(items, device=self.device).repeat_interleave(beams))
        hidden = hidden.repeat_interleave(beams, 0)
        written = torch.full((items, beams, steps), self.end, device=self.device)
        first = torch.arange(items, device=self.device).unsqueeze(1) * beams
        for step in range(steps):
            log_p = (hidden @ self.table).float().log_softmax(-1).view(items, beams, width)
            ended = (written[:, :, step - 1] == self.end) if step else torch.zeros_like(scores, dtype=torch.bool)
            log_p = log_p.masked_fill(ended.unsqueeze(-1), -torch.inf)
            log_p[..., self.end] = log_p[..., self.end].masked_fill(ended, 0.0)  # an ended one stays as it is
            scores, place = (scores.unsqueeze(-1) + log_p).flatten(1).topk(beams)  # (items, K)
            parents, tokens = place // width, place % width
            written = written.gather(1, parents.unsqueeze(-1).expand(-1, -1, steps))
            written[:, :, step] = tokens
            if bool((tokens == self.end).all()) or step == steps - 1:
                break
            cache.select((first + parents).flatten())
            hidden = self.family.step(self.model, tokens.flatten(), cache)
        lengths = (written != self.end).sum(-1) + 1
        best = (scores / lengths**self.settings.length_penalty).argmax(1)
        return list(written[torch.arange(items, device=self.device), best].cpu().numpy())

    def _looping(self, written: torch.Tensor) -> torch.Tensor:
        """(B,) bool: the last tokens are one and the same run of up to `LONGEST_LOOP`, `max_repeats` times."""
        repeats, length = self.settings.max_repeats, written.shape[1]
        looping = torch.zeros(len(written), dtype=torch.bool, device=written.device)
        for period in range(1, self.settings.longest_loop + 1) if repeats else ():
            span = period * repeats
            if span <= length:
                tail = written[:, length - span :]
                looping |= (tail[:, period:] == tail[:, :-period]).all(1)
        return looping

    def _cut(self, written: np.ndarray) -> np.ndarray:
        stops = np.flatnonzero(written == self.end)
        return written[: int(stops[0])] if len(stops) else written
