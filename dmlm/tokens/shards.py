"""The token cache: each combination of utterance, condition and tokenizer is encoded once.

    tokens/CORPUS-digest8/RECIPE-fingerprint8/CONDITION/SPLIT-0000.safetensors   flat tokens, offsets, measured SNR
                                                        SPLIT-0000.sha256        written last: the shard is complete

A shard whose checksum does not match is encoded again. The text of a reader is stored the same way, as UTF-8 bytes.
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
CODEBOOK_CLIPS = 640  # about so many training clips give frames for a codebook
Map = Callable[[Callable[[Any], Any], list[Any]], Iterator[Any]]  # (function, jobs) -> results in any order


@dataclass(frozen=True)
class Encoded:
    """Tokens or texts of a split under one condition, and the measured SNRs."""

    tokens: dict[str, Any]  # utterance id -> int32 (T,), or str from a reader
    snr_db_measured: dict[str, float]  # utterance id -> dB


def _is_learned(path: Path) -> bool:
    """Whether a learned file exists and matches its checksum, if it has one; earlier versions wrote no checksum."""
    return path.is_file() and (files.sealed(path) or not path.with_suffix(".sha256").is_file())


def _is_complete(job: EncodingJob) -> bool:
    """Whether the shard of a job exists, is undamaged, and holds the utterances of the job."""
    path = job.target
    if files.sealed(path):
        with safe_open(path, "np") as file:
            return json.loads(file.metadata()["ids"]) == [fields["id"] for fields in job.utterances]
    if path.is_file() and path.with_suffix(".sha256").is_file():
        print(f"Token shard {path} is damaged; encoding it again.", file=sys.stderr)
    return False


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
        self._root = paths.home() / "tokens" / corpus.label
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
        fingerprint = (encoder or self.encoder).fingerprint
        key = hashlib.sha256(f"{fingerprint} {self._learn_under.key}".encode()).hexdigest()[:8]
        return self._root / f"{part}s" / f"{Path(self.spec.recipe).stem}-{key}.safetensors"

    def learn(self) -> "TokenSource":
        """Learn the network and the codebook that the tokenizer needs, or open those in the cache. Return self."""
        training = self.corpus.split("train")
        if isinstance(self.encoder, Tokenizer) and self.encoder.learns and self.encoder.learned is None:
            path = self._learned_path("network")
            if not _is_learned(path):
                print(f"{self.spec.recipe}: learning its network on {len(training):,} training clips", file=sys.stderr)
                fields = [utterance.model_dump() for utterance in training]
                fingerprint = self.encoder.fingerprint
                job = EncodingJob(self.spec, fingerprint, self.corpus.folder, fields, self._learn_under, path)
                self._run_one(encoding.fit_network, job)
            self._rebuild(network=path)
        if isinstance(self.encoder, Tokenizer) and self.encoder.clusters and self.encoder.codebook is None:
            path = self._learned_path("codebook")
            if not _is_learned(path):
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

    def count_missing(self, split: str, condition: Condition) -> int:
        """Count the clips whose tokens are not in the cache."""
        shards = self._shards(split, self.condition_for(condition))
        return sum(len(job.utterances) for job in shards if not job.target.with_suffix(".sha256").is_file())

    def prepare(self, split: str, condition: Condition) -> None:
        """Encode the clips that are not in the cache yet."""
        condition = self.condition_for(condition)
        if isinstance(self.encoder, Reader) and self.encoder.first_pass:
            first_pass.check(self.encoder.first_pass, self.corpus.label)
        jobs = [job for job in self._shards(split, condition) if not _is_complete(job)]
        if jobs:
            self._write_card()
            label = f"tokens {self.encoder.modality} {split} {condition.key.rsplit('-', 1)[0]}"
            self._run(encoding.encode_shard, jobs, label, sum(len(job.utterances) for job in jobs))

    def load(self, split: str, condition: Condition) -> Encoded:
        """Load the tokens of a split; missing or damaged shards are encoded first."""
        condition = self.condition_for(condition)
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
        with progress.bar(label, total, "clip") as bar:
            for count in self._map(function, jobs):
                bar.update(count)

    def _write_card(self) -> None:
        card = {
            "recipe": self.spec.recipe,
            "settings": self.encoder.settings.model_dump(mode="json"),
            "modality": self.encoder.modality,
            "fingerprint": self.fingerprint,
            "corpus": self.corpus.digest,
        }
        files.write_text(self._root / self.name / "tokenizer.json", json.dumps(card, indent=2) + "\n")
