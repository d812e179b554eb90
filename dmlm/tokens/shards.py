"""The token cache: an (utterance, condition, tokenizer) is encoded once, ever.

    tokens/CORPUS-digest8/RECIPE-fingerprint8/CONDITION/SPLIT-0000.safetensors   flat tokens, offsets, measured SNR
                                                        SPLIT-0000.sha256        written last: the shard is whole

A shard whose checksum does not fit is encoded again. Text of a reader is kept in the same form, as UTF-8 bytes.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dmlm import files, paths, processes, progress
from dmlm.corpus.condition import CLEAN, Condition
from dmlm.corpus.manifest import Corpus, Utterance
from dmlm.errors import UserError
from dmlm.tokens import encoding, first_pass
from dmlm.tokens.encoder import Encoder, Reader, Tokenizer
from dmlm.tokens.encoding import EncoderSpec, EncodingJob

SHARD_SIZE = 128  # utterances
CODEBOOK_CLIPS = 640  # training clips whose frames a codebook is learned from
Map = Callable[[Callable[[Any], Any], list[Any]], Iterator[Any]]  # function, jobs: values as they come


@dataclass(frozen=True)
class Encoded:
    """Tokens (or texts) of a split under one condition, by utterance id, and the SNR measured for each."""

    tokens: dict[str, Any]  # id -> int32 (T,), or str from a reader
    snr_db_measured: dict[str, float]


def _kept(path: Path) -> bool:
    """Whether what was learned is there and fits its seal, if it has one; earlier versions sealed nothing."""
    return path.is_file() and (files.sealed(path) or not path.with_suffix(".sha256").is_file())


def _whole(job: EncodingJob) -> bool:
    """Whether a shard is there, undamaged, and of these utterances."""
    path = job.target
    if files.sealed(path):
        with safe_open(path, "np") as file:
            return json.loads(file.metadata()["ids"]) == [fields["id"] for fields in job.utterances]
    if path.is_file() and path.with_suffix(".sha256").is_file():
        print(f"Token shard {path} is damaged; encoding it again.", file=sys.stderr)
    return False


class TokenSource:
    """One modality of one corpus through one tokenizer."""

    def __init__(
        self,
        corpus: Corpus,
        recipe: str,
        settings: dict[str, Any],
        learn_under: Condition,
        run: Map = processes.run,
        device: str = "cpu",
    ) -> None:
        """`run` is what maps a function over shards: processes of this machine, or an engine."""
        self.corpus, self._map = corpus, run
        self.spec = EncoderSpec(recipe, settings, device=device)
        self.encoder = self.spec.build()
        self._root = paths.home() / "tokens" / corpus.label
        self._learn_under = self.under(learn_under)

    @staticmethod
    def check(letter: str, recipe: str, settings: dict[str, Any]) -> Encoder:
        """The encoder; a recipe that is unknown, set wrongly or for another modality is refused.

        Raises:
            UserError: one sentence.
        """
        encoder = EncoderSpec(recipe, settings).build()
        if encoder.modality != letter:
            raise UserError(
                f"tokenizers.{letter}: recipe {recipe!r} is for modality {encoder.modality}; choose one for {letter}."
            )
        return encoder

    @cached_property
    def fingerprint(self) -> str:
        """That of the encoder when it was asked for first: weights or transcripts that change later are refused."""
        return self.encoder.fingerprint

    @property
    def name(self) -> str:
        return f"{Path(self.spec.recipe).stem}-{self.fingerprint[:8]}"

    @property
    def learned(self) -> bool:
        """Whether nothing is left to learn, so that `ready` costs nothing."""
        return all(map(_kept, self._to_learn()))

    @property
    def learned_files(self) -> dict[str, Path]:
        """What was learned for the encoder so far, by part: `network`, `codebook`."""
        parts = {"network": self.spec.network, "codebook": self.spec.codebook}
        return {part: path for part, path in parts.items() if path is not None}

    def _to_learn(self) -> Iterator[Path]:
        """Where what is learned belongs, the network first: the codebook's place hangs on it."""
        encoder = self.encoder
        if isinstance(encoder, Tokenizer) and encoder.learns and encoder.learned is None:
            network = self._learned_path("network")
            yield network
            if not encoder.clusters or not _kept(network):
                return
            encoder = replace(self.spec, network=network).build()
        if isinstance(encoder, Tokenizer) and encoder.clusters and encoder.codebook is None:
            yield self._learned_path("codebook", encoder)

    def _learned_path(self, part: str, encoder: Encoder | None = None) -> Path:
        fingerprint = (encoder or self.encoder).fingerprint
        key = hashlib.sha256(f"{fingerprint} {self._learn_under.key}".encode()).hexdigest()[:8]
        return self._root / f"{part}s" / f"{Path(self.spec.recipe).stem}-{key}.safetensors"

    def ready(self) -> "TokenSource":
        """Learn the network and the codebook if the tokenizer wants them and they are not there yet."""
        training = self.corpus.split("train")
        if isinstance(self.encoder, Tokenizer) and self.encoder.learns and self.encoder.learned is None:
            path = self._learned_path("network")
            if not _kept(path):
                print(f"{self.spec.recipe}: learning its network on {len(training):,} training clips", file=sys.stderr)
                fields = [utterance.model_dump() for utterance in training]
                self._learn(
                    encoding.fit,
                    EncodingJob(
                        self.spec, self.encoder.fingerprint, self.corpus.folder, fields, self._learn_under, path
                    ),
                )
            self._rebuild(network=path)
        if isinstance(self.encoder, Tokenizer) and self.encoder.clusters and self.encoder.codebook is None:
            path = self._learned_path("codebook")
            if not _kept(path):
                self._learn_codebook(path, training[:: max(1, len(training) // CODEBOOK_CLIPS)])
            self._rebuild(codebook=path)
        return self

    def _learn_codebook(self, path: Path, clips: list[Utterance]) -> None:
        jobs = [
            replace(job, target=path.with_name(f".{path.stem}-{number}.part"))
            for number, job in enumerate(self._jobs(clips, self._learn_under, path.parent, "sample"))
        ]
        self._run(encoding.sample_features, jobs, f"codebook {self.spec.recipe}", len(clips))
        assert isinstance(self.encoder, Tokenizer)
        self._learn(encoding.learn, ([job.target for job in jobs], self.encoder.clusters or 0, path))
        for job in jobs:
            job.target.unlink()

    def _learn(self, function: Callable[[Any], None], job: Any) -> None:
        for _ in self._map(function, [job]):
            pass

    def _rebuild(self, **changed: Any) -> None:
        self.spec = replace(self.spec, **changed)
        self.encoder = self.spec.build()
        self.__dict__.pop("fingerprint", None)

    def under(self, condition: Condition) -> Condition:
        """The condition that a hearing condition is to this encoder: itself, or clean where it hears nothing."""
        return condition if self.encoder.hears else CLEAN

    def missing(self, split: str, condition: Condition) -> int:
        """Clips whose tokens are not in the cache."""
        shards = self._shards(split, self.under(condition))
        return sum(len(job.utterances) for job in shards if not job.target.with_suffix(".sha256").is_file())

    def prepare(self, split: str, condition: Condition) -> None:
        """Encode what is not in the cache yet."""
        condition = self.under(condition)
        if isinstance(self.encoder, Reader) and self.encoder.first_pass:
            first_pass.check(self.encoder.first_pass, self.corpus.label)
        jobs = [job for job in self._shards(split, condition) if not _whole(job)]
        if jobs:
            self._write_card()
            label = f"tokens {self.encoder.modality} {split} {condition.key.rsplit('-', 1)[0]}"
            self._run(encoding.encode_shard, jobs, label, sum(len(job.utterances) for job in jobs))

    def load(self, split: str, condition: Condition) -> Encoded:
        """Tokens of a split, memory-mapped and checked; what is missing or damaged is encoded first."""
        condition = self.under(condition)
        self.prepare(split, condition)
        tokens: dict[str, Any] = {}
        levels: dict[str, float] = {}
        for job in self._shards(split, condition):
            arrays = encoding.open_tensors(job.target)
            offsets = arrays["offsets"]
            for row, fields in enumerate(job.utterances):
                part = arrays["tokens"][offsets[row] : offsets[row + 1]]
                tokens[fields["id"]] = part.tobytes().decode() if isinstance(self.encoder, Reader) else part
                levels[fields["id"]] = float(arrays["snr_db"][row])
        return Encoded(tokens, levels)

    def _shards(self, split: str, condition: Condition) -> list[EncodingJob]:
        folder = self._root / self.name / condition.key
        return list(self._jobs(self.corpus.split(split), condition, folder, split))

    def _jobs(
        self, utterances: list[Utterance], condition: Condition, folder: Path, name: str
    ) -> Iterator[EncodingJob]:
        fingerprint = self.fingerprint
        for number, start in enumerate(range(0, len(utterances), SHARD_SIZE)):
            fields = [u.model_dump() for u in utterances[start : start + SHARD_SIZE]]
            target = folder / f"{name}-{number:04d}.safetensors"
            yield EncodingJob(self.spec, fingerprint, self.corpus.folder, fields, condition, target)

    def _run(self, function: Any, jobs: list[EncodingJob], label: str, total: int) -> None:
        with progress.bar(label, total, "clip") as shown:
            for done in self._map(function, jobs):
                shown.update(done)

    def _write_card(self) -> None:
        card = {
            "recipe": self.spec.recipe,
            "settings": self.encoder.settings.model_dump(mode="json"),
            "modality": self.encoder.modality,
            "fingerprint": self.fingerprint,
            "corpus": self.corpus.digest,
        }
        files.write_text(self._root / self.name / "tokenizer.json", json.dumps(card, indent=2) + "\n")
