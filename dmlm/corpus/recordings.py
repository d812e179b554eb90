"""Read any stretch of any recording: what libsndfile reads, and the sound of every container that FFmpeg reads."""

from pathlib import Path

import numpy as np

from dmlm.errors import UserError
from dmlm.modalities import SAMPLE_RATE_HZ

BEYOND_S = 0.1  # that a stretch may reach beyond the end of its recording, since times are rounded
BEFORE_S = 1.0  # decoded before a stretch, so that the decoder has settled


class Outside(UserError):
    """A stretch lies outside its recording."""


def read_any_audio(path: Path, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
    """Read a stretch of a recording, or of the sound track of a video, as mono float32 (samples,) at 16 kHz.

    Channels are averaged, other rates are resampled. The file is read by its content, whatever its name says.

    Raises:
        UserError: the file is missing, or no audio can be read from it.
        Outside: the stretch ends more than 0.1 s after the recording, or starts behind its end.
    """
    from scipy.signal import resample_poly

    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    mono, rate_hz = _by_libsndfile(path, start_s, end_s) or _by_ffmpeg(path, start_s, end_s)
    if (end_s is not None and len(mono) / rate_hz < end_s - start_s - BEYOND_S) or not len(mono):
        until = f"{end_s:g} s" if end_s is not None else "the end"
        raise Outside(f"{path} holds {len(mono) / rate_hz:.2f} s of the stretch from {start_s:g} s to {until}.")
    if rate_hz != SAMPLE_RATE_HZ:
        divisor = np.gcd(rate_hz, SAMPLE_RATE_HZ)
        mono = resample_poly(mono, SAMPLE_RATE_HZ // divisor, rate_hz // divisor)
    return mono.astype(np.float32)


def _by_libsndfile(path: Path, start_s: float, end_s: float | None) -> tuple[np.ndarray, int] | None:
    """Read mono samples and their rate by libsndfile; None if it cannot read this file, or finds less than it promises."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            rate_hz: int = file.samplerate
            start = min(round(start_s * rate_hz), file.frames)
            stop = file.frames if end_s is None else min(round(end_s * rate_hz), file.frames)
            file.seek(start)
            samples = file.read(stop - start, dtype="float32", always_2d=True)
    except (OSError, TypeError, ValueError, soundfile.SoundFileError):
        return None
    return (samples.mean(axis=1), rate_hz) if len(samples) == stop - start else None


def _by_ffmpeg(path: Path, start_s: float, end_s: float | None) -> tuple[np.ndarray, int]:
    """Read mono samples and their rate by FFmpeg."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise UserError(f"{path} has no sound; give the recording, or leave the clip out.")
            stream = container.streams.audio[0]
            if start_s > BEFORE_S:
                container.seek(int((start_s - BEFORE_S) * av.time_base))
            return _decoded(container, stream, start_s, end_s)
    except (OSError, IndexError, ValueError, av.FFmpegError) as error:
        raise UserError(f"{path} cannot be read as audio ({error}); replace the file.") from None


def _decoded(container: object, stream: object, start_s: float, end_s: float | None) -> tuple[np.ndarray, int]:
    from av import AudioFrame, AudioResampler

    rate_hz = int(stream.rate)  # type: ignore[attr-defined]
    to_floats = AudioResampler(format="fltp", rate=rate_hz)
    first_s = float((stream.start_time or 0) * stream.time_base)  # type: ignore[attr-defined]
    pieces: list[np.ndarray] = []
    at: int | None = None  # first sample that `pieces` hold, counted from the start of the recording
    count = 0
    stop = None if end_s is None else round(end_s * rate_hz)
    for frame in container.decode(stream):  # type: ignore[attr-defined]
        if at is None:
            at = round(((frame.time or 0.0) - first_s) * rate_hz)
        converted: list[AudioFrame] = to_floats.resample(frame)
        for block in (floats.to_ndarray() for floats in converted):
            pieces.append(block.mean(axis=0))
            count += block.shape[1]
        if stop is not None and at + count >= stop:
            break
    mono = np.concatenate([np.empty(0, np.float32), *pieces])
    start = round(start_s * rate_hz) - (at or 0)
    return mono[max(0, start) : None if stop is None else max(0, stop - (at or 0))], rate_hz
