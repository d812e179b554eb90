"""Read any stretch of any recording: what libsndfile reads, and the sound of every container that FFmpeg reads."""

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np

from dmlm.corpus import audio_length, media
from dmlm.errors import UserError
from dmlm.modalities import SAMPLE_RATE_HZ

BEYOND_S = 0.1  # that a stretch may reach beyond the end of its recording, since times are rounded
BEFORE_S = 1.0  # decoded before a stretch, so that the decoder has settled
SLACK = 4096  # samples; two frames of AAC, which headers count or not


class Outside(UserError):
    """A stretch lies outside its recording."""


class Cut(UserError):
    """A recording ends before its header says, or a part of it is missing."""


def read_any_audio(path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
    """Read a stretch of a recording, or of the sound track of a video, as mono float32 (samples,) at 16 kHz.

    Channels are averaged, other rates are resampled. The file is read by its content, whatever its name says. Whether it
    was cut is looked at where it is read to its end.

    Raises:
        UserError: the file is missing, no audio can be read from it, or it holds NaN or infinity.
        Cut: it ends before its header says.
        Outside: the stretch ends more than 0.1 s after the recording, or starts behind its end.
    """
    if not os.path.isfile(path):  # also of a name that is none, such as a transcript
        raise UserError(f"There is no file {path}.")
    mono, rate_hz = _by_libsndfile(path, start_s, end_s) or _by_ffmpeg(path, start_s, end_s)
    if not len(mono) and start_s == 0:
        raise UserError(f"{path} holds no sample; replace the file.")
    if (end_s is not None and len(mono) / rate_hz < end_s - start_s - BEYOND_S) or not len(mono):
        until = f"{end_s:g} s" if end_s is not None else "the end"
        raise Outside(f"{path} holds {len(mono) / rate_hz:.2f} s of the stretch from {start_s:g} s to {until}.")
    if not np.isfinite(mono).all():
        raise UserError(f"{path} holds NaN or infinite samples; replace the file.")
    if rate_hz != SAMPLE_RATE_HZ:
        from scipy.signal import resample_poly  # here: it takes a third of a second to open

        divisor = np.gcd(rate_hz, SAMPLE_RATE_HZ)
        mono = resample_poly(mono, SAMPLE_RATE_HZ // divisor, rate_hz // divisor)
    return mono.astype(np.float32)


def _by_libsndfile(path: Path, start_s: float, end_s: float | None) -> tuple[np.ndarray, int] | None:
    """Read mono samples and their rate by libsndfile; None if it does not know this kind of file."""
    import soundfile

    try:
        file = soundfile.SoundFile(path)
    except (OSError, TypeError, ValueError, soundfile.SoundFileError):
        return None
    try:
        with file:
            rate_hz: int = file.samplerate
            start = min(round(start_s * rate_hz), file.frames)
            at = file.seek(max(0, start - round(BEFORE_S * rate_hz)))
            if end_s is not None:
                count = min(round(end_s * rate_hz), file.frames) - at
                samples = file.read(max(0, count), dtype="float32", always_2d=True)
                return samples[start - at :].mean(axis=1), rate_hz
            blocks = (block.mean(axis=1) for block in media.audio_blocks(file))
            mono = np.concatenate([np.empty(0, np.float32), *blocks])
            fault = audio_length.check(file, at + len(mono)).fault
    except (OSError, TypeError, ValueError, soundfile.SoundFileError) as error:
        raise UserError(f"{path} cannot be read as audio ({error}); replace the file.") from None
    if fault:
        raise Cut(f"{path} {fault}; replace the file.")
    return mono[start - at :], rate_hz


def _by_ffmpeg(path: Path, start_s: float, end_s: float | None) -> tuple[np.ndarray, int]:
    """Read mono samples and their rate by FFmpeg."""
    import av

    try:
        for before_s in dict.fromkeys((max(0.0, start_s - BEFORE_S), 0.0)):
            with av.open(str(path)) as container:
                if not container.streams.audio:
                    raise UserError(f"{path} has no sound; give the recording, or leave the clip out.")
                stream = container.streams.audio[0]
                if stream.codec_context is None:
                    raise UserError(f"{path} has a sound track that this FFmpeg cannot decode; convert it to WAV.")
                if (mono := _decoded(path, container, stream, before_s, (start_s, end_s))) is not None:
                    return mono, int(stream.rate)
    except (OSError, IndexError, ValueError, av.FFmpegError) as error:
        raise UserError(
            f"{path} cannot be read as audio ({getattr(error, 'strerror', None) or error}); replace the file."
        ) from None
    raise UserError(f"{path} begins later than its header says; convert it to WAV.")


def _decoded(
    path: Path, container: Any, stream: Any, before_s: float, stretch: tuple[float, float | None]
) -> np.ndarray | None:
    """Decode a stretch, going to a time before it; None if what comes from there is behind the start already.

    Raises:
        Cut: the stretch goes to the end, which comes before the header says.
    """
    import av

    frames = container.decode(stream)
    if (first := next(frames, None)) is None:
        return np.empty(0, np.float32)
    zero_s = first.time or 0.0  # by the clock of the file
    if before_s:
        container.seek(int((zero_s + before_s) * av.time_base))
        frames = container.decode(stream)
    rate_hz = int(stream.rate)
    start, stop = round(stretch[0] * rate_hz), None if stretch[1] is None else round(stretch[1] * rate_hz)
    to_floats = av.AudioResampler(format="fltp", rate=rate_hz)
    pieces = [np.empty(0, np.float32)]
    at, count = 0, 0  # first sample that `pieces` hold, counted from the start of the recording, and how many
    for frame in frames if before_s else itertools.chain([first], frames):
        if before_s and not count:
            at = round(((frame.time or 0.0) - zero_s) * rate_hz)
            if at > start:
                return None
        for block in (floats.to_ndarray() for floats in to_floats.resample(frame)):
            pieces.append(block.mean(axis=0))
            count += block.shape[1]
        if stop is not None and at + count >= stop:
            break
    if stop is None and zero_s + (at + count + SLACK) / rate_hz < media.promised_s(container, stream):
        raise Cut(f"{path} ends before its header says; replace the file.")
    return np.concatenate(pieces)[max(0, start - at) : None if stop is None else max(0, stop - at)]
