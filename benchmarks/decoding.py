"""Greedy decoding, utterances a second: this project against `model.generate` of transformers.

Same model, same prompts (A+L, real lengths, left-padded for theirs and sorted by length), cache on, at most 40 new
tokens, text IDs only. The models are untrained, and the ID that ends a transcript is made likely enough for lengths to
vary. Mamba's rival uses mambapy's scan.

    python benchmarks/decoding.py
"""

import math
import sys

import torch
from harness import VOCABULARY, alternate, device, items, model, record, row, seconds
from transformers import LogitsProcessor, LogitsProcessorList

from dmlm.recognition.decode import decode
from dmlm.recognition.settings import DecodeSettings

NEW = 40
PAD, END = VOCABULARY.special("<pad>"), VOCABULARY.special("<eos>")


class TextOnly(LogitsProcessor):
    """What our decoder does by computing no other logits."""

    def __init__(self) -> None:
        self.forbidden = torch.ones(VOCABULARY.size, dtype=torch.bool, device=device())
        self.forbidden[: VOCABULARY.text_size] = self.forbidden[END] = False

    def __call__(self, input_ids, scores):
        return scores.masked_fill(self.forbidden, -math.inf)


def contestant(side: str, case: str):
    """A function that decodes one batch and returns utterances a second."""
    name, batch = case.split()
    net = model(name, VOCABULARY).to(device()).eval()
    with torch.no_grad():
        net.get_output_embeddings().weight[END] *= 2
    for layer in net.backbone.layers if name.startswith("mamba") else ():
        layer.mixer.use_mambapy = True
    prompts = sorted(items(VOCABULARY, int(batch), target=False), key=len)
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), PAD)
    for place, prompt in enumerate(prompts):
        ids[place, width - len(prompt) :] = torch.from_numpy(prompt.ids)
    ids = ids.to(device())
    mask, only_text = (ids != PAD).long(), LogitsProcessorList([TextOnly()])

    def ours() -> None:
        decode(net, prompts, VOCABULARY, DecodeSettings(max_new_tokens=NEW), device())

    def theirs() -> None:
        net.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=PAD,
            eos_token_id=END,
            logits_processor=only_text,
        )

    repeats = max(1, 8 // int(batch))
    work = ours if side == "ours" else theirs
    return lambda: len(prompts) * repeats / seconds(lambda: [work() for _ in range(repeats)])


def main() -> None:
    """Measure the cases named, or the default."""
    target = 5.0 if torch.cuda.is_available() else 3.0
    for case in sys.argv[1:] or [f"{name} {batch}" for name in ("opt-tiny", "mamba-tiny") for batch in (1, 32, 256)]:
        name, batch = case.split()
        record([row(f"decoding {name}, batch {batch}, against generate", *alternate(__file__, case), "utt/s", target)])


if __name__ == "__main__":
    main()
