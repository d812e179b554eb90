"""The folder of a trained model: everything needed to transcribe a new clip, also with plain `transformers`.

config.json model.safetensors generation_config.json    the network, for `AutoModelForCausalLM`
tokenizer.json tokenizer_config.json                    the ID space, for `AutoTokenizer`
dmlm.json                                               template, encoders, decoding, corpus and settings of training
encoders/LETTER-codebook.safetensors, ...-network...    codebooks and networks that were learned for the encoders
example.json README.md                                  one utterance as IDs; the model card
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import GenerationConfig, PreTrainedModel

from dmlm import files
from dmlm.corpus.noise import Placement
from dmlm.errors import UserError
from dmlm.recognition.settings import DecodeSettings
from dmlm.score import normalisers
from dmlm.tokens.vocabulary import TextVocabulary, Vocabulary

FILE = "dmlm.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderDescription(_Record):
    """How one modality is encoded."""

    recipe: str
    settings: dict[str, Any]
    fingerprint: str  # of recipe, settings, weights and codebook: equal fingerprints give equal tokens
    vocab_size: int | None  # None: a reader, which returns text
    rate_hz: float | None
    network: str | None = None  # a file inside the folder
    codebook: str | None = None  # a file inside the folder
    weights: dict[str, Any] | None = None  # published weights: source, licence, files with digests


class ModelDescription(_Record):
    """The content of `dmlm.json`."""

    dmlm: str  # version of this package
    label: str
    template: str
    text_size: int
    encoders: dict[str, EncoderDescription]  # by modality letter
    decode: DecodeSettings
    normaliser: normalisers.Name = "basic"  # of transcripts; older folders have none
    may_lack: tuple[
        str, ...
    ] = ()  # letters of modalities that the model was trained to do without, by an empty segment
    placement: Placement = "second_half"  # which part of a sentence was noisy in training; older folders have none
    longest_s: float | None = None  # the longest clip of training; older folders have none
    around_s: tuple[float, float] | None = None  # silence before and after the speech of a clip of training, medians
    corpus: dict[str, Any]  # its card, with licence and language
    trial: dict[str, Any]  # every setting that the weights depend on

    @property
    def vocabulary(self) -> Vocabulary:
        """The shared ID space."""
        sizes = {letter: e.vocab_size for letter, e in self.encoders.items() if e.vocab_size is not None}
        return Vocabulary(self.text_size, sizes)

    @property
    def used_to_s(self) -> float:
        """How long a clip may be, in seconds: as the longest of training; in older folders, half of what fits the context."""
        rates_hz = [encoder.rate_hz for encoder in self.encoders.values() if encoder.rate_hz]
        if self.longest_s or not rates_hz:
            return self.longest_s or math.inf
        return (int(self.trial["model"]["context"]) - self.decode.max_new_tokens) / sum(rates_hz) / 2


def write_model_folder(
    folder: Path,
    model: PreTrainedModel,
    description: ModelDescription,
    text: TextVocabulary,
    learned: Mapping[str, Path],
) -> None:
    """Write the folder of a trained model, except the model card.

    Args:
        folder: where to write.
        model: the network.
        description: the content of `dmlm.json`.
        text: the text vocabulary.
        learned: files to copy into `encoders/`, by name without suffix, such as `A-codebook`.
    """
    vocabulary, decode = description.vocabulary, description.decode
    model.generation_config = generation_config(vocabulary, decode)
    model.save_pretrained(folder)
    text.save_with_units(folder, vocabulary)
    for name, source in learned.items():
        target = folder / "encoders" / f"{name}{source.suffix}"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        files.seal(target)
    files.write_text(folder / FILE, description.model_dump_json(indent=1) + "\n")


def generation_config(vocabulary: Vocabulary, decode: DecodeSettings) -> GenerationConfig:
    """Return the settings with which `generate` of `transformers` writes what `dmlm.recognition.decode` writes."""
    return GenerationConfig(
        bos_token_id=vocabulary.special("<bos>"),
        eos_token_id=vocabulary.special("<eos>"),
        pad_token_id=vocabulary.special("<pad>"),
        max_new_tokens=decode.max_new_tokens,
        do_sample=False,
        num_beams=decode.beams,
        length_penalty=decode.length_penalty if decode.beams > 1 else 1.0,
        renormalize_logits=True,  # over what may be written, as in `dmlm.recognition.decode`
        suppress_tokens=[  # only text and <eos> are generated
            token for token in range(vocabulary.text_size, vocabulary.size) if token != vocabulary.special("<eos>")
        ],
    )


def read_description(folder: Path) -> ModelDescription:
    """Read the description of a trained model.

    Raises:
        UserError: the folder is not the folder of a model, is damaged, or was written by an earlier version.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"{folder} has no {FILE}; give the folder `model` of a trial that this version trained (older ones lack it)."
        )
    try:
        return ModelDescription.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged ({field}: {first['msg']}); copy the model's folder again.") from None
