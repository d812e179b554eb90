"""The shared ID space: text keeps `[0, V_text)`, then a disjoint range per modality, then the special tokens."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import tokenizers as hf_tokenizers  # the Hugging Face package; recipes are never imported by that name
from dmlm import files
from dmlm.errors import UserError
from dmlm.modalities import MODALITIES
from tokenizers import decoders, models, pre_tokenizers, trainers

SPECIALS = ("<pad>", "<bos>", "<eos>", *(f"<{letter}>" for letter in MODALITIES))


class TextVocabulary:
    """Byte-level BPE, so any string can be encoded and decodes to itself."""

    def __init__(self, bpe: hf_tokenizers.Tokenizer) -> None:
        self._bpe = bpe

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> "TextVocabulary":
        """Train on transcripts. Words keep their leading space, so a word has the same tokens everywhere.

        Raises:
            UserError: `size` is smaller than the byte alphabet.
        """
        bpe = hf_tokenizers.Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        bpe.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        if size < len(alphabet):
            raise UserError(f"text.vocab_size is {size}, but the bytes alone are {len(alphabet)}; choose a larger one.")
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe)

    @classmethod
    def of_model(cls, folder: Path) -> "TextVocabulary":
        """Open the text tokenizer of a pretrained model; `encode` does not add its special tokens."""
        from transformers import AutoTokenizer

        text = cls(AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer)
        if (largest := max(text._bpe.get_vocab(with_added_tokens=True).values())) != text.size - 1:
            raise UserError(
                f"The text tokenizer of {folder} has {text.size} tokens, but its largest ID is {largest}: IDs with gaps"
                " leave no place for the IDs of other modalities; give another text.tokenizer."
            )
        return text

    @classmethod
    def load(cls, path: Path) -> "TextVocabulary":
        """Read what `save` wrote.

        Raises:
            UserError: the file is damaged.
        """
        try:
            return cls(hf_tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the package has no exception class of its own
            raise UserError(
                f"Text vocabulary {path} cannot be read ({error}); remove it and run the same command, which makes it again."
            ) from None

    @classmethod
    def of_json(cls, text: str) -> "TextVocabulary":
        """The inverse of `json`."""
        return cls(hf_tokenizers.Tokenizer.from_str(text))

    @property
    def json(self) -> str:
        """The whole vocabulary, as `tokenizer.json` holds it."""
        return str(self._bpe.to_str())

    def save(self, path: Path) -> None:
        files.write_text(path, self._bpe.to_str(pretty=True))

    def save_with_units(self, folder: Path, vocabulary: "Vocabulary") -> None:
        """Write the complete ID space as `tokenizer.json` and its settings, which `AutoTokenizer` can open.

        Text keeps its IDs. Every other ID is a special token, such as `<A_17>` (unit 17 of the audio) or `<eos>`.

        Raises:
            ValueError: the IDs of a pretrained text tokenizer have gaps, so units would get other IDs.
        """
        from transformers import PreTrainedTokenizerFast

        values = json.loads(self._bpe.to_str())
        values["post_processor"] = None  # the template packs a sequence; the tokenizer must add nothing
        extended = hf_tokenizers.Tokenizer.from_str(json.dumps(values))
        text_tokens = extended.get_vocab(with_added_tokens=True)
        names = vocabulary.names()
        while clash := text_tokens.keys() & set(names):  # as in a text tokenizer of a model that was trained here
            names = [f"<dmlm:{name.strip('<>')}>" if name in clash else name for name in names]
        extended.add_special_tokens([hf_tokenizers.AddedToken(name, normalized=False) for name in names])
        expected_ids = list(range(vocabulary.text_size, vocabulary.size))
        if [extended.token_to_id(name) for name in names] != expected_ids:
            raise ValueError(
                f"the text tokenizer has gaps: units begin at {extended.token_to_id(names[0])}, not {expected_ids[0]}"
            )
        pad, bos, eos = names[-len(SPECIALS) :][:3]
        PreTrainedTokenizerFast(
            tokenizer_object=extended, pad_token=pad, bos_token=bos, eos_token=eos, clean_up_tokenization_spaces=False
        ).save_pretrained(folder)

    @classmethod
    def load_without_units(cls, folder: Path, text_size: int) -> "TextVocabulary":
        """Read the text part of what `save_with_units` wrote.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / "tokenizer.json"
        try:
            values = json.loads(path.read_text("utf-8"))
            values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < text_size]
            text = cls(hf_tokenizers.Tokenizer.from_str(json.dumps(values)))
        except Exception as error:  # the package has no exception class of its own
            raise UserError(f"{path} cannot be read ({error}); copy the model's folder again.") from None
        if text.size != text_size:
            raise UserError(
                f"{path} has {text.size} text tokens instead of {text_size}; copy the model's folder again."
            )
        return text

    @property
    def size(self) -> int:
        return self._bpe.get_vocab_size()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self._bpe.to_str().encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """IDs (N,) int32 of a string, in `[0, size)`."""
        return np.asarray(self._bpe.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each token by itself, with its leading space; a part of a letter is shown as `\ufffd`."""
        return [self._bpe.decode([token], skip_special_tokens=False) for token in ids]

    def decode(self, ids: Iterable[int]) -> str:
        return self._bpe.decode(list(ids)).strip()

    def piece(self, token: int) -> str:
        """Return the text of one ID, with the space before it; a part of a letter is written as U+FFFD."""
        return self._bpe.decode([int(token)])


@dataclass(frozen=True)
class Vocabulary:
    """Layout of the shared ID space for one set of modalities.

    >>> v = Vocabulary(300, {"A": 400, "L": 200})
    >>> v.offset("A"), v.offset("L"), v.special("<pad>"), v.size
    (300, 700, 900, 908)
    """

    text_size: int
    sizes: Mapping[str, int]  # modality letter -> number of IDs, for modalities with a tokenizer

    @cached_property
    def _offsets(self) -> dict[str, int]:
        offsets = {letter: 0 for letter, modality in MODALITIES.items() if modality.is_text}
        position = self.text_size
        for letter in MODALITIES:
            if letter in self.sizes:
                offsets[letter] = position
                position += self.sizes[letter]
        offsets["special"] = position
        return offsets

    @property
    def size(self) -> int:
        return self._offsets["special"] + len(SPECIALS)

    def names(self) -> list[str]:
        """Names of all IDs after the text range, in order.

        >>> Vocabulary(300, {"A": 2}).names()[:4]
        ['<A_0>', '<A_1>', '<pad>', '<bos>']
        """
        letters = [letter for letter in MODALITIES if letter in self.sizes]
        return [f"<{letter}_{unit}>" for letter in letters for unit in range(self.sizes[letter])] + list(SPECIALS)

    def offset(self, letter: str) -> int:
        """First ID of a modality's range."""
        return self._offsets[letter]

    def special(self, name: str) -> int:
        return self._offsets["special"] + SPECIALS.index(name)

    def range(self, letter: str) -> range:
        """All IDs of a modality."""
        start = self.offset(letter)
        return range(start, start + (self.text_size if MODALITIES[letter].is_text else self.sizes[letter]))

    def shift(self, letter: str, tokens: np.ndarray) -> np.ndarray:
        """Shift the IDs of one tokenizer to its range of the shared space.

        Raises:
            ValueError: an ID lies outside the vocabulary size that the tokenizer declares.
        """
        allowed = self.range(letter)
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(allowed):
            raise ValueError(
                f"modality {letter} has IDs {tokens.min()}..{tokens.max()}, its tokenizer declares [0, {len(allowed)})"
            )
        return tokens.astype(np.int64) + allowed.start
