"""What is found in a media file when it is read once, to its end: numbers that a check holds against its limits.

These are facts, not verdicts. They depend on the content of the file only, so they can be kept by its digest
(`dmlm.known_files`). Memory does not grow with the length of a file, but for a few numbers per second.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dmlm import progress
from dmlm.corpus import audio_length, media

Kind = Literal["audio", "video", "image"]
Job = tuple[Path, Kind]
FACTS = {"audio": "audio/2", "video": "video/2", "image": "image/2"}  # kinds for `known_files`; count up with changes
JOB_FILES = 128
JOB_BYTES = 32 << 20
FULL_SCALE = 1 - 2**-15  # the largest sample of 16 bits
CLIPPED_RUN = 3  # samples
SILENT_S = 0.05
FRAME_S = 0.02
QUIET_FRAMES = 5  # 0.1 s
QUIET_DB = -50.0  # pauses of ordinary recordings are louder; padding is not, with dither or hum
LOUD_SHARE, LOUD_FRAMES = 0.05, 10  # of a clip are speech at its loudest: this share, but no more than 0.2 s
MOST_STRETCHES = 1_000
CANCELLED_DB = -200.0  # stands for -inf, which JSON does not have
REGULAR = 0.25  # accepted deviation of an interval between frames, as a share of the usual one
CUT = ("Truncating packet", "File ended prematurely", "Packet corrupt", "partial file")  # in the log of FFmpeg
MESSAGES = 3  # of the decoder that are kept


def inspect(path: Path, kind: Kind) -> dict[str, Any]:
    """Decode a file once, to its end, and return what was found, in plain data for JSON.

    A file that cannot be read has the fact `unreadable`, the reason, and no other; one whose index is cut off has only
    `truncated`. What `dmlm.corpus.media` refuses to read is one of the two, or has no sample, or some that are not finite.
    The facts by kind:

    audio: `rate_hz`, `channels`, `samples` (per channel), `duration_s`, `header_samples` (what the header promises, or
    None), `truncated` (or damaged, so that samples are missing), `fault` (that, in words, or None), `not_finite`
    (samples), and of the mean of the channels `peak`, `dc`, `rms` (about the mean); `clipped_share` of the samples, in
    runs of three and more at full scale or at the extreme of the file; `cancel_db`, the power of the mean of the
    channels against the mean of their powers; `silent_stretches`, [start_s, end_s] where the signal stands still for
    0.05 s; `quiet_stretches`, [start_s, end_s] of 0.1 s and more in frames of 20 ms that are 50 dB below the loudest
    5 % (at most 0.2 s) of the clip, in order of time, of more than 1,000 the longest.

    video: `frames`, `width`, `height` (upright), `rotation` in degrees, `nominal_rate_hz` (of the header), `rate_hz` (by
    timestamps), `duration_s` (by timestamps), `irregular` (intervals that are not as usual), `frames_at_25` (what
    `media.read_video` gives), `truncated`, `corrupt` (messages of the decoder), `constant` (all frames are equal).

    image: `width`, `height` (upright), `constant` (all pixels are equal), as it is read.

    Raises:
        MemoryError: there is too little memory.
    """
    try:
        return INSPECTORS[kind](path)
    except Exception as error:  # decoders raise whatever they like at a damaged file; the check reports it
        if isinstance(error, MemoryError) and not hasattr(error, "errno"):  # FFmpeg's is of a damaged size, and has one
            raise
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
        return {"unreadable": reason.replace(str(path), "FILE") or type(error).__name__}


def inspect_all(
    jobs: Sequence[Job], run: Callable[[Callable[[Any], Any], list[Any]], Iterator[Any]]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Inspect many files in worker processes, and yield the path and the facts of each, in any order.

    Args:
        jobs: path and kind of each file
        run: maps a function over jobs, such as `processes.run`.
    """
    groups: list[list[Job]] = []
    held = math.inf  # bytes of the last group
    for path, kind in jobs:
        size = path.stat().st_size if path.exists() else 0
        if held + size > JOB_BYTES or len(groups[-1]) >= JOB_FILES:
            groups.append([])
            held = 0
        groups[-1].append((path, kind))
        held += size
    with progress.bar(f"reading {jobs[0][1] if jobs else 'media'}", len(jobs), "file") as bar:
        for found in run(inspect_some, groups):
            yield from found
            bar.update(len(found))


def inspect_some(jobs: Sequence[Job]) -> list[tuple[Path, dict[str, Any]]]:
    """Inspect the files of one job of `inspect_all`."""
    return [(path, inspect(path, kind)) for path, kind in jobs]


