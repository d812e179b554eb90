"""Read what a manifest names: speech, lip video, page images. Every fault names the file."""

from pathlib import Path
from typing import Any

import numpy as np

from dmlm.errors import UserError

SAMPLE_RATE_HZ = 16_000
FULL_RANGE = 2  # of a video: grey levels 0..255, not 16..235


def read_audio(path: Path) -> np.ndarray:
    """Mono float32 speech (samples,) at 16 kHz; other rates are resampled, channels averaged.

    Raises:
        UserError: unreadable, empty, or holding NaN or infinity.
    """
    import soundfile
    from scipy.signal import resample_poly

    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"{path} cannot be read as audio ({error}); replace the file.") from None
    mono = samples.mean(axis=1)
    if mono.size == 0 or not np.isfinite(mono).all():
        raise UserError(
            f"{path} holds {'no sample' if mono.size == 0 else 'NaN or infinite samples'}; replace the file."
        )
    if rate_hz != SAMPLE_RATE_HZ:
        divisor = np.gcd(rate_hz, SAMPLE_RATE_HZ)
        mono = resample_poly(mono, SAMPLE_RATE_HZ // divisor, rate_hz // divisor).astype(np.float32)
    return mono


def read_video(path: Path) -> np.ndarray:
    """Grey frames of a lip video, uint8 (T, H, W).

    Raises:
        UserError: unreadable, or without a frame.
    """
    import av

    try:
        with av.open(str(path)) as container:
            frames = [_grey(frame) for frame in container.decode(video=0)]
    except (OSError, IndexError, av.FFmpegError) as error:
        raise UserError(f"{path} cannot be read as video ({error}); replace the file.") from None
    if not frames:
        raise UserError(f"{path} holds no video frame; replace the file.")
    return np.stack(frames)


def _grey(frame: Any) -> np.ndarray:
    """Luminance (H, W) of a decoded frame, 0..255. A full-range luma plane is that already, and is not converted."""
    if frame.format.name in ("gray", "yuv420p", "yuvj420p") and frame.color_range == FULL_RANGE:
        plane = frame.planes[0]
        return np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)[:, : frame.width]
    return frame.to_ndarray(format="gray")


def read_image(path: Path) -> np.ndarray:
    """A page image, uint8 RGB (H, W, 3).

    Raises:
        UserError: unreadable.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}); replace the file.") from None
