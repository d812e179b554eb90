"""The token cache: an (utterance, condition, tokenizer) is encoded once, ever.

    tokens/CORPUS-digest8/RECIPE-fingerprint8/CONDITION/SPLIT-0000.safetensors   flat tokens, offsets, measured SNR
                                                        SPLIT-0000.sha256        written last: the shard is whole

A shard whose checksum does not fit is encoded again. Text of a reader is kept in the same form, as UTF-8 bytes.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dmlm import places, progress, recipes, workers
from dmlm.corpus import media
from dmlm.corpus.condition import CLEAN, Condition
from dmlm.corpus.manifest import Corpus, Utterance
from dmlm.errors import UserError, did_you_mean
from dmlm.tokens import first_pass
from dmlm.tokens.quantize import Codebook, learn_codebook
from dmlm.tokens.tokenizer import Encoder, Reader, Tokenizer

SHARD_SIZE = 128  # utterances
CODEBOOK_CLIPS = 640  # training clips whose frames a codebook is learned from
CODEBOOK_FRAMES = 80_000
Run = Callable[[Callable[[Any], Any], list[Any], int | None], Iterator[Any]]  # function, jobs, processes: values


@dataclass(frozen=True)
class EncoderSpec:
    """A recipe with its settings: plain data from which any process builds the same encoder."""

    recipe: str
    settings: dict[str, Any]
    network: Path | None = None  # what the recipe's `fit` learned
    codebook: Path | None = None
    device: str = "cpu"

    def build(self) -> Encoder:
        """The encoder, with its codebook if it has been learned.

        Raises:
            UserError: unknown recipe, or a setting that the recipe does not know or accept.
        """
        kind = recipes.load_class("tokenizers", self.recipe, Encoder)
        try:
            settings = kind.Settings(**self.settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            which = f"setting {name!r}" if name else "settings"
            hint = (
                did_you_mean(name, kind.Settings.model_fields) if first["type"] == "extra_forbidden" else first["msg"]
            )
            raise UserError(f"Tokenizer {self.recipe}: {which}: {hint.removeprefix('Value error, ')}.") from None
        encoder = kind(settings)
        encoder.device = self.device
        if isinstance(encoder, Tokenizer):
            encoder.learned = _open_learned(self.network) if self.network else None
            encoder.codebook = Codebook.load(self.codebook) if self.codebook else None
        return encoder


_built: dict[str, Encoder] = {}  # of the last shard that this process encoded


def _encoder(job: "_Job") -> Encoder:
    """That of the last shard, if this one wants the same: a network is opened once.

    Raises:
        UserError: this process has another version of the recipe or of its weights than the driver.
    """
    key = repr(job.spec)
    if key not in _built:
        forget()
        _built[key] = job.spec.build()
    if _built[key].fingerprint != job.fingerprint:
        raise UserError(f"Tokenizer {job.spec.recipe} was changed while it was in use; run the same command again.")
    return _built[key]


def forget() -> None:
    """Give the memory of a network back."""
    _built.clear()


@dataclass(frozen=True)
class _Job:
    spec: EncoderSpec
    fingerprint: str  # of the driver's encoder
    corpus: Path
    utterances: list[dict[str, Any]]
    condition: Condition
    target: Path


@dataclass(frozen=True)
class Encoded:
    """Tokens (or texts) of a split under one condition, by utterance id, and the SNR measured for each."""

    tokens: dict[str, Any]  # id -> int32 (T,), or str from a reader
    snr_db: dict[str, float]


def _read(encoder: Encoder, corpus: Path, utterance: Utterance, condition: Condition) -> tuple[Any, float]:
    """What the encoder is given for one utterance, and the SNR measured on it (inf where no noise applies)."""
    name = getattr(utterance, encoder.media)
    if name is None:
        raise UserError(
            f"{corpus}/manifest.jsonl: utterance {utterance.id!r} has no {encoder.media}; add it or drop modality {encoder.modality}."
        )
    if encoder.media == "audio":
        heard = condition.hear(utterance, media.read_audio(corpus / name), str(corpus / name))
        return heard.audio, heard.snr_db
    readers = {"lips": media.read_video, "image": media.read_image}
    return (readers[encoder.media](corpus / name) if encoder.media in readers else name), np.inf


def _said(encoder: Reader, job: "_Job", utterances: Sequence[Utterance]) -> list[str] | None:
    """What a first pass understood of utterances of one split, where the reader wants it."""
    if encoder.first_pass is None:
        return None
    return first_pass.said(encoder.first_pass, job.condition.key, utterances[0].split, [u.id for u in utterances])


def _encode_shard(job: _Job) -> int:
    """Encode a run of utterances and write the shard, its checksum last."""
    encoder = _encoder(job)
    utterances = [Utterance(**fields) for fields in job.utterances]
    items, levels = zip(*(_read(encoder, job.corpus, u, job.condition) for u in utterances), strict=True)
    if isinstance(encoder, Reader):
        texts = encoder.read(list(items), _said(encoder, job, utterances))
        parts = [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]
    else:
        assert isinstance(encoder, Tokenizer)
        parts = [np.asarray(ids, dtype=np.int32) for ids in encoder.encode(list(items))]
        for utterance, ids in zip(utterances, parts, strict=True):
            if not len(ids) or not 0 <= ids.min() <= ids.max() < encoder.vocab_size:
                raise UserError(
                    f"Tokenizer {job.spec.recipe} gave no ID or one outside [0, {encoder.vocab_size}) for {utterance.id!r}."
                )
    arrays = {
        "tokens": np.concatenate(parts),
        "offsets": np.cumsum([0, *map(len, parts)]),
        "snr_db": np.array(levels, dtype=np.float64),
    }
    with places.atomic(job.target) as temporary:
        save_file(arrays, temporary, {"ids": json.dumps([u.id for u in utterances])})
    places.seal(job.target)
    return len(utterances)


def _sample_features(job: _Job) -> int:
    """Write the frames of a few clips: the material of a codebook."""
    encoder = _encoder(job)
    assert isinstance(encoder, Tokenizer)
    clips = [_read(encoder, job.corpus, Utterance(**fields), job.condition)[0] for fields in job.utterances]
    with places.atomic(job.target) as temporary:
        save_file({"frames": np.concatenate(encoder.features_of(clips))}, temporary)
    return len(clips)


class _Clips(Sequence[np.ndarray]):
    """Training clips as an encoder hears or sees them, read when they are asked for."""

    def __init__(self, encoder: Encoder, job: _Job) -> None:
        self._encoder, self._job = encoder, job

    def __len__(self) -> int:
        return len(self._job.utterances)

    def __getitem__(self, number: Any) -> Any:
        utterance = Utterance(**self._job.utterances[number])
        return _read(self._encoder, self._job.corpus, utterance, self._job.condition)[0]


def _fit(job: _Job) -> None:
    """Learn a network in a process of its own: one thread, so the result does not depend on the number of cores."""
    encoder = _encoder(job)
    assert isinstance(encoder, Tokenizer)
    learned = encoder.fit(_Clips(encoder, job))
    forget()  # it has what it learned, and is another tokenizer now
    with places.atomic(job.target) as temporary:
        save_file(learned, temporary)
    places.seal(job.target)


def _learn(job: tuple[list[Path], int, Path]) -> None:
    """k-means in a process of its own: one thread, so the result does not depend on the number of cores."""
    parts, clusters, target = job
    frames = np.concatenate([_open(path)["frames"] for path in parts])
    if len(frames) > CODEBOOK_FRAMES:
        frames = frames[np.random.default_rng(0).choice(len(frames), CODEBOOK_FRAMES, replace=False)]
    learn_codebook(frames, clusters).save(target)


def _open(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _open_learned(path: Path) -> dict[str, np.ndarray]:
    try:
        return _open(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it, and it is learned again.") from None


def _kept(path: Path) -> bool:
    """Whether what was learned is there and fits its seal, if it has one; earlier versions sealed nothing."""
    return path.is_file() and (places.sealed(path) or not path.with_suffix(".sha256").is_file())


def _whole(job: _Job) -> bool:
    """Whether a shard is there, undamaged, and of these utterances."""
    path = job.target
    if places.sealed(path):
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
        run: Run = workers.run,
        device: str = "cpu",
    ) -> None:
        """`run` is what maps a function over shards: processes of this machine, or an engine."""
        self.corpus, self._map = corpus, run
        self.spec = EncoderSpec(recipe, settings, device=device)
        self.encoder = self.spec.build()
        self._root = places.home() / "tokens" / corpus.label
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

    @property
    def name(self) -> str:
        return f"{Path(self.spec.recipe).stem}-{self.encoder.fingerprint[:8]}"

    @property
    def learned(self) -> bool:
        """Whether nothing is left to learn, so that `ready` costs nothing."""
        return all(map(_kept, self._to_learn()))

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
                    _fit, _Job(self.spec, self.encoder.fingerprint, self.corpus.folder, fields, self._learn_under, path)
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
        self._run(_sample_features, jobs, f"codebook {self.spec.recipe}", len(clips))
        assert isinstance(self.encoder, Tokenizer)
        self._learn(_learn, ([job.target for job in jobs], self.encoder.clusters or 0, path))
        for job in jobs:
            job.target.unlink()

    def _learn(self, function: Callable[[Any], None], job: Any) -> None:
        for _ in self._map(function, [job], 1):
            pass

    def _rebuild(self, **changed: Any) -> None:
        self.spec = replace(self.spec, **changed)
        self.encoder = self.spec.build()

    def under(self, condition: Condition) -> Condition:
        """The condition that a hearing condition is to this encoder: itself, or clean where it hears nothing."""
        return condition if self.encoder.hears else CLEAN

    def missing(self, split: str, condition: Condition) -> int:
        """Clips whose tokens are not in the cache."""
        shards = self._shards(split, self.under(condition))
        return sum(len(job.utterances) for job in shards if not job.target.with_suffix(".sha256").is_file())

    def prepare(self, split: str, condition: Condition, workers_used: int | None = None) -> None:
        """Encode what is not in the cache yet."""
        condition = self.under(condition)
        jobs = [job for job in self._shards(split, condition) if not _whole(job)]
        if jobs:
            self._write_card()
            label = f"tokens {self.encoder.modality} {split} {condition.key.rsplit('-', 1)[0]}"
            self._run(_encode_shard, jobs, label, sum(len(job.utterances) for job in jobs), workers_used)

    def load(self, split: str, condition: Condition) -> Encoded:
        """Tokens of a split, memory-mapped and checked; what is missing or damaged is encoded first."""
        condition = self.under(condition)
        self.prepare(split, condition)
        tokens: dict[str, Any] = {}
        levels: dict[str, float] = {}
        for job in self._shards(split, condition):
            arrays = _open(job.target)
            offsets = arrays["offsets"]
            for row, fields in enumerate(job.utterances):
                part = arrays["tokens"][offsets[row] : offsets[row + 1]]
                tokens[fields["id"]] = part.tobytes().decode() if isinstance(self.encoder, Reader) else part
                levels[fields["id"]] = float(arrays["snr_db"][row])
        return Encoded(tokens, levels)

    def _shards(self, split: str, condition: Condition) -> list[_Job]:
        folder = self._root / self.name / condition.key
        return list(self._jobs(self.corpus.split(split), condition, folder, split))

    def _jobs(self, utterances: list[Utterance], condition: Condition, folder: Path, name: str) -> Iterator[_Job]:
        fingerprint = self.encoder.fingerprint
        for number, start in enumerate(range(0, len(utterances), SHARD_SIZE)):
            fields = [u.model_dump() for u in utterances[start : start + SHARD_SIZE]]
            target = folder / f"{name}-{number:04d}.safetensors"
            yield _Job(self.spec, fingerprint, self.corpus.folder, fields, condition, target)

    def _run(self, function: Any, jobs: list[_Job], label: str, total: int, count: int | None = None) -> None:
        with progress.bar(label, total, "clip") as shown:
            for done in self._map(function, jobs, count):
                shown.update(done)

    def _write_card(self) -> None:
        card = {
            "recipe": self.spec.recipe,
            "settings": self.encoder.settings.model_dump(mode="json"),
            "modality": self.encoder.modality,
            "fingerprint": self.encoder.fingerprint,
            "corpus": self.corpus.digest,
        }
        places.write_text(self._root / self.name / "tokenizer.json", json.dumps(card, indent=2) + "\n")
