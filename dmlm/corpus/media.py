"""Read the media files of a manifest (speech, lip video, page images), and write video. Every error names the file."""

from pathlib import Path
from typing import Any

import numpy as np

from dmlm.errors import UserError
from dmlm.modalities import FRAMES_HZ, SAMPLE_RATE_HZ

FRAMES_OFF_HZ = 0.1  # accepted deviation of the frame rate, such as 24.999
FULL_RANGE = 2  # FFmpeg's colour range: grey levels 0..255, not 16..235


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"There is no file {path}.")


def read_audio(path: Path) -> np.ndarray:
    """Read speech as mono float32 (samples,) at 16 kHz. Other rates are resampled, channels are averaged.

    Raises:
        UserError: the file is unreadable or empty, or holds NaN or infinity.
    """
    import soundfile
    from scipy.signal import resample_poly

    _check_exists(path)
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
    """Read a lip video as grey frames, uint8 (T, H, W), at 25 frames a second.

    Raises:
        UserError: the file is unreadable, has no frame, or has another frame rate (token rates would be wrong).
    """
    import av

    _check_exists(path)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate_hz = float(stream.average_rate or 0)
            frames = [_grey(frame) for frame in container.decode(stream)]
    except (OSError, IndexError, av.FFmpegError) as error:
        raise UserError(f"{path} cannot be read as video ({error}); replace the file.") from None
    if not frames:
        raise UserError(f"{path} holds no video frame; replace the file.")
    if abs(rate_hz - FRAMES_HZ) > FRAMES_OFF_HZ:
        raise UserError(
            f"{path} has {rate_hz:g} frames a second instead of {FRAMES_HZ}; convert it:"
            f" ffmpeg -i OLD.mp4 -r {FRAMES_HZ} -qp 0 NEW.mp4"
        )
    return np.stack(frames)


def _grey(frame: Any) -> np.ndarray:
    """Return the luminance of a decoded frame, uint8 (H, W), 0..255. A full-range luma plane is returned unconverted."""
    if frame.format.name in ("gray", "yuv420p", "yuvj420p") and frame.color_range == FULL_RANGE:
        plane = frame.planes[0]
        return np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)[:, : frame.width]
    return frame.to_ndarray(format="gray")


def write_video(path: Path, frames: np.ndarray, fps: int = FRAMES_HZ) -> None:
    """Write grey frames uint8 (T, H, W) as H.264 in MP4; the same frames give the same bytes.

    Raises:
        UserError: there is no frame, or the height or width is odd, which the codec cannot encode.
    """
    import av

    if frames.ndim != 3 or not len(frames) or frames.shape[1] % 2 or frames.shape[2] % 2:
        raise UserError(f"{path}: a video needs frames (T, H, W) of even height and width, not {frames.shape}.")
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "qp": "24"})
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = "gray"
        stream.codec_context.thread_count = 1
        stream.codec_context.color_range = FULL_RANGE  # else readers rescale the grey levels
        padding = av.VideoFrame(stream.width, stream.height, "gray").planes[0].line_size - stream.width
        for frame in np.pad(frames, ((0, 0), (0, 0), (0, padding))):
            picture = av.VideoFrame(stream.width, stream.height, "gray")
            picture.color_range = FULL_RANGE
            picture.planes[0].update(frame)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def read_image(path: Path) -> np.ndarray:
    """Read a page image as RGB, uint8 (H, W, 3). EXIF rotation is applied; transparent parts become white.

    Raises:
        UserError: the file is unreadable, larger than Pillow accepts, or has grey levels of unknown range.
    """
    from PIL import Image, ImageOps

    _check_exists(path)
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}); replace the file.") from None
    if image.mode in ("I", "F"):
        raise UserError(
            f"{path} has grey levels of no known range (mode {image.mode}); save it as PNG of 8 or 16 bits."
        )
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", foreground.size, "white"), foreground)
    return np.asarray(image.convert("RGB"))


READERS = {"audio": read_audio, "video": read_video, "image": read_image}  # by kind of file, see `Modality.file`
