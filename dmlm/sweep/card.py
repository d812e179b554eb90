"""The model card of a trained model: what it was trained on, how, and how it scored. No torch here."""

import json

from dmlm import __version__, places
from dmlm.model.pretrained import family_of
from dmlm.sweep.trial import Trial, done

CARD = """---
library_name: transformers
pipeline_tag: text-generation
language: en
tags: [automatic-speech-recognition, discrete-tokens, multimodal, {family}]
metrics: [wer]
---

# {label}: `{template}`

A decoder-only language model that reads discrete tokens and writes the transcript, trained by
dmlm {version}. It is of no use without the tokenizers named below.

| | |
|---|---|
| backbone | {backbone}, {parameters:,} parameters |
| corpus | {corpus} |
| tokenizers | {tokenizers} |
| ID space | text 0..{last_text}{ranges}; special tokens last |
| noise in training | {noise}; SNR {levels} dB |
| training | {steps:,} steps of {batch}, learning rate {lr:g}, {precision}, loss weights {lambdas}, seed {seed} |
| device | {device}, PyTorch {torch} |

## Word error rate, split `{split}`

| condition | WER % | utterances |
|---|---|---|
{scores}

`permuted-X` is the same condition with modality X exchanged between utterances.

## Use

```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")
```

The whole setting is in `trial.json`, the text vocabulary in `text.json`.
"""


def write_card(trial: Trial, corpus: str, text_size: int, sizes: dict[str, int]) -> None:
    """Write README.md and trial.json into the folder of a model, from what its trial has so far."""
    cell, result = trial.cell, json.loads((trial.folder / "result.json").read_text("utf-8"))
    rows = []
    for evaluation in trial.evaluations:
        folder = trial.scores(evaluation)
        if done(folder):
            scored = json.loads((folder / "result.json").read_text("utf-8"))
            rows.append(f"| {folder.name.rpartition('-')[0]} | {100 * scored['wer']:.1f} | {scored['utterances']} |")
    first, ranges = text_size, []
    for letter, size in sizes.items():
        ranges.append(f", {letter} {first}..{first + size - 1}")
        first += size
    chosen = {letter: cell.tokenizers[letter].recipe for letter in cell.letters}
    text = CARD.format(
        family=family_of(cell.backbone),
        label=cell.label,
        template=cell.template,
        version=__version__,
        backbone=cell.backbone,
        parameters=result["parameters"],
        corpus=corpus,
        tokenizers=", ".join(f"{letter} `{recipe}`" for letter, recipe in chosen.items()),
        last_text=text_size - 1,
        ranges="".join(ranges),
        noise=f"{cell.noise.set}, {cell.noise.placement}",
        levels=", ".join("clean" if level == float("inf") else f"{level:g}" for level in cell.snr_db.train),
        steps=cell.train.steps,
        batch=cell.train.batch_size,
        lr=cell.train.lr,
        precision=cell.train.precision,
        lambdas=", ".join(f"{k} {v:g}" for k, v in cell.train.lambdas if k in (*chosen, "T")),
        seed=cell.seed,
        split=cell.split,
        device=result["device"],
        torch=result["torch"],
        scores="\n".join(rows),
    )
    places.write_text(trial.folder / "model" / "README.md", text)
    places.write_text(trial.folder / "model" / "trial.json", json.dumps(trial.spec, indent=1) + "\n")
