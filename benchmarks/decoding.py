"""Greedy decoding, utterances a second: this project against `model.generate` of transformers.

Both use the same model and prompts (A+L, real lengths, sorted by length; left-padded for transformers), a cache, at most
40 new tokens, and text IDs only. The models are untrained; <eos> is made likely enough for lengths to vary. On the side
of transformers, Mamba uses mambapy's scan.

    python benchmarks/decoding.py
"""

import math
import sys
from collections.abc import Callable

import torch
from harness import VOCABULARY, alternate, device, model, random_sequences, record, row, seconds
from transformers import LogitsProcessor, LogitsProcessorList

from dmlm.recognition.decode import decode
from dmlm.recognition.settings import DecodeSettings

NEW_TOKENS = 40
PAD, END = VOCABULARY.special("<pad>"), VOCABULARY.special("<eos>")


class TextOnly(LogitsProcessor):
    """Mask all logits but those of text IDs and <eos>; our decoder does not compute the others."""

    def __init__(self) -> None:
        self.forbidden = torch.ones(VOCABULARY.size, dtype=torch.bool, device=device())
        self.forbidden[: VOCABULARY.text_size] = self.forbidden[END] = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(self.forbidden, -math.inf)


def contestant(side: str, case: str) -> Callable[[], float]:
    """Return a function that decodes one batch and returns utterances a second."""
    name, batch = case.split()
    net = model(name, VOCABULARY).to(device()).eval()
    with torch.no_grad():
        net.get_output_embeddings().weight[END] *= 2
    for layer in net.backbone.layers if name.startswith("mamba") else ():
        layer.mixer.use_mambapy = True
    prompts = sorted(random_sequences(VOCABULARY, int(batch), with_target=False), key=len)
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), PAD)
    for number, prompt in enumerate(prompts):
        ids[number, width - len(prompt) :] = torch.from_numpy(prompt.ids)
    ids = ids.to(device())
    mask, only_text = (ids != PAD).long(), LogitsProcessorList([TextOnly()])

    def ours() -> None:
        decode(net, prompts, VOCABULARY, DecodeSettings(max_new_tokens=NEW_TOKENS), device())

    def theirs() -> None:
        net.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=PAD,
            eos_token_id=END,
            logits_processor=only_text,
        )

    repeats = max(1, 8 // int(batch))
    decode_batch = ours if side == "ours" else theirs
    return lambda: len(prompts) * repeats / seconds(lambda: [decode_batch() for _ in range(repeats)])


def main() -> None:
    """Measure the cases given on the command line, or the default ones."""
    target = 5.0 if torch.cuda.is_available() else 3.0
    for case in sys.argv[1:] or [f"{name} {batch}" for name in ("opt-tiny", "mamba-tiny") for batch in (1, 32, 256)]:
        name, batch = case.split()
        record([row(f"decoding {name}, batch {batch}, against generate", *alternate(__file__, case), "utt/s", target)])


if __name__ == "__main__":
    main()
