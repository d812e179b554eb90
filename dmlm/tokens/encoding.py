"""What a worker does for the token cache: read clips as an encoder hears or sees them, encode a shard, learn on a sample."""

import json
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dmlm import files, recipes
from dmlm.corpus import media
from dmlm.corpus.condition import Condition
from dmlm.corpus.manifest import Utterance
from dmlm.errors import UserError, did_you_mean
from dmlm.modalities import FIELDS, SAMPLE_RATE_HZ
from dmlm.snr import CLEAN_DB
from dmlm.tokens import first_pass
from dmlm.tokens.encoder import Encoder, Reader, Tokenizer
from dmlm.tokens.quantize import Codebook, learn_codebook

CODEBOOK_FRAMES = 80_000
CLIP_FRAMES = 1250  # of one clip
GROUP_BYTES = 1 << 27  # of clips in memory at once; one that is longer comes alone
SHORTEST_S = 0.05  # of audio: what every audio tokenizer makes a token of


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
        if kind.media not in FIELDS:
            raise UserError(f"Tokenizer {self.recipe}: media={kind.media!r}; choose one of {', '.join(FIELDS)}.")
        encoder = kind(settings)
        encoder.device = self.device
        if isinstance(encoder, Tokenizer):
            encoder.learned = _open_learned(self.network) if self.network else None
            encoder.codebook = Codebook.load(self.codebook) if self.codebook else None
        return encoder


@dataclass(frozen=True)
class EncodingJob:
    """Utterances of one split under one condition, and where what is made of them belongs."""

    spec: EncoderSpec
    fingerprint: str  # of the driver's encoder
    corpus: Path
    utterances: list[dict[str, Any]]
    condition: Condition
    target: Path


_built: dict[tuple[str, str], Encoder] = {}  # of the last shard that this process encoded


def _encoder(job: EncodingJob) -> Encoder:
    """That of the last shard, if this one wants the same: a network is opened once.

    Raises:
        UserError: this process has another version of the recipe or of its weights than the driver.
    """
    key = repr(job.spec), job.fingerprint
    if key not in _built:
        forget()
        encoder = job.spec.build()
        if encoder.fingerprint != job.fingerprint:
            raise UserError(f"Tokenizer {job.spec.recipe} was changed while it was in use; run the same command again.")
        _built[key] = encoder
    return _built[key]


def forget() -> None:
    """Give the memory of a network back."""
    _built.clear()


def _read(encoder: Encoder, corpus: Path, utterance: Utterance, condition: Condition) -> tuple[Any, float]:
    """What the encoder is given for one utterance, and the SNR measured on it (infinite where no noise applies)."""
    name = getattr(utterance, encoder.media)
    if name is None:
        raise UserError(
            f"{corpus}/manifest.jsonl: utterance {utterance.id!r} has no {encoder.media}; add it or drop modality {encoder.modality}."
        )
    if encoder.media == "audio":
        speech = media.read_audio(corpus / name)
        if len(speech) < SHORTEST_S * SAMPLE_RATE_HZ:
            raise UserError(
                f"{corpus / name} has {len(speech)} samples; utterance {utterance.id!r} needs {SHORTEST_S} s at least."
            )
        heard = condition.hear(utterance, speech, str(corpus / name))
        return heard.audio, heard.snr_db_measured
    kind = FIELDS[encoder.media].file
    return (media.READERS[kind](corpus / name) if kind else name), CLEAN_DB


def _said(encoder: Reader, job: EncodingJob, utterances: Sequence[Utterance]) -> list[str] | None:
    """What a first pass understood of utterances of one split, where the reader wants it."""
    if encoder.first_pass is None:
        return None
    return first_pass.said(encoder.first_pass, job.condition.key, utterances[0].split, [u.id for u in utterances])


def encode_shard(job: EncodingJob) -> int:
    """Encode a run of utterances and write the shard, its checksum last."""
    encoder = _encoder(job)
    parts: list[np.ndarray] = []
    levels: list[float] = []
    for utterances, items, measured in _groups(encoder, job):
        if isinstance(encoder, Reader):
            said = _said(encoder, job, utterances)
            with _blamed(job, utterances):
                texts = encoder.read(items, said)
            parts += [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]
        else:
            assert isinstance(encoder, Tokenizer)
            with _blamed(job, utterances):
                found = encoder.encode(items)
            parts += [_checked(encoder, job, *each) for each in zip(utterances, items, found, strict=True)]
        levels += measured
    arrays = {
        "tokens": np.concatenate(parts),
        "offsets": np.cumsum([0, *map(len, parts)]),
        "snr_db": np.array(levels, dtype=np.float64),
    }
    with files.atomic(job.target) as temporary:
        save_file(arrays, temporary, {"ids": json.dumps([fields["id"] for fields in job.utterances])})
    files.seal(job.target)
    return len(parts)


