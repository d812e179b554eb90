"""The folder of a trained model: everything that reading a new clip takes, and what plain `transformers` needs.

config.json model.safetensors generation_config.json    the network, for `AutoModelForCausalLM`
tokenizer.json tokenizer_config.json                    the ID space, for `AutoTokenizer`
dmlm.json                                               template, encoders, decoding, what it was trained on
encoders/LETTER-codebook.safetensors, ...-network...    what was learned for the encoders
example.json README.md                                  one utterance as IDs; the model card
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import GenerationConfig, PreTrainedModel

from dmlm import files
from dmlm.errors import UserError
from dmlm.recognition.settings import DecodeSettings
from dmlm.tokens.vocabulary import TextVocabulary, Vocabulary

FILE = "dmlm.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderDescription(_Record):
    """How one modality is encoded."""

    recipe: str
    settings: dict[str, Any]
    fingerprint: str  # of recipe, settings, weights and what was learned: another one gives other tokens
    vocab_size: int | None  # None: it gives text
    rate_hz: float | None
    network: str | None = None  # files inside the folder
    codebook: str | None = None
    weights: dict[str, Any] | None = None  # published ones: source, licence, files with digests


class ModelDescription(_Record):
    """What `dmlm.json` holds."""

    dmlm: str  # version
    label: str
    template: str
    text_size: int
    encoders: dict[str, EncoderDescription]  # by letter
    decode: DecodeSettings
    corpus: dict[str, Any]  # its card, with licence and language
    trial: dict[str, Any]  # every setting that decided the weights

    @property
    def vocabulary(self) -> Vocabulary:
        """The ID space."""
        sizes = {letter: e.vocab_size for letter, e in self.encoders.items() if e.vocab_size is not None}
        return Vocabulary(self.text_size, sizes)


def write_model_folder(
    folder: Path,
    model: PreTrainedModel,
    description: ModelDescription,
    text: TextVocabulary,
    learned: Mapping[str, Path],
) -> None:
    """Write everything but the model card; `learned` maps names such as `A-codebook` to files that are copied."""
    vocabulary, decode = description.vocabulary, description.decode
    model.generation_config = GenerationConfig(
        bos_token_id=vocabulary.special("<bos>"),
        eos_token_id=vocabulary.special("<eos>"),
        pad_token_id=vocabulary.special("<pad>"),
        max_new_tokens=decode.max_new_tokens,
        do_sample=False,
        num_beams=decode.beams,
        length_penalty=decode.length_penalty if decode.beams > 1 else 1.0,
        suppress_tokens=[  # only text is written
            number for number in range(vocabulary.text_size, vocabulary.size) if number != vocabulary.special("<eos>")
        ],
    )
    model.save_pretrained(folder)
    text.save_with_units(folder, vocabulary)
    for name, source in learned.items():
        target = folder / "encoders" / f"{name}{source.suffix}"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        files.seal(target)
    files.write_text(folder / FILE, description.model_dump_json(indent=1) + "\n")


def read_description(folder: Path) -> ModelDescription:
    """The description of a trained model.

    Raises:
        UserError: the folder is not that of a model, or was written by an earlier version.
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
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged ({where}: {first['msg']}); copy the model's folder again.") from None
