"""Copy the media of clips into a corpus: audio as 16 kHz mono FLAC, videos cut and cropped, pictures. Runs in workers."""

import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmlm import files
from dmlm.corpus import media, mouth_roi
from dmlm.corpus.face_points import Detector, detector
from dmlm.corpus.recordings import Cut, Outside, read_any_audio
from dmlm.corpus.voice_activity import sentences, speech_spans
from dmlm.errors import UserError
from dmlm.importing.clip import Clip, Stretch
from dmlm.importing.settings import ImportSettings
from dmlm.importing.svg import render
from dmlm.modalities import SAMPLE_RATE_HZ

PAUSE_S = 0.6  # a longer pause stands between two sentences
LOUDEST = 1.0  # full scale
SVG_PX = 512  # longer side of a rendered SVG


@dataclass(frozen=True)
class CopyJob:
    """Clips, each with the name of its files without suffix, that one worker copies."""

    folder: Path
    clips: tuple[tuple[Clip, str], ...]
    settings: ImportSettings


Copied = dict[
    str, Any
]  # `media` by field, `duration_s`, `spans`, `notes`; or `fault`: rule, what is wrong, and in which file


def copy_clips(job: CopyJob) -> list[tuple[str, Copied]]:
    """Copy the clips of a job; return by id what was made of each, or why nothing was."""
    find = None
    copied: list[tuple[str, Copied]] = []
    for clip, name in job.clips:
        if clip.lips and job.settings.lips != "as_given" and find is None:
            find = detector(job.settings.landmarks)
        copied.append((clip.id, _copy(clip, name, job.folder, job.settings, find)))
    return copied


def _copy(clip: Clip, name: str, folder: Path, settings: ImportSettings, find: Detector | None) -> Copied:
    notes: list[str] = []
    made = {"audio": f"audio/{name}.flac"}
    rule = "unreadable"
    try:
        pieces = []
        for stretch in clip.audio:
            file = stretch.path
            pieces.append(_piece(stretch))
        samples = np.concatenate(pieces)
        if (peak := float(np.abs(samples).max(initial=0.0))) > LOUDEST:
            samples, notes = samples * (LOUDEST / peak), ["made quieter, so that 16 bits hold it"]
        _write_audio(folder / made["audio"], samples)
        if clip.lips:
            file, made["lips"] = clip.lips.path, f"lips/{name}{_video_suffix(clip.lips, find)}"
            rule = "no_face" if find else "unreadable"
            _copy_video(clip.lips, folder / made["lips"], settings, find)
        if clip.image:
            rule, file, made["image"] = "unreadable", clip.image, f"image/{name}{_image_suffix(clip.image, settings)}"
            _copy_image(clip.image, folder / made["image"], settings.image_px)
    except (Outside, Cut) as error:
        return {"fault": ["outside" if isinstance(error, Outside) else "truncated", _reason(error, file), str(file)]}
    except UserError as error:
        if not os.path.isfile(file):
            return {"fault": ["no_file", "there is no such file", str(file)]}
        if rule == "no_face" and "no face" not in str(error):
            rule = "unreadable"
        return {"fault": [rule, _reason(error, file), str(file)]}
    duration_s = len(samples) / SAMPLE_RATE_HZ
    spans, more = _spans(clip, samples, settings)
    return {"media": made, "duration_s": duration_s, "spans": spans, "notes": notes + more}


def _reason(error: UserError, file: Path) -> str:
    """Return a sentence as the rest of a fault: without the file at its start, and without what its rule says."""
    return str(error).removeprefix(str(file)).strip(" :").removesuffix(".").removesuffix("; replace the file")


def _piece(stretch: Stretch) -> np.ndarray:
    silence = np.zeros(round(stretch.silence_s * SAMPLE_RATE_HZ), np.float32)
    return np.concatenate([silence, read_any_audio(stretch.path, stretch.start_s, stretch.end_s)])


def _write_audio(path: Path, samples: np.ndarray) -> None:
    import soundfile

    soundfile.write(content := io.BytesIO(), samples, SAMPLE_RATE_HZ, "PCM_16", format="FLAC")
    with files.atomic(path) as temporary:  # in two steps, because libsndfile does not say that a disk is full
        temporary.write_bytes(content.getvalue())


def _spans(clip: Clip, samples: np.ndarray, settings: ImportSettings) -> tuple[list[tuple[float, float]], list[str]]:
    """Return the sentence spans of a clip in seconds, and what is to be said about them."""
    whole = [(0.0, len(samples) / SAMPLE_RATE_HZ)]
    if clip.spans is not None:
        return list(clip.spans), []
    if settings.spans == "whole":
        return whole, []
    spoken = sentences(speech_spans(samples), PAUSE_S)
    return (spoken, []) if spoken else (whole, ["no speech was found: its span is the whole clip"])


def _video_suffix(video: Stretch, find: Detector | None) -> str:
    return ".mp4" if find or not video.is_whole else video.path.suffix.lower()


def _copy_video(video: Stretch, target: Path, settings: ImportSettings, find: Detector | None) -> None:
    """Copy a video, or the stretch of it, or the mouth or face in it; a stretch is made grey, 25 frames a second."""
    if find:
        target.unlink(missing_ok=True)
        mouth_roi.crop(video.path, target, find, video.start_s, video.end_s, mouth_roi.REGIONS[settings.lips])
    elif video.is_whole:
        _copy_file(video.path, target)
    else:
        frames = media.video_frames(video.path, media.grey, video.start_s, video.end_s)
        with files.atomic(target) as temporary:  # the codec needs even sides
            media.write_video(temporary, (frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames))


def _image_suffix(image: Path, settings: ImportSettings) -> str:
    return ".png" if settings.image_px or image.suffix.lower() == ".svg" else image.suffix.lower()


def _copy_image(image: Path, target: Path, side: int | None) -> None:
    """Copy a picture: an SVG rendered, and all on a white square if it has a side."""
    is_svg = image.suffix.lower() == ".svg"
    if not side and not is_svg:
        _copy_file(image, target)
        return
    if not os.path.isfile(image):
        raise UserError(f"There is no file {image}.")
    from PIL import Image, ImageOps

    with files.atomic(target) as temporary:
        if is_svg:
            temporary.write_bytes(render(image, side or SVG_PX))
        if side:
            pixels = Image.fromarray(media.read_image(temporary if is_svg else image))
            ImageOps.pad(pixels, (side, side), Image.Resampling.LANCZOS, "white").save(temporary, "PNG")


def _copy_file(source: Path, target: Path) -> None:
    if not os.path.isfile(source):
        raise UserError(f"There is no file {source}.")
    with files.atomic(target) as temporary:
        shutil.copyfile(source, temporary)


def groups(folder: Path, clips: Sequence[tuple[Clip, str]], settings: ImportSettings, workers: int) -> list[CopyJob]:
    """Return the jobs for some clips: at most 50 clips each, and enough jobs for every worker."""
    size = max(1, min(50, -(-len(clips) // (4 * workers))))
    return [CopyJob(folder, tuple(clips[start : start + size]), settings) for start in range(0, len(clips), size)]
