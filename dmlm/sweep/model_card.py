"""The model card of a trained model (README.md): its training, its scores and how to use it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from dmlm import __version__, files, recipes, snr
from dmlm.corpus.faults import describe_left_out
from dmlm.corpus.manifest import Utterance
from dmlm.model.pretrained import family_of
from dmlm.recognition.model_folder import EncoderDescription, ModelDescription
from dmlm.recognition.settings import DecodeSettings
from dmlm.recognition.transcribe import Reading
from dmlm.sequence.template import pack
from dmlm.sweep.materials import Materials
from dmlm.sweep.trial import Trial
from dmlm.tokens.encoder import Reader, Tokenizer

CARD = """---
library_name: transformers
pipeline_tag: text-generation
{metadata}tags: [automatic-speech-recognition, discrete-tokens, multimodal, {family}]
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
| noise in training | {noise}; SNR {snrs_db} dB |
| training | {steps:,} steps of {batch}, learning rate {lr:g}, {precision}, loss weights {lambdas}, seed {seed} |
| device | {device}, PyTorch {torch} |

## Word error rate, split `{split}`

| condition | WER % | utterances |
|---|---|---|
{scores}

`permuted-X` is the same condition with modality X exchanged between utterances.

## Use

With dmlm, on a new clip (nothing else is needed: no grid, corpus or token cache):

```python
from dmlm.recognition.recogniser import Recogniser

folder = "."  # where this file is
recogniser = Recogniser.load(folder)
print(recogniser.transcribe({arguments}))
```

With plain `transformers`, on the tokens of one test utterance that lie beside this file{difference}:

```python
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file is
example = json.loads((Path(folder) / "example.json").read_text())
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = torch.tensor([example["input_ids"]])
written = model.generate(prompt)[0, prompt.shape[1] :]
print("said:      ", example["reference"])
print("recognised:", tokenizer.decode(written, skip_special_tokens=True).strip())
```

Its settings, encoders and training are in `dmlm.json`.
"""


def description_of(trial: Trial, materials: Materials) -> ModelDescription:
    """Return everything that is needed besides the network to transcribe a new clip."""
    cell = trial.cell
    encoders = {}
    for letter in cell.letters:
        source = materials.sources[letter]
        encoder, learned = source.encoder, source.learned_files
        weights = encoder.card
        encoders[letter] = EncoderDescription(
            recipe=_recipe(source.spec.recipe),
            settings=encoder.settings.model_dump(mode="json"),
            fingerprint=source.fingerprint,
            vocab_size=encoder.vocab_size if isinstance(encoder, Tokenizer) else None,
            rate_hz=encoder.rate_hz if isinstance(encoder, Tokenizer) else None,
            weights=None if weights is None else asdict(weights),
            **{part: f"encoders/{letter}-{part}{path.suffix}" for part, path in learned.items()},
        )
    return ModelDescription(
        dmlm=__version__,
        label=cell.label,
        template=cell.template,
        text_size=materials.text.size,
        encoders=encoders,
        decode=cell.decode,
        normaliser=cell.corpus.normaliser,
        placement=cell.noise.placement,
        may_lack=tuple(
            letter
            for letter in cell.letters
            if any(getattr(u, materials.sources[letter].encoder.media) is None for u in materials.corpus.split("train"))
        ),
        longest_s=max(utterance.duration_s for utterance in materials.corpus.split("train")),
        around_s=_silence_around(materials.corpus.split("train")),
        corpus=materials.corpus.card,
        trial=trial.spec,
    )


def _silence_around(utterances: Sequence[Utterance]) -> tuple[float, float] | None:
    """The medians, in seconds, of the silence before and after the speech of a clip; None if no clip says where it is."""
    known = [u for u in utterances if u.spans]
    if not known:
        return None
    before_s = median(max(0.0, u.spans[0][0]) for u in known)
    return before_s, median(max(0.0, u.duration_s - u.spans[-1][1]) for u in known)


def _difference(decode: DecodeSettings) -> str:
    """How the text that plain `transformers` writes can differ from the text that was scored."""
    if decode.max_repeats:
        return " (it does not stop at a loop, as `decode.max_repeats` does)"
    return " (its beam search goes on differently where a hypothesis ends early)" if decode.beams > 1 else ""


def _inputs(materials: Materials, letters: Sequence[str]) -> list[str]:
    """What a recogniser is given: media by name, each once, and what a first pass heard where a reader uses it."""
    encoders = [materials.sources[letter].encoder for letter in letters]
    first_pass = any(isinstance(encoder, Reader) and encoder.first_pass for encoder in encoders)
    return [*dict.fromkeys(encoder.media for encoder in encoders), *(["first_pass"] if first_pass else [])]


def _recipe(name: str) -> str:
    """A recipe's name, or the absolute path of its file, which another working directory finds too."""
    return name if name in recipes.names("tokenizers") else str(recipes.find("tokenizers", name))


