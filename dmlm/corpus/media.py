"""Read the media files of a manifest (speech, lip video, page images), and write video. Every error names the file."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from dmlm.corpus import audio_length
from dmlm.errors import UserError
from dmlm.modalities import FRAMES_HZ, SAMPLE_RATE_HZ

BLOCK = 1 << 20  # samples per channel that are read at a time
FLAC_MOST = 1 << 36  # samples per channel; libsndfile gives more for a header that does not say how many there are
TIE = 1e-4  # frames: what is nearer is the same time, which is rounded
PROMISING = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")  # formats whose header says how long the file is
TIMED = PROMISING[:2]  # formats that keep the time of each frame
STILL = ("_pipe", "image2")  # ends of the names of formats that hold one picture
MARGIN_S = 1.0  # a key frame is looked for so long before a time: formats sort frames as they are decoded, not as shown
BEYOND = 2  # frames that a stretch may miss at the end of a file, since times are rounded
SHORT_S = 0.5 / FRAMES_HZ  # accepted, because headers round
STANDS_S = 60  # a picture that stands longer is a damaged timestamp, which would fill the memory
FULL_RANGE = 2  # FFmpeg's colour range: grey levels 0..255, not 16..235


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"There is no file {path}.")


def read_audio(path: Path) -> np.ndarray:
    """Read speech as mono float32 (samples,) at 16 kHz. Other rates are resampled, channels are averaged.

    Raises:
        UserError: the file is unreadable, empty or cut, or holds NaN or infinity.
    """
    import soundfile

    _check_exists(path)
    try:
        with soundfile.SoundFile(path) as file:
            mono = np.concatenate([np.empty(0, np.float32), *(block.mean(axis=1) for block in audio_blocks(file))])
            rate_hz, fault = file.samplerate, audio_length.check(file, mono.size).fault
    except (OSError, TypeError, ValueError, soundfile.SoundFileError) as error:
        raise UserError(f"{path} cannot be read as audio ({error}); replace the file.") from None
    if fault:
        raise UserError(f"{path} {fault}; replace the file.")
    if mono.size == 0 or not np.isfinite(mono).all():
        raise UserError(
            f"{path} holds {'no sample' if mono.size == 0 else 'NaN or infinite samples'}; replace the file."
        )
    if rate_hz != SAMPLE_RATE_HZ:
        from scipy.signal import resample_poly  # here: it takes a third of a second to open

        divisor = np.gcd(rate_hz, SAMPLE_RATE_HZ)
        mono = resample_poly(mono, SAMPLE_RATE_HZ // divisor, rate_hz // divisor).astype(np.float32)
    return mono


def audio_blocks(file: Any) -> Iterator[np.ndarray]:
    """Yield the samples of an open `soundfile.SoundFile`, float32 (n, channels), n up to `BLOCK`, until no more come.

    The decoder of FLAC stops with an error where a file is cut; that it has fewer samples than it says is left to
    `audio_length.check`.
    """
    import soundfile

    read = 0
    try:
        while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
            yield block
            read += len(block)
    except soundfile.LibsndfileError:
        if file.format != "FLAC" or not read < file.frames < FLAC_MOST:
            raise


def read_video(path: Path) -> np.ndarray:
    """Read a lip video as grey frames, uint8 (T, H, W), upright and at 25 frames a second; see `video_frames`.

    Raises:
        UserError: the file is unreadable or cut, has no frame, or changes its size.
    """
    frames = list(video_frames(path, grey))
    if len({frame.shape for frame in frames}) > 1:
        raise UserError(f"{path} changes its picture size; replace the file.")
    return np.stack(frames)


def video_frames(
    path: Path, convert: Callable[[Any], np.ndarray], start_s: float = 0.0, end_s: float | None = None
) -> Iterator[np.ndarray]:
    """Yield upright frames at 25 a second, whatever the rate of the file: frame k is on screen at start_s + (k + 1/2) / 25.

    A stretch is read from a key frame before it on, where that is certain to give the frames of a full read, and not
    beyond its end.

    Args:
        path: video file
        convert: makes an array (H, W, ...) of a decoded frame (`av.VideoFrame`); its rotation is applied afterwards.
        start_s: start of the stretch, in seconds after the first frame of the file
        end_s: its end; None: that of the file

    Raises:
        UserError: the file is unreadable or cut, has no frame, or one that stands for more than a minute; the stretch is
            empty or goes more than two frames beyond the file.
    """
    import av

    _check_exists(path)
    stretch = f"the stretch from {start_s:g} s to {'the end' if end_s is None else f'{end_s:g} s'}"
    if not (0 <= start_s < math.inf and (end_s is None or 0.5 / FRAMES_HZ < end_s - start_s < math.inf)):
        raise UserError(f"{path}: {stretch} holds no frame; give a start and a later end.")
    wanted = math.inf if end_s is None else max(1, frames_before(end_s - start_s))
    count, ends_s, shown = 0, 0.0, None
    try:
        with ExitStack() as stack:
            video = Video(stack.enter_context(av.open(str(path))))
            if start_s > MARGIN_S and not video.seek(start_s):
                video = Video(stack.enter_context(av.open(str(path))))
            for time_s, frame in video.timed_frames():
                until = min(frames_before(time_s - start_s), wanted)
                if shown is not None and count < until:
                    picture = np.rot90(convert(shown), round(shown.rotation / 90))
                    while count < until:
                        yield picture
                        count += 1
                if count == wanted:
                    return
                ends_s, shown = time_s, frame
            if video.is_cut:
                raise UserError(f"{path} ends before its header says; replace the file.")
    except (OSError, IndexError, ValueError, av.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read as video ({reason}); replace the file.") from None
    if not ends_s:
        raise UserError(f"{path} holds no video frame; replace the file.")
    if not count or count + BEYOND < wanted < math.inf:
        raise UserError(f"{path} ends at {ends_s:.2f} s and does not hold {stretch}; correct the times.")


def frames_before(time_s: float) -> int:
    """Return how many frames, at 25 a second, have their middle before a time; one at that very time has not.

    >>> [frames_before(time_s) for time_s in (0.0, 0.02, 0.04, 3.0)]
    [0, 0, 1, 75]
    """
    return math.ceil(time_s * FRAMES_HZ - 0.5 - TIE)


class Video:
    """The first video stream of an open `av` container, read once."""

    def __init__(self, container: Any) -> None:
        """Raises ValueError if the file has no moving picture, or one of a codec that the installed FFmpeg lacks."""
        import av

        if not container.streams.video:
            raise ValueError("it has no video track")
        self.container, self.stream = container, container.streams.video[0]
        if container.format.name.endswith(STILL) or self.stream.disposition & av.stream.Disposition.attached_pic:
            raise ValueError("it is a picture, not a video")
        if self.stream.codec_context is None:
            raise ValueError("the installed FFmpeg has no decoder for its codec, as it has for H.264")
        self._frames: Iterator[Any] = container.decode(self.stream)
        self._first_s: float | None = None  # by the clock of the file
        self._latest_s = 0.0  # counted from the first frame
        self._end_s = 0.0  # by the clock of the file, as far as it was read

    def seek(self, time_s: float) -> bool:
        """Go to a key frame that is on screen at a time or before; False: no such frame is certain, open the file anew.

        Certain is a key frame of type I, in a container that keeps the time of each frame: those that are shown after it
        need none before. Frames that are shown before it, and refresh without key frames, are another matter.
        """
        import av

        if self.container.format.name not in TIMED:
            return False
        try:
            first = next(self._frames, None)
            if first is None or first.time is None:
                return False
            self.container.seek(int((first.time + time_s - MARGIN_S) / self.stream.time_base), stream=self.stream)
            self._frames = self.container.decode(self.stream)
            key = next((frame for frame in self._frames if frame.key_frame), None)
        except av.FFmpegError:  # such as a file that is cut, which a full read finds out
            return False
        if key is None or key.time is None or key.pict_type != av.video.frame.PictureType.I:
            return False
        self._first_s, self._latest_s = first.time, key.time - first.time
        self._frames = itertools.chain([key], self._frames)
        return self._latest_s <= time_s

    def timed_frames(self) -> Iterator[tuple[float, Any]]:
        """Yield the start of each decoded frame in seconds, counted from 0, and the frame; then the end and None.

        A frame without a timestamp follows the one before.

        Raises:
            ValueError: a frame stands for more than a minute.
        """
        first_s, latest_s, end_s = self._first_s, self._latest_s, None
        tick_s = float(self.stream.time_base)
        usual_s = float(1 / (self.stream.average_rate or FRAMES_HZ))
        for frame in self._frames:
            start_s = end_s or 0.0
            if frame.time is not None:
                first_s = frame.time if first_s is None else first_s
                start_s = frame.time - first_s
            latest_s = _stands(latest_s, start_s)
            end_s = start_s + ((frame.duration or 0) * tick_s or usual_s)
            yield start_s, frame
        if end_s is not None:
            _stands(latest_s, end_s)
            self._end_s = (first_s or 0.0) + end_s
            yield max(end_s, 1 / FRAMES_HZ), None

    @property
    def is_cut(self) -> bool:
        """Whether the frames, which were read to their end, end earlier than the header says."""
        return self._end_s < promised_s(self.container, self.stream) - SHORT_S


def promised_s(container: Any, stream: Any) -> float:
    """Return where the header says that a stream ends; 0 where it says nothing, or only of all streams together."""
    if container.format.name not in PROMISING:
        return 0.0
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if tag := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):  # of Matroska
        hours, minutes, seconds = map(float, tag.groups())
        return 3600 * hours + 60 * minutes + seconds
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


def _stands(since_s: float, until_s: float) -> float:
    """Return the later time; ValueError if a picture stands too long between the two."""
    if until_s - since_s > STANDS_S:
        raise ValueError(f"it shows one picture for more than {STANDS_S} s")
    return max(since_s, until_s)


def grey(frame: Any) -> np.ndarray:
    """Return the luminance of a decoded frame, uint8 (H, W), 0..255. A full-range luma plane is returned unconverted."""
    if frame.format.name in ("gray", "yuv420p", "yuvj420p") and frame.color_range == FULL_RANGE:
        plane = frame.planes[0]
        return np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)[:, : frame.width]
    return frame.to_ndarray(format="gray")


def write_video(path: Path, frames: Iterable[np.ndarray], fps: int = FRAMES_HZ) -> None:
    """Write frames, each uint8 grey (H, W) or RGB (H, W, 3), as H.264 in MP4; the same frames give the same bytes.

    Grey frames are one plane, which browsers do not play; RGB frames are `yuv420p`, which they do.

    Raises:
        UserError: there is no frame, or the height or width is odd, which the codec cannot encode.
    """
    import av

    frames = iter(frames)
    first = next(frames, None)
    if first is None or first.ndim not in (2, 3) or first.shape[0] % 2 or first.shape[1] % 2:
        shape = "none" if first is None else first.shape
        raise UserError(f"{path}: a video needs frames (H, W) or (H, W, 3) of even height and width, not {shape}.")
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "qp": "24"})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "gray" if first.ndim == 2 else "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.color_range = FULL_RANGE  # else readers rescale the grey levels
        for frame in itertools.chain([first], frames):
            container.mux(stream.encode(_picture(frame)))
        container.mux(stream.encode(None))


def _picture(frame: np.ndarray) -> Any:
    """Return a frame for the encoder, of full range."""
    import av

    if frame.ndim == 3:
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        return picture.reformat(format="yuv420p", dst_color_range=FULL_RANGE)
    picture = av.VideoFrame(frame.shape[1], frame.shape[0], "gray")
    picture.color_range = FULL_RANGE
    picture.planes[0].update(np.pad(frame, ((0, 0), (0, picture.planes[0].line_size - frame.shape[1]))).tobytes())
    return picture


def read_image(path: Path) -> np.ndarray:
    """Read a page image as RGB, uint8 (H, W, 3). EXIF rotation is applied; transparent parts become white.

    Raises:
        UserError: the file is unreadable, larger than Pillow accepts, or has grey levels of unknown range.
    """
    from PIL import Image

    _check_exists(path)
    try:
        return image_pixels(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}); replace the file.") from None


def image_pixels(path: Path) -> np.ndarray:
    """Read an image as `read_image` does, but with the errors of Pillow; ValueError if its grey levels have no range."""
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode in ("I", "F"):
        raise ValueError(f"its grey levels have no known range, mode {image.mode}: save it as PNG of 8 or 16 bits")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", foreground.size, "white"), foreground)
    return np.asarray(image.convert("RGB"))


READERS = {"audio": read_audio, "video": read_video, "image": read_image}  # by kind of file, see `Modality.file`
