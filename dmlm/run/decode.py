"""Greedy decoding in batches, with caches, restricted to text IDs.

Shapes: B prompts, N positions (left-padded), V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from dmlm.sequence.batches import collate
from dmlm.sequence.template import Packed
from dmlm.tokens.vocabulary import Vocabulary


class TextOnly(LogitsProcessor):
    """Everything but text IDs and <eos> gets probability zero."""

    def __init__(self, vocabulary: Vocabulary, device: torch.device) -> None:
        self.forbidden = torch.ones(vocabulary.size, dtype=torch.bool, device=device)
        self.forbidden[: vocabulary.text_size] = False
        self.forbidden[vocabulary.special("<eos>")] = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(self.forbidden, float("-inf"))


@torch.inference_mode()
def greedy(
    model: PreTrainedModel,
    prompts: Sequence[Packed],
    vocabulary: Vocabulary,
    max_new_tokens: int,
    device: torch.device,
    batch_size: int = 64,
) -> list[np.ndarray]:
    """Text IDs that the model writes after each prompt, without <eos>, in the order of the prompts.

    A prompt's answer does not depend on what it is batched with (tested, for both families).
    """
    model.to(device).eval()  # type: ignore[arg-type]  # transformers' wrapper of `to` loses self
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=vocabulary.special("<pad>"),
        bos_token_id=vocabulary.special("<bos>"),
        eos_token_id=vocabulary.special("<eos>"),
    )
    only_text = LogitsProcessorList([TextOnly(vocabulary, device)])
    answers: list[np.ndarray] = [np.empty(0, np.int64)] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(by_length), batch_size):
        chosen = by_length[start : start + batch_size]
        batch = collate([prompts[i] for i in chosen], settings.pad_token_id, left=True)
        written = model.generate(  # type: ignore[operator]  # PreTrainedModel does not declare it, both families have it
            torch.from_numpy(batch.ids).to(device),
            attention_mask=torch.from_numpy(batch.mask).long().to(device),
            generation_config=settings,
            logits_processor=only_text,
        )
        for index, row in zip(chosen, written[:, batch.ids.shape[1] :].cpu().numpy(), strict=True):
            answers[index] = row[: _end(row, vocabulary)]
    return answers


def _end(row: np.ndarray, vocabulary: Vocabulary) -> int:
    stops = np.flatnonzero(row >= vocabulary.text_size)
    return int(stops[0]) if len(stops) else len(row)