def _audio(path: Path) -> dict[str, Any]:
    import soundfile

    with soundfile.SoundFile(path) as file:
        rate_hz, channels = file.samplerate, file.channels
        sums, powers = np.zeros(channels + 1), np.zeros(channels + 1)  # of the channels, then of their mean
        frame = max(1, round(FRAME_S * rate_hz))
        levels, still, rest = [], _Still(math.ceil(SILENT_S * rate_hz)), np.empty(0, np.float32)
        plateaus = [_Plateau() for _ in range(2 * channels)]
        samples = not_finite = 0
        peak = 0.0
        for block in media.audio_blocks(file):
            if bad := int(np.count_nonzero(~np.isfinite(block))):
                not_finite += bad
                block = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
            mono = block.mean(axis=1)
            still.add(mono)
            peak = max(peak, float(abs(mono).max()))
            for number, signal in enumerate((*block.T, mono)):
                sums[number] += signal.sum(dtype=float)
                powers[number] += np.square(signal, dtype=float).sum()
            for number, plateau in enumerate(plateaus):
                plateau.add(block[:, number // 2] * (1 - number % 2 * 2))
            rest = np.concatenate([rest, mono])
            whole, rest = np.split(rest, [len(rest) // frame * frame])
            levels.append(whole.reshape(-1, frame).var(axis=1, dtype=float))
            samples += len(mono)
        if rest.size:
            levels.append(rest.var(keepdims=True, dtype=float))
        length = audio_length.check(file, samples)
    count = max(1, samples)
    variances = np.maximum(powers / count - (sums / count) ** 2, 0)
    return {
        "rate_hz": rate_hz,
        "channels": channels,
        "samples": samples,
        "duration_s": samples / rate_hz,
        "header_samples": length.promised,
        "truncated": length.fault is not None,
        "fault": length.fault,
        "not_finite": not_finite,
        "peak": peak,
        "dc": float(sums[-1] / count),
        "rms": float(math.sqrt(variances[-1])),
        "clipped_share": _clipped(plateaus) / count / channels,
        "cancel_db": _ratio_db(float(variances[-1]), float(variances[:-1].mean())),
        "silent_stretches": [[start / rate_hz, end / rate_hz] for start, end in still.ended()],
        "quiet_stretches": [
            [start * frame / rate_hz, min(end * frame, samples) / rate_hz]
            for start, end in _quiet(np.concatenate([np.empty(0), *levels])).tolist()
        ],
    }


def _quiet(levels: np.ndarray) -> np.ndarray:
    """Return the runs of frames, (runs, 2) first and behind the last, whose power is far below that of the loud ones."""
    if not levels.size:
        return np.empty((0, 2), int)
    loud = max(1, min(LOUD_FRAMES, int(LOUD_SHARE * levels.size)))
    quiet = levels < np.partition(levels, -loud)[-loud] * 10 ** (QUIET_DB / 10)
    runs = np.flatnonzero(np.diff(quiet, prepend=False, append=False)).reshape(-1, 2)
    lengths = runs[:, 1] - runs[:, 0]
    longest = np.sort(np.argsort(-lengths, kind="stable")[:MOST_STRETCHES])
    return runs[longest][lengths[longest] >= QUIET_FRAMES]


class _Still:
    """Where a signal stands still for at least `least` samples; it comes in blocks."""

    def __init__(self, least: int) -> None:
        self.least, self.found = least, list[list[int]]()
        self.start = self.total = 0
        self.last: float = math.nan

    def add(self, signal: np.ndarray) -> None:
        changes = self.total + np.flatnonzero(np.diff(signal, prepend=np.float32(self.last)))
        edges = np.concatenate([[self.start], changes])
        (long,) = np.nonzero(np.diff(edges) >= self.least)
        self.found += [[int(edges[each]), int(edges[each + 1])] for each in long]
        self.start, self.last, self.total = int(edges[-1]), float(signal[-1]), self.total + len(signal)

    def ended(self) -> list[list[int]]:
        tail = [[self.start, self.total]] if self.total - self.start >= max(1, self.least) else []
        return self.found + tail


class _Plateau:
    """The highest value of a signal that comes in blocks, and the samples in runs there; runs are those of one block."""

    def __init__(self) -> None:
        self.top, self.lowest, self.count = -math.inf, math.inf, 0

    def add(self, signal: np.ndarray) -> None:
        top = min(float(signal.max()), FULL_SCALE)
        self.lowest = min(self.lowest, float(signal.min()))
        if top > self.top:
            self.top, self.count = top, 0
        if top == self.top:
            edges = np.flatnonzero(np.diff(signal >= np.float32(top), prepend=False, append=False))
            runs = edges[1::2] - edges[::2]
            self.count += int(runs[runs >= CLIPPED_RUN].sum())


def _clipped(plateaus: list[_Plateau]) -> int:
    """Count the samples at plateaus. An extreme nearer to zero than half of the peak is none, nor is a constant signal."""
    total = 0
    for above, below in zip(plateaus[::2], plateaus[1::2], strict=True):
        peak = max(abs(above.top), abs(below.top))
        if above.top > above.lowest:
            total += sum(each.count for each in (above, below) if each.top >= peak / 2)
    return total


def _ratio_db(power: float, reference: float) -> float:
    """Return a ratio of powers in dB; 0 if the reference is zero."""
    if reference == 0:
        return 0.0
    return max(CANCELLED_DB, 10 * math.log10(power / reference)) if power else CANCELLED_DB


def _video(path: Path) -> dict[str, Any]:
    import av

    try:
        return _decoded_video(path)
    except (OSError, IndexError, ValueError, av.FFmpegError):
        if path.is_file() and _lacks_its_index(path):
            return {"truncated": True}
        raise


def _decoded_video(path: Path) -> dict[str, Any]:
    import av

    first, shape, constant, rotation, damaged = None, (0, 0), True, 0, False
    times_s: list[float] = []
    with decoder_log() as log, av.open(str(path)) as container:
        video = media.Video(container)
        for start_s, frame in video.timed_frames():
            times_s.append(start_s)
            if frame is None:
                break
            picture = media.grey(frame)
            upright = np.rot90(picture, round(frame.rotation / 90)).shape
            if first is None:
                first, rotation, shape = picture.copy(), frame.rotation, upright
            if upright != shape:
                raise ValueError("it changes its picture size")
            constant = constant and np.array_equal(picture, first)
            damaged |= frame.is_corrupt
        nominal_hz, is_cut = video.stream.guessed_rate or video.stream.average_rate, video.is_cut
    if first is None:
        raise ValueError("it holds no video frame")
    *starts_s, end_s = times_s
    return {
        "frames": len(starts_s),
        "width": shape[1],
        "height": shape[0],
        "rotation": rotation,
        "nominal_rate_hz": float(nominal_hz or 0),
        "rate_hz": (len(starts_s) - 1) / starts_s[-1] if any(starts_s) else None,
        "duration_s": end_s,
        "irregular": _irregular(starts_s),
        "frames_at_25": max(0, media.frames_before(end_s)),
        "truncated": is_cut or any(sign in text for _, _, text in log for sign in CUT),
        "corrupt": decoder_errors(log)[:MESSAGES] + ["a damaged frame"] * damaged,
        "constant": constant,
    }


def _lacks_its_index(path: Path) -> bool:
    """Whether a file begins as MP4 does, but ends before its index, the box `moov` (ISO 14496-12, 4.2 and 8.2)."""
    boxes, start, end = list[bytes](), 0, path.stat().st_size
    with path.open("rb") as file:
        while start < end:
            file.seek(start)
            head = file.read(16)
            size = int.from_bytes(head[:4])
            size = int.from_bytes(head[8:]) if size == 1 else size or end - start  # 0: to the end of the file
            boxes.append(head[4:8])
            if size < 8:
                break
            start += size
    return boxes[:1] == [b"ftyp"] and (start > end or b"moov" not in boxes)


def _irregular(starts: list[float]) -> int:
    """Count the intervals between frames that differ from the usual one, their median."""
    intervals = np.diff(starts)
    usual = np.median(intervals) if len(intervals) else 0.0
    return int((abs(intervals - usual) > REGULAR * usual).sum())


def decoder_errors(log: Sequence[tuple[int, str, str]]) -> list[str]:
    """Return the errors in what FFmpeg said, each once."""
    import av.logging

    return list(dict.fromkeys(f"{name}: {text.strip()}" for level, name, text in log if level <= av.logging.ERROR))


@contextmanager
def decoder_log() -> Iterator[list[tuple[int, str, str]]]:
    """Collect what FFmpeg says, warnings and errors, of all its threads."""
    import av.logging

    level = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        with av.logging.Capture(local=False) as log:
            yield log
    finally:
        av.logging.set_level(level)


def _image(path: Path) -> dict[str, Any]:
    pixels = media.image_pixels(path)
    return {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "constant": bool((pixels == pixels[0, 0]).all()),
    }


INSPECTORS: dict[str, Callable[[Path], dict[str, Any]]] = {"audio": _audio, "video": _video, "image": _image}
