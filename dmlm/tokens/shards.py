"""The token cache: each combination of recording, condition and tokenizer is encoded once, whichever corpora hold it.

    tokens/RECIPE-fingerprint8/CONDITION/NAME.safetensors   flat tokens, offsets, measured SNR; the key of each clip
                                         NAME.sha256        written last: the shard is complete
    tokens/codebooks, tokens/networks                       what tokenizers learned on training clips

The key of a clip is a digest of everything else that its tokens depend on: its media file and, where noise is added, its
id and its spans. So another transcript encodes nothing again, and another recording one clip. A shard whose checksum
does not match is encoded again. The text of a reader is stored the same way, as UTF-8 bytes.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import safe_open

from dmlm import files, known_files, paths, processes, progress
from dmlm.corpus.condition import CLEAN, Condition
from dmlm.corpus.manifest import Corpus, Utterance
from dmlm.errors import UserError
from dmlm.modalities import FIELDS
from dmlm.processes import Map
from dmlm.tokens import encoding, first_pass
from dmlm.tokens.encoder import Encoder, Reader, Tokenizer
from dmlm.tokens.encoding import EncoderSpec, EncodingJob

T = TypeVar("T")
SHARD_SIZE = 128  # utterances
LACKING = "lacking"  # key of an utterance that lacks the modality
CODEBOOK_CLIPS = 640  # about so many training clips give frames for a codebook


@dataclass(frozen=True)
class Encoded:
    """Tokens or texts of a split under one condition, and the measured SNRs."""

    tokens: dict[
        str, Any
    ]  # utterance id -> int32 (T,), or str from a reader; empty where the utterance lacks the modality
    snr_db_measured: dict[str, float]  # utterance id -> dB


def _is_learned(path: Path) -> bool:
    """Whether a learned file exists and matches its checksum, if it has one; earlier versions wrote no checksum."""
    return path.is_file() and (files.sealed(path) or not path.with_suffix(".sha256").is_file())


def _stored(folder: Path) -> dict[str, tuple[Path, int]]:
    """Return shard and row of every clip in a folder, by its key. Damaged shards are removed, aloud."""
    stored: dict[str, tuple[Path, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if files.sealed(path):
            with safe_open(path, "np") as file:
                keys = json.loads(file.metadata()["keys"])
            stored |= {key: (path, row) for row, key in enumerate(keys)}
        elif path.with_suffix(".sha256").is_file():
            print(f"Token shard {path} is damaged; encoding it again.", file=sys.stderr)
            path.with_suffix(".sha256").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    return stored


def _shards(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the items in groups of the size of a shard."""
    return (items[start : start + SHARD_SIZE] for start in range(0, len(items), SHARD_SIZE))