def write_card(trial: Trial, materials: Materials, reading: Reading) -> None:
    """Write README.md and example.json into the folder of a model; scores of finished evaluations are included."""
    cell, result, corpus = trial.cell, trial.stored.result, materials.corpus
    assert result is not None
    rows = []
    for evaluation in trial.evaluations:
        folder = trial.folder_of(evaluation)
        if folder.done:
            counts = folder.result
            rows.append(f"| {evaluation.title(cell)} | {100 * counts.wer:.1f} | {counts.utterances} |")
    vocabulary = reading.vocabulary
    ranges = [
        f", {k} {vocabulary.offset(k)}..{vocabulary.offset(k) + size - 1}" for k, size in vocabulary.sizes.items()
    ]
    left_out = f"; left out: {describe_left_out(corpus.left_out_counts)}" if corpus.unused else ""
    recipe_names = {letter: cell.tokenizers[letter].recipe for letter in cell.letters}
    facts = {"language": corpus.card.get("language"), "license": str(corpus.card.get("licence", "")).lower()}
    text = CARD.format(
        metadata="".join(f"{key}: {value}\n" for key, value in facts.items() if value),
        family=family_of(cell.backbone).model_type,
        label=cell.label,
        template=cell.template,
        version=__version__,
        backbone=cell.backbone,
        parameters=result.parameters,
        corpus=f"{corpus.label}, licence {corpus.card.get('licence', 'not recorded')}{left_out}",
        tokenizers=", ".join(f"{letter} `{recipe}`" for letter, recipe in recipe_names.items()),
        last_text=vocabulary.text_size - 1,
        ranges="".join(ranges),
        noise=f"{cell.noise.set}, {cell.noise.placement}",
        snrs_db=", ".join(map(snr.text, cell.snr_db.train)),
        steps=cell.train.steps,
        batch=cell.train.batch_size,
        lr=cell.train.lr,
        precision=cell.train.precision,
        lambdas=", ".join(f"{k} {v:g}" for k, v in asdict(cell.train.lambdas).items() if k in (*recipe_names, "T")),
        seed=cell.seed,
        split=cell.split,
        device=result.device,
        torch=result.torch,
        scores="\n".join(rows),
        arguments=", ".join(f'{name}="..."' for name in _inputs(materials, cell.letters)),
        difference=_difference(cell.decode),
    )
    files.write_text(trial.stored.model / "README.md", text)
    example = _example(trial, materials, reading)
    files.write_text(trial.stored.model / "example.json", json.dumps(example, ensure_ascii=False) + "\n")


def _example(trial: Trial, materials: Materials, reading: Reading) -> dict[str, Any]:
    """Return the first utterance of the tested split, in the first condition, as prompt IDs and reference."""
    cell, evaluation = trial.cell, trial.evaluations[0]
    streams, _ = materials.streams(cell.letters, cell.split, evaluation.condition)
    prompt = pack(reading.template, streams[0], reading.vocabulary, reading.rates_hz, with_target=False)
    utterance = materials.corpus.split(cell.split)[0]
    source = {"id": utterance.id, "condition": snr.with_unit(evaluation.snr_db)}
    return {**source, "reference": utterance.text, "input_ids": prompt.ids.tolist()}