def _groups(encoder: Encoder, job: EncodingJob) -> Iterator[tuple[list[Utterance], list[Any], list[float]]]:
    """Utterances of a job, what the encoder is given for them, and their SNR: as many at once as memory allows."""
    utterances: list[Utterance] = []
    items: list[Any] = []
    levels: list[float] = []
    size = 0
    for fields in job.utterances:
        utterance = Utterance(**fields)
        item, level = _read(encoder, job.corpus, utterance, job.condition)
        size += getattr(item, "nbytes", 0)
        if items and size > GROUP_BYTES:
            yield utterances, items, levels
            utterances, items, levels, size = [], [], [], item.nbytes
        utterances.append(utterance)
        items.append(item)
        levels.append(level)
    yield utterances, items, levels


@contextmanager
def _blamed(job: EncodingJob, utterances: Sequence[Utterance]) -> Iterator[None]:
    """Let an error of a recipe end with a line that says where it arose, and about which utterances."""
    about = f"utterance {utterances[0].id!r}" if len(utterances) == 1 else f"one of {len(utterances)} utterances"
    about += f", the first {utterances[0].id!r}" if len(utterances) > 1 else ""
    try:
        yield
    except UserError as error:
        raise UserError(f"{str(error).removesuffix('.')} ({about}).") from None
    except Exception as error:
        stem = Path(job.spec.recipe).stem
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).stem == stem]
        at = f"line {lines[-1]} of its file" if lines else "outside its file"
        raise RuntimeError(f"tokenizer {stem}, {at}, {about}: {type(error).__name__}: {error}") from error


def _checked(encoder: Tokenizer, job: EncodingJob, utterance: Utterance, item: Any, found: Any) -> np.ndarray:
    """IDs int32 (T,) of an utterance.

    Raises:
        UserError: the recipe does not keep what it promises.
    """
    ids, size, clock = np.asarray(found), encoder.vocab_size, FIELDS[encoder.media].input_rate_hz
    promised = encoder.rate_hz * len(item) / clock if encoder.rate_hz and clock else len(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        wrong = f"an array of {ids.dtype} of shape {ids.shape} instead of whole numbers in a row"
    elif not len(ids) or not 0 <= ids.min() <= ids.max() < size:
        wrong = f"no ID or one outside [0, {size})"
    elif abs(len(ids) - promised) > 2 + 0.1 * promised:
        wrong = f"{len(ids)} IDs where its rate of {encoder.rate_hz:g} a second promises {promised:.0f}"
    else:
        return ids.astype(np.int32)
    raise UserError(f"Tokenizer {job.spec.recipe} gave {wrong} for {utterance.id!r}.")


def sample_features(job: EncodingJob) -> int:
    """Write frames of a few clips, of a long one some at equal distances: the material of a codebook."""
    encoder = _encoder(job)
    assert isinstance(encoder, Tokenizer)
    frames: list[np.ndarray] = []
    for utterances, items, _ in _groups(encoder, job):
        with _blamed(job, utterances):
            found = encoder.features_of(items)
        frames += [features[:: max(1, -(-len(features) // CLIP_FRAMES))].copy() for features in found]
    with files.atomic(job.target) as temporary:
        save_file({"frames": np.concatenate(frames)}, temporary)
    return len(frames)


class _Clips(Sequence[np.ndarray]):
    """Training clips as an encoder hears or sees them, read when they are asked for."""

    def __init__(self, encoder: Encoder, job: EncodingJob) -> None:
        self._encoder, self._job = encoder, job

    def __len__(self) -> int:
        return len(self._job.utterances)

    def __getitem__(self, number: Any) -> Any:
        utterance = Utterance(**self._job.utterances[number])
        return _read(self._encoder, self._job.corpus, utterance, self._job.condition)[0]


def fit(job: EncodingJob) -> None:
    """Learn a network in a process of its own: one thread, so the result does not depend on the number of cores."""
    encoder = _encoder(job)
    assert isinstance(encoder, Tokenizer)
    clips = _Clips(encoder, job)
    with _blamed(job, [Utterance(**fields) for fields in job.utterances]):
        learned = encoder.fit(clips)
    forget()  # it has what it learned, and is another tokenizer now
    with files.atomic(job.target) as temporary:
        save_file(learned, temporary)
    files.seal(job.target)


def learn(job: tuple[list[Path], int, Path]) -> None:
    """k-means in a process of its own: one thread, so the result does not depend on the number of cores."""
    parts, clusters, target = job
    frames = np.concatenate([open_tensors(path)["frames"] for path in parts])
    if len(frames) > CODEBOOK_FRAMES:
        frames = frames[np.random.default_rng(0).choice(len(frames), CODEBOOK_FRAMES, replace=False)]
    learn_codebook(frames, clusters).save(target)


def open_tensors(path: Path) -> dict[str, np.ndarray]:
    """Everything in a safetensors file."""
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _open_learned(path: Path) -> dict[str, np.ndarray]:
    try:
        return open_tensors(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it, and it is learned again.") from None
