"""Read noise files: what is in one, and any stretch of it, in little memory however long the file is.

Audio is float32 (samples,) at 16 kHz. A stretch equals that part of the whole file as `read_audio` gives it.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmlm import known_files
from dmlm.corpus.media import SAMPLE_RATE_HZ, read_audio
from dmlm.errors import UserError

# Encodings in which any sample can be read alone. Others (MP3, Vorbis, Opus) sound slightly otherwise when their decoder
# starts in the middle, so such a file is decoded whole.
SEEKABLE = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
MOST_FRAMES = 1 << 40  # a header with more does not know the length of its file
PIECE = 60 * SAMPLE_RATE_HZ  # samples that are examined at a time
MARGIN = 11  # periods of the two rates read before and after a stretch: the filter of `resample_poly` reaches 10
KEPT_BYTES = 64 << 20  # of files decoded whole


@dataclass(frozen=True)
class NoiseFile:
    """One noise file. Plain data, so that a process that mixes neither lists nor reads what it does not use."""

    path: Path
    source: str  # the track, speaker or session that it is from
    digest: str
    samples: int  # at 16 kHz
    power: float  # mean, about the mean of the file
    rate_hz: int | None  # of the file; None if it must be decoded whole


def examine(path: Path) -> dict[str, int | float | None]:
    """Return `samples`, `power` and `rate_hz` of a file, as in `NoiseFile`.

    Raises:
        UserError: it is unreadable, empty or silent, or holds NaN or infinity.
    """
    import soundfile

    try:
        info = soundfile.info(path)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"{path} cannot be read as audio ({error}); replace the file.") from None
    seekable = info.subtype in SEEKABLE and 0 < info.frames < MOST_FRAMES
    rate_hz, whole = (info.samplerate, None) if seekable else (None, read_audio(path))
    up, down = _ratio(info.samplerate)
    samples = -(-info.frames * up // down) if whole is None else len(whole)
    file = NoiseFile(path, "", "", samples, 0.0, rate_hz)
    first, total, squares = math.nan, 0.0, 0.0
    for start in range(0, samples, PIECE):
        length = min(PIECE, samples - start)
        piece = stretch(file, start, length) if whole is None else whole[start : start + length]
        if not np.isfinite(piece).all():
            raise UserError(f"{path} holds NaN or infinite samples; replace the file.")
        first = first if start else float(piece[0])
        offset = piece.astype(np.float64) - first  # exactly zero if the file is constant
        total, squares = total + float(offset.sum()), squares + float(offset @ offset)
    power = squares / samples - (total / samples) ** 2
    if power <= 0:
        raise UserError(f"{path} is silent; replace the file.")
    return {"samples": samples, "power": power, "rate_hz": rate_hz}


def stretch(file: NoiseFile, start: int, samples: int) -> np.ndarray:
    """Return float32 (samples,) of a file from sample `start` on; the file is looped.

    Raises:
        UserError: the file is unreadable, or not the one that it was.
    """
    found = _looped(file, start, samples)
    if file.digest and known_files.digest(file.path) != file.digest:
        raise UserError(f"{file.path} changed while it was in use; run the same command again, which says what to do.")
    return found


def _looped(file: NoiseFile, start: int, samples: int) -> np.ndarray:
    if samples >= file.samples:
        return np.take(_read(file, 0, file.samples), np.arange(start, start + samples), mode="wrap")
    before_end = _read(file, start, min(samples, file.samples - start))
    if len(before_end) == samples:
        return before_end
    return np.concatenate([before_end, _read(file, 0, samples - len(before_end))])


def _read(file: NoiseFile, start: int, samples: int) -> np.ndarray:
    """Return float32 (samples,) of a file, which must have as many from `start` on."""
    import soundfile
    from scipy.signal import resample_poly

    if file.rate_hz is None:
        found = _whole(file)[start : start + samples]
    else:
        up, down = _ratio(file.rate_hz)
        margin = 0 if up == down else MARGIN
        period = max(0, start // up - margin)  # in a period, `down` frames become `up` samples
        stop = ((start + samples - 1) // up + 1 + margin) * down
        try:
            frames, _ = soundfile.read(file.path, start=period * down, stop=stop, dtype="float32", always_2d=True)
        except (OSError, soundfile.SoundFileError) as error:
            raise UserError(f"{file.path} cannot be read as audio ({error}); replace the file.") from None
        mono = frames.mean(axis=1)
        if up != down:
            mono = resample_poly(mono, up, down).astype(np.float32)
        found = mono[start - period * up :][:samples]
    if len(found) < samples:
        raise UserError(f"{file.path} is shorter than it says or was; restore it, and run the same command again.")
    return found


def _ratio(rate_hz: int) -> tuple[int, int]:
    divisor = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    return SAMPLE_RATE_HZ // divisor, rate_hz // divisor


_kept: dict[str, np.ndarray] = {}  # files decoded whole, by digest; the one used last at the end


def _whole(file: NoiseFile) -> np.ndarray:
    """Decode a file, or return it from memory, where the last ones are kept."""
    clip = _kept.pop(file.digest) if file.digest in _kept else read_audio(file.path)
    if clip.nbytes <= KEPT_BYTES:
        _kept[file.digest] = clip
    while sum(other.nbytes for other in _kept.values()) > KEPT_BYTES:
        del _kept[next(iter(_kept))]
    return clip
