"""Worker functions of the token cache: read clips, encode a shard, learn a network or a codebook."""

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
from dmlm.corpus.check import SHORTEST_S
from dmlm.corpus.condition import Condition
from dmlm.corpus.manifest import Utterance
from dmlm.errors import UserError, did_you_mean
from dmlm.limits import taken_for_another_kind
from dmlm.modalities import FIELDS, SAMPLE_RATE_HZ
from dmlm.snr import CLEAN_DB
from dmlm.tokens import first_pass
from dmlm.tokens.encoder import Encoder, Reader, Tokenizer
from dmlm.tokens.quantize import Codebook, learn_codebook

CODEBOOK_FRAMES = 80_000  # at most, to learn a codebook
CLIP_FRAMES = 1250  # at most, of one clip
GROUP_BYTES = 1 << 27  # of clips in memory at once; a larger clip is a group of its own


@dataclass(frozen=True)
class EncoderSpec:
    """A recipe and its settings: plain data from which any process builds the same encoder."""

    recipe: str
    settings: dict[str, Any]
    network: Path | None = None  # file of what `Tokenizer.fit` learned
    codebook: Path | None = None
    device: str = "cpu"

    def build(self) -> Encoder:
        """Build the encoder, with its network and its codebook if they have been learned.

        Raises:
            UserError: the recipe is unknown, or a setting is unknown or invalid.
        """
        encoder_class = recipes.load_class("tokenizers", self.recipe, Encoder)
        try:
            settings = encoder_class.Settings(**self.settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            where = f"setting {name!r}" if name else "settings"
            hint = first["msg"]
            if first["type"] == "extra_forbidden":
                hint = did_you_mean(name, encoder_class.Settings.model_fields)
            raise UserError(f"Tokenizer {self.recipe}: {where}: {hint.removeprefix('Value error, ')}.") from None
        if found := taken_for_another_kind(self.settings, settings):
            raise UserError(f"Tokenizer {self.recipe}: setting {'.'.join(found[0])!r}: {found[1]}.")
        media_field = encoder_class.media
        if media_field not in FIELDS:
            raise UserError(f"Tokenizer {self.recipe}: media={media_field!r}; choose one of {', '.join(FIELDS)}.")
        encoder = encoder_class(settings)
        encoder.device = self.device
        if isinstance(encoder, Tokenizer):
            encoder.learned = _open_learned(self.network) if self.network else None
            encoder.codebook = Codebook.load(self.codebook) if self.codebook else None
        return encoder


@dataclass(frozen=True)
class EncodingJob:
    """Utterances of one split under one condition, and the file to write for them."""

    spec: EncoderSpec
    fingerprint: str  # of the encoder in the driver process
    corpus: Path  # folder
    utterances: list[dict[str, Any]]  # fields of each `Utterance`
    condition: Condition
    target: Path
    keys: tuple[str, ...] = ()  # of the utterances in the cache; empty if nothing is cached by it
    digests: tuple[str, ...] = ()  # of the file of each utterance; empty if text is encoded


_built: dict[tuple[str, str], Encoder] = {}  # the encoder of the last job of this process, if any


def _encoder(job: EncodingJob) -> Encoder:
    """Return the encoder of a job; consecutive jobs share it, so a network is opened once.

    Raises:
        UserError: the recipe or its weights differ from those in the driver process.
    """
    key = repr(job.spec), job.fingerprint
    if key not in _built:
        release_encoder()
        encoder = job.spec.build()
        if encoder.fingerprint != job.fingerprint:
            raise UserError(f"Tokenizer {job.spec.recipe} was changed while it was in use; run the same command again.")
        _built[key] = encoder
    return _built[key]


def release_encoder() -> None:
    """Drop the encoder of the last job, which frees the memory of its network."""
    _built.clear()


def _read(encoder: Encoder, job: EncodingJob, number: int) -> tuple[Any, float]:
    """Read the input of the encoder for one utterance of a job, and the SNR measured on it (infinite without noise).

    Raises:
        UserError: the file is unreadable or not the one that the tokens are cached for, or the audio is too short.
    """
    utterance = Utterance(**job.utterances[number])
    name, kind = getattr(utterance, encoder.media), FIELDS[encoder.media].file
    if not kind:
        return name, CLEAN_DB
    path = job.corpus / name
    content = media.READERS[kind](path)
    if job.digests and files.digest(path) != job.digests[number]:
        raise UserError(f"{path} changed while it was in use; run the same command again, which says what to do.")
    if encoder.media != "audio":
        return content, CLEAN_DB
    if len(content) < SHORTEST_S * SAMPLE_RATE_HZ:
        raise UserError(f"{path} has {len(content)} samples; utterance {utterance.id!r} needs {SHORTEST_S} s at least.")
    mixture = job.condition.apply(utterance, content, str(path))
    return mixture.audio, mixture.snr_db_measured


def _heard(encoder: Reader, job: EncodingJob, utterances: Sequence[Utterance]) -> list[str] | None:
    """First-pass transcripts of utterances of one split, or None if the reader uses none."""
    if encoder.first_pass is None:
        return None
    ids, split = [utterance.id for utterance in utterances], utterances[0].split
    return first_pass.read_transcripts(encoder.first_pass, job.condition.key, split, ids)


def encode_shard(job: EncodingJob) -> int:
    """Encode the utterances of a job and write the shard, its checksum last. Return the number of utterances."""
    encoder = _encoder(job)
    parts: list[np.ndarray] = []
    levels: list[float] = []
    for utterances, items, measured in _groups(encoder, job):
        if isinstance(encoder, Reader):
            heard = _heard(encoder, job, utterances)
            with _located(job, utterances):
                texts = encoder.read(items, heard)
            parts += [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]
        else:
            assert isinstance(encoder, Tokenizer)
            with _located(job, utterances):
                ids = encoder.encode(items)
            if len(ids) != len(items):
                raise UserError(f"Tokenizer {job.spec.recipe} gave {len(ids)} results for {len(items)} items.")
            parts += [_checked(encoder, job, *each) for each in zip(utterances, items, ids, strict=True)]
        levels += measured
    arrays = {
        "tokens": np.concatenate(parts),
        "offsets": np.cumsum([0, *map(len, parts)]),
        "snr_db": np.array(levels, dtype=np.float64),
    }
    with files.atomic(job.target) as temporary:
        save_file(arrays, temporary, {"keys": json.dumps(job.keys)})
    files.seal(job.target)
    return len(parts)


def _groups(encoder: Encoder, job: EncodingJob) -> Iterator[tuple[list[Utterance], list[Any], list[float]]]:
    """Yield the utterances of a job, their encoder inputs and their SNRs, in groups of at most GROUP_BYTES."""
    utterances: list[Utterance] = []
    items: list[Any] = []
    levels: list[float] = []
    size = 0
    for number, fields in enumerate(job.utterances):
        item, level = _read(encoder, job, number)
        size += getattr(item, "nbytes", 0)
        if items and size > GROUP_BYTES:
            yield utterances, items, levels
            utterances, items, levels, size = [], [], [], item.nbytes
        utterances.append(Utterance(**fields))
        items.append(item)
        levels.append(level)
    yield utterances, items, levels


@contextmanager
def _located(job: EncodingJob, utterances: Sequence[Utterance]) -> Iterator[None]:
    """Add to an error of a recipe the line of the recipe and the utterances that it was encoding."""
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


def _checked(encoder: Tokenizer, job: EncodingJob, utterance: Utterance, item: Any, output: Any) -> np.ndarray:
    """Check what a recipe returned for an utterance, and return it as IDs int32 (T,).

    Raises:
        UserError: the output is not a row of integers, has an ID outside `vocab_size`, or does not fit `rate_hz`.
    """
    ids, size, clock = np.asarray(output), encoder.vocab_size, FIELDS[encoder.media].input_rate_hz
    expected = encoder.rate_hz * len(item) / clock if encoder.rate_hz and clock else len(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        fault = f"an array of {ids.dtype} of shape {ids.shape} instead of whole numbers in a row"
    elif not len(ids) or not 0 <= ids.min() <= ids.max() < size:
        fault = f"no ID or one outside [0, {size})"
    elif abs(len(ids) - expected) > 2 + 0.1 * expected:
        fault = f"{len(ids)} IDs where its rate of {encoder.rate_hz:g} a second promises {expected:.0f}"
    else:
        return ids.astype(np.int32)
    raise UserError(f"Tokenizer {job.spec.recipe} gave {fault} for {utterance.id!r}.")


def sample_features(job: EncodingJob) -> int:
    """Write feature frames of a few clips, for learning a codebook; long clips are subsampled at equal steps."""
    encoder = _encoder(job)
    assert isinstance(encoder, Tokenizer)
    frames: list[np.ndarray] = []
    for utterances, items, _ in _groups(encoder, job):
        with _located(job, utterances):
            batch = encoder.features_of(items)
        frames += [features[:: max(1, -(-len(features) // CLIP_FRAMES))].copy() for features in batch]
    with files.atomic(job.target) as temporary:
        save_file({"frames": np.concatenate(frames)}, temporary)
    return len(frames)


class _Clips(Sequence[np.ndarray]):
    """The encoder inputs of the training clips; each is read from disk when it is indexed."""

    def __init__(self, encoder: Encoder, job: EncodingJob) -> None:
        self._encoder, self._job = encoder, job

    def __len__(self) -> int:
        return len(self._job.utterances)

    def __getitem__(self, number: Any) -> Any:
        return _read(self._encoder, self._job, number)[0]


def fit_network(job: EncodingJob) -> None:
    """Learn a network with one thread (a worker has one), so the result does not depend on the number of cores."""
    encoder = _encoder(job)
    assert isinstance(encoder, Tokenizer)
    clips = _Clips(encoder, job)
    with _located(job, [Utterance(**fields) for fields in job.utterances]):
        learned = encoder.fit(clips)
    release_encoder()  # `fit` may have changed it; with the learned network it is another tokenizer
    with files.atomic(job.target) as temporary:
        save_file(learned, temporary)
    files.seal(job.target)


def fit_codebook(job: tuple[list[Path], int, Path]) -> None:
    """Learn a codebook by k-means, with one thread, from (files of sampled frames, number of clusters, target)."""
    sample_paths, clusters, target = job
    frames = np.concatenate([open_tensors(path)["frames"] for path in sample_paths])
    if len(frames) > CODEBOOK_FRAMES:
        frames = frames[np.random.default_rng(0).choice(len(frames), CODEBOOK_FRAMES, replace=False)]
    learn_codebook(frames, clusters).save(target)


def open_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a safetensors file."""
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _open_learned(path: Path) -> dict[str, np.ndarray]:
    try:
        return open_tensors(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it, and it is learned again.") from None