class TokenSource:
    """The tokens of one modality of one corpus, from one encoder."""

    def __init__(
        self,
        corpus: Corpus,
        recipe: str,
        settings: dict[str, Any],
        learn_under: Condition,
        run: Map = processes.run,
        device: str = "cpu",
    ) -> None:
        """Build the encoder.

        Args:
            corpus: whose utterances are encoded
            recipe: name or path of the encoder recipe
            settings: of the recipe
            learn_under: condition under which a network or a codebook is learned
            run: maps a function over jobs, in processes of this machine or on an engine
            device: where the network of the encoder runs
        """
        self.corpus, self._map = corpus, run
        self.spec = EncoderSpec(recipe, settings, device=device)
        self.encoder = self.spec.build()
        self._root = paths.home() / "tokens"
        self._learn_under = self.condition_for(learn_under)

    @staticmethod
    def check(letter: str, recipe: str, settings: dict[str, Any]) -> Encoder:
        """Build the encoder of a modality, which checks its recipe and settings.

        Raises:
            UserError: the recipe is unknown or for another modality, or a setting is wrong.
        """
        encoder = EncoderSpec(recipe, settings).build()
        if encoder.modality != letter:
            raise UserError(
                f"tokenizers.{letter}: recipe {recipe!r} is for modality {encoder.modality}; choose one for {letter}."
            )
        return encoder

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder, computed once: a worker refuses weights or transcripts that change later."""
        return self.encoder.fingerprint

    @property
    def name(self) -> str:
        """Readable and unique name: `recipe-fingerprint8`."""
        return f"{Path(self.spec.recipe).stem}-{self.fingerprint[:8]}"

    @property
    def is_learned(self) -> bool:
        """Whether nothing is left to learn, so that `learn` only opens files."""
        return all(map(_is_learned, self._learned_paths()))

    @property
    def learned_files(self) -> dict[str, Path]:
        """Files that were learned for the encoder so far, by part: `network`, `codebook`."""
        parts = {"network": self.spec.network, "codebook": self.spec.codebook}
        return {part: path for part, path in parts.items() if path is not None}

    def _learned_paths(self) -> Iterator[Path]:
        """Yield the paths of what the encoder still has to learn or open; the codebook's path depends on the network."""
        encoder = self.encoder
        if isinstance(encoder, Tokenizer) and encoder.learns and encoder.learned is None:
            network = self._learned_path("network")
            yield network
            if not encoder.clusters or not _is_learned(network):
                return
            encoder = replace(self.spec, network=network).build()
        if isinstance(encoder, Tokenizer) and encoder.clusters and encoder.codebook is None:
            yield self._learned_path("codebook", encoder)

    def _learned_path(self, part: str, encoder: Encoder | None = None) -> Path:
        clips = self._codebook_clips if part == "codebook" else self._having("train")
        keys = (self.key_of(utterance, self._learn_under) for utterance in clips)
        key = known_files.digest_of([(encoder or self.encoder).fingerprint, self._learn_under.key, *keys])[:16]
        return self._root / f"{part}s" / f"{Path(self.spec.recipe).stem}-{key}.safetensors"

    @cached_property
    def _codebook_clips(self) -> list[Utterance]:
        training = self._having("train")
        return training[:: max(1, len(training) // CODEBOOK_CLIPS)]

    def _having(self, split: str) -> list[Utterance]:
        """Return the utterances of a split that have what is encoded."""
        return [u for u in self.corpus.split(split) if getattr(u, self.encoder.media) is not None]

    def learn(self) -> "TokenSource":
        """Learn the network and the codebook that the tokenizer needs, or open those in the cache. Return self."""
        training = self._having("train")
        if isinstance(self.encoder, Tokenizer) and self.encoder.learns and self.encoder.learned is None:
            path = self._learned_path("network")
            if not _is_learned(path):
                print(f"{self.spec.recipe}: learning its network on {len(training):,} training clips", file=sys.stderr)
                self._run_one(encoding.fit_network, self._job(training, self._learn_under, path))
            self._rebuild(network=path)
        if isinstance(self.encoder, Tokenizer) and self.encoder.clusters and self.encoder.codebook is None:
            path = self._learned_path("codebook")
            if not _is_learned(path):
                self._learn_codebook(path)
            self._rebuild(codebook=path)
        return self

    def _learn_codebook(self, path: Path) -> None:
        clips = self._codebook_clips
        jobs = [
            self._job(some, self._learn_under, path.with_name(f".{path.stem}-{number}.part"))
            for number, some in enumerate(_shards(clips))
        ]
        self._run(encoding.sample_features, jobs, f"codebook {self.spec.recipe}", len(clips))
        assert isinstance(self.encoder, Tokenizer)
        self._run_one(encoding.fit_codebook, ([job.target for job in jobs], self.encoder.clusters or 0, path))
        for job in jobs:
            job.target.unlink()

    def _run_one(self, function: Callable[[Any], None], job: Any) -> None:
        for _ in self._map(function, [job]):
            pass

    def _rebuild(self, **changed: Any) -> None:
        """Build the encoder again with changed fields of its spec, and forget its fingerprint."""
        self.spec = replace(self.spec, **changed)
        self.encoder = self.spec.build()
        self.__dict__.pop("fingerprint", None)

    def condition_for(self, condition: Condition) -> Condition:
        """Return the condition whose tokens to use: CLEAN for all, if the encoder does not depend on noise."""
        return condition if self.encoder.depends_on_noise else CLEAN

    def key_of(self, utterance: Utterance, condition: Condition) -> str:
        """Return the digest of what the tokens of an utterance depend on, besides the encoder and the condition.

        It is `LACKING` if the utterance has nothing to encode: it has no token, so its segment is empty.
        """
        content = getattr(utterance, self.encoder.media)
        if content is None:
            return LACKING
        parts = [self._digest_of(utterance) or f"text {content}"]
        if not condition.clean or (isinstance(self.encoder, Reader) and self.encoder.first_pass):
            parts += [utterance.id, utterance.split, repr(utterance.duration_s), repr(utterance.spans)]
        return known_files.digest_of(parts)[:32]

    def _digest_of(self, utterance: Utterance) -> str:
        """Return the digest of the file of an utterance that is encoded; empty if text is encoded.

        Raises:
            UserError: there is no such file.
        """
        if not FIELDS[self.encoder.media].file:
            return ""
        name = getattr(utterance, self.encoder.media)
        if digest := self.corpus.media_digests.get(name):
            return digest
        raise UserError(f"{self.corpus.folder / name}, of utterance {utterance.id!r}, is missing; restore it.")

    def content(self, split: str, condition: Condition) -> str:
        """Return the digest of what the tokens of a split depend on, besides the encoder: the condition and its clips."""
        condition = self.condition_for(condition)
        return known_files.digest_of([condition.key, *(self.key_of(u, condition) for u in self.corpus.split(split))])

    def missing(self, split: str, condition: Condition) -> set[str]:
        """Return the keys of the clips whose tokens are not in the cache."""
        return set(self._missing(self.corpus.split(split), self.condition_for(condition))[0])

    def _folder(self, condition: Condition) -> Path:
        return self._root / self.name / condition.key

    def _missing(
        self, utterances: Sequence[Utterance], condition: Condition
    ) -> tuple[dict[str, Utterance], dict[str, tuple[Path, int]]]:
        """Return the clips that are not in the cache, by key, and where all clips of the condition are."""
        stored = _stored(self._folder(condition))
        having = (u for u in utterances if getattr(u, self.encoder.media) is not None)
        clips = {self.key_of(utterance, condition): utterance for utterance in having}
        return {key: utterance for key, utterance in clips.items() if key not in stored}, stored

    def prepare(self, split: str, condition: Condition) -> None:
        """Encode the clips that are not in the cache yet."""
        self._prepare(self.corpus.split(split), self.condition_for(condition))

    def _prepare(self, utterances: Sequence[Utterance], condition: Condition) -> dict[str, tuple[Path, int]]:
        """Encode what is missing; return shard and row of every clip under this condition, by key."""
        if isinstance(self.encoder, Reader) and self.encoder.first_pass:
            first_pass.check(self.encoder.first_pass, self.corpus.label)
        missing, stored = self._missing(utterances, condition)
        if not missing:
            return stored
        self._write_card()
        jobs = []
        for keys in _shards(list(missing)):
            target = self._folder(condition) / f"{known_files.digest_of(keys)[:16]}.safetensors"
            jobs.append(self._job([missing[key] for key in keys], condition, target, keys))
        label = f"tokens {self.encoder.modality} {utterances[0].split} {condition.key.rsplit('-', 1)[0]}"
        self._run(encoding.encode_shard, jobs, label, len(missing))
        return _stored(self._folder(condition))

    def load(self, split: str, condition: Condition) -> Encoded:
        """Load the tokens of a split; missing or damaged shards are encoded first."""
        return self.load_some(self.corpus.split(split), condition)

    def load_some(self, utterances: Sequence[Utterance], condition: Condition) -> Encoded:
        """Load the tokens of utterances of one split; those that are not in the cache are encoded first."""
        condition = self.condition_for(condition)
        stored = self._prepare(utterances, condition)
        shards: dict[Path, dict[str, Any]] = {}
        tokens: dict[str, Any] = {}
        levels: dict[str, float] = {}
        for utterance in utterances:
            if (key := self.key_of(utterance, condition)) == LACKING:
                tokens[utterance.id] = "" if isinstance(self.encoder, Reader) else np.empty(0, np.int32)
                continue
            path, row = stored[key]
            if path not in shards:
                shards[path] = encoding.open_tensors(path)
            arrays = shards[path]
            part = arrays["tokens"][arrays["offsets"][row] : arrays["offsets"][row + 1]]
            tokens[utterance.id] = part.tobytes().decode() if isinstance(self.encoder, Reader) else part
            levels[utterance.id] = float(arrays["snr_db"][row])
        return Encoded(tokens, levels)

    def _job(
        self, utterances: Sequence[Utterance], condition: Condition, target: Path, keys: Sequence[str] = ()
    ) -> EncodingJob:
        fields = [utterance.model_dump() for utterance in utterances]
        digests = tuple(filter(None, map(self._digest_of, utterances)))
        folder = self.corpus.folder
        return EncodingJob(self.spec, self.fingerprint, folder, fields, condition, target, tuple(keys), digests)

    def _run(self, function: Any, jobs: list[EncodingJob], label: str, total: int) -> None:
        with progress.bar(label, total, "clip") as bar:
            for count in self._map(function, jobs):
                bar.update(count)

    def _write_card(self) -> None:
        card = {
            "recipe": self.spec.recipe,
            "settings": self.encoder.settings.model_dump(mode="json"),
            "modality": self.encoder.modality,
            "fingerprint": self.fingerprint,
        }
        files.write_text(self._root / self.name / "tokenizer.json", json.dumps(card, indent=2) + "\n")
