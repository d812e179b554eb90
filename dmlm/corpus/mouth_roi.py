"""Crop the mouth from a video of a talking face: 96 x 96 grey pixels, 25 frames a second, the input of AV-HuBERT.

This is the published preparation of AV-HuBERT (arXiv 2201.02184, commit 258fb50), in use since Martinez et al. (arXiv
2001.08702). A similarity transform maps five landmarks that speech does not move onto a mean face of 256 x 256 pixels;
the mouth is cut out around the centre of its outline. The transform of a frame is computed from the landmarks averaged
over that frame and the 11 frames after it. Landmarks of frames without a face are interpolated.

How we differ: a video without any face is an error, where the original shrinks the full picture to 96 x 96. The video is
resampled to 25 frames a second, where the original expects that rate. The rotation flag of phone videos is applied. The
box of the face is looked for once a second, not in every frame (`dmlm.corpus.face_points`).

The same transform gives the whole face, for encoders that want it: image encoders, and those of lips that are trained on
faces, such as that of UASR-LLM (arXiv 2510.22961).

Shapes: T frames, H x W pixels; a face is 6 points (x, y) in pixels: the five of STABLE, then the centre of the mouth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dmlm import files, known_files, progress
from dmlm.corpus import media
from dmlm.corpus.face_points import Detector, detector
from dmlm.corpus.inspection import decoder_errors, decoder_log
from dmlm.errors import UserError
from dmlm.processes import Map

WINDOW = 12  # frames over which landmarks are averaged
STABLE = np.array(  # nose base, corners of the right eye, corners of the left one: mean over LRW, 20words_mean_face.npy
    [[128.87, 137.30], [92.52, 94.37], [112.77, 94.94], [145.53, 94.53], [166.68, 93.57]]
)
MADE_BY = "crop/1"  # counts up with every change of this program that changes a crop


@dataclass(frozen=True)
class Region:
    """What is cut out of the aligned face, a square around a point of the mean face's picture of 256 x 256 pixels."""

    name: str
    side: int  # pixels of the crop
    span: int  # pixels of the mean face's picture
    middle: tuple[int, int] | None  # of the square; None: the centre of the mouth, wherever it is in a frame
    colour: bool


MOUTH = Region("mouth", 96, 96, None, colour=False)
FACE = Region("face", 224, 176, (128, 128), colour=True)  # from the forehead to below the chin
REGIONS = {region.name: region for region in (MOUTH, FACE)}


@dataclass(frozen=True)
class Cropped:
    """The mouth video, or the face video, made from one video."""

    path: Path
    frames: int
    frames_with_face: int  # landmarks of the others are interpolated


@dataclass(frozen=True)
class Job:
    """One video to crop in a worker; `source` is its digest."""

    video: Path
    target: Path
    source: str
    landmarks: str
    region: str

    @property
    def made(self) -> str:
        """What `known_files` keeps of a crop with these settings, by the digest of the video."""
        return f"{MADE_BY}/{self.landmarks}/{self.region}"


def crop_all(videos: Sequence[Path], folder: Path, landmarks: str, region: Region, run: Map) -> list[Cropped]:
    """Write the crop of each video to FOLDER/NAME.mp4. A video that cannot be cropped does not stop the others.

    What was made before from the same video with the same settings is kept, so that an interrupted call goes on.

    Args:
        videos: files of different names
        folder: where the crops go
        landmarks: name of the detector
        region: `MOUTH` or `FACE`
        run: maps a function over jobs, such as `processes.run`

    Raises:
        UserError: two videos have the same name, or the detector cannot be opened (raised before any work), or some
            videos failed (raised at the end, with one message per video).
    """
    names = [video.stem for video in videos]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"Two videos are called {duplicate}; crop them into different folders.")
    digests = known_files.digests(videos)
    jobs = [Job(video, folder / f"{video.stem}.mp4", digests[video], landmarks, region.name) for video in videos]
    crops = _finished(jobs)
    failures = []
    if todo := [job for job in jobs if job.target not in crops]:
        detector(landmarks)
    with progress.bar(f"cropping {region.name}s", len(jobs), "video", len(crops)) as bar:
        for target, cropped in run(crop_job, todo):
            if isinstance(cropped, Cropped):
                crops[target] = cropped
            else:
                failures.append(cropped)
            bar.update(1)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(videos)} videos gave no {region.name}: " + "\n".join(sorted(failures))
        )
    return [crops[job.target] for job in jobs]


def _finished(jobs: Sequence[Job]) -> dict[Path, Cropped]:
    """Return the crops that earlier calls made, by their path."""
    made = known_files.facts(jobs[0].made, [job.source for job in jobs]) if jobs else {}
    digests = known_files.digests(job.target for job in jobs if job.source in made)
    return {
        job.target: Cropped(job.target, made[job.source]["frames"], made[job.source]["frames_with_face"])
        for job in jobs
        if job.target in digests and digests[job.target] == made[job.source]["crop"]
    }


def crop_job(job: Job) -> tuple[Path, Cropped | str]:
    """Crop one video of `crop_all`; return the target, and what was made or why it was not, in a sentence.

    What was made is noted before it gets its name: a kill between the two leaves no file that is not known.
    """
    if job.target.exists():
        return job.target, (
            f"{job.target} exists and was not made from {job.video} with these settings; it is not overwritten: move it "
            "away, or crop into another folder."
        )
    try:
        with files.atomic(job.target) as temporary:
            cropped = crop(job.video, temporary, _detector(job.landmarks), region=REGIONS[job.region])
            counts = {"frames": cropped.frames, "frames_with_face": cropped.frames_with_face}
            known_files.keep(job.made, {job.source: {"crop": files.digest(temporary), **counts}})
    except UserError as error:
        return job.target, str(error)
    return job.target, Cropped(job.target, **counts)


_detector = cache(detector)  # once for all videos of a worker


def crop(
    video: Path,
    target: Path,
    find: Detector,
    start_s: float = 0.0,
    end_s: float | None = None,
    region: Region = MOUTH,
) -> Cropped:
    """Write the mouth, or the face, of one video or a stretch of it.

    The video is read twice, frame by frame, so memory does not grow with its size.

    Raises:
        UserError: the video is unreadable or damaged, has no face, or does not hold the stretch, or the target exists (it
            may be the video itself).
    """
    if target.exists():
        raise UserError(f"{target} exists and is not overwritten; move it away, or crop {video} into another folder.")
    faces = list(find(_whole_frames(video, start_s, end_s)))
    points = interpolate(faces, video)
    transforms = smoothed_transforms(points)
    frames = frames_of(video, start_s, end_s)
    cuts = (cut(frame, matrix, face[5], region) for frame, matrix, face in zip(frames, transforms, points, strict=True))
    with files.atomic(target) as temporary:
        media.write_video(temporary, cuts)
    return Cropped(target, len(faces), sum(face is not None for face in faces))


def frames_of(video: Path, start_s: float = 0.0, end_s: float | None = None) -> Iterator[np.ndarray]:
    """Yield upright RGB frames (H, W, 3) at 25 frames a second; see `media.video_frames`.

    Raises:
        UserError: the video is unreadable or cut, or has no frame, or does not hold the stretch.
    """
    return media.video_frames(video, lambda frame: frame.to_ndarray(format="rgb24"), start_s, end_s)


def _whole_frames(video: Path, start_s: float, end_s: float | None) -> Iterator[np.ndarray]:
    """Yield frames as `frames_of` does; UserError at the end if the decoder mended some."""
    with decoder_log() as log:
        for number, frame in enumerate(frames_of(video, start_s, end_s)):
            if start_s and not number:
                log.clear()  # of what lies before the stretch
            yield frame
        damage = decoder_errors(log)
    if damage:
        raise UserError(
            f"{video} is damaged ({damage[0]}); replace it, or, if it looks right, convert it to a new file."
        )


def interpolate(faces: Sequence[np.ndarray | None], video: Path) -> np.ndarray:
    """Fill in the points of frames without a face, linearly in time: (T, 6, 2). The ends repeat the nearest face.

    Raises:
        UserError: no frame has a face, or the stable points of one lie within a pixel (or are NaN): no transform exists.
    """
    detected = {number: face for number, face in enumerate(faces) if face is not None}
    if not detected:
        raise UserError(f"{video} shows no face in any of its {len(faces)} frames; leave it out, or crop it by hand.")
    for number, face in detected.items():
        if not np.ptp(face[:5], axis=0).max() >= 1:
            raise UserError(
                f"{video}, frame {number}: the points of the face coincide; leave it out, or crop it by hand."
            )
    values = np.stack(list(detected.values())).reshape(len(detected), -1)
    columns = [np.interp(np.arange(len(faces)), list(detected), column) for column in values.T.astype(float)]
    return np.stack(columns, axis=1).reshape(len(faces), 6, 2)


def smoothed_transforms(points: np.ndarray) -> np.ndarray:
    """Similarity transforms (T, 2, 3) from each frame to the mean face, from the points (T, 6, 2).

    The transform of frame t is fitted to the points averaged over frames t to t + 11. The last eleven frames share the
    transform of the last full window.
    """
    window = min(WINDOW, len(points))
    sums = np.cumsum(np.concatenate([np.zeros((1, 5, 2)), points[:, :5]]), axis=0)
    means = (sums[window:] - sums[:-window]) / window
    transforms = [similarity(mean, STABLE) for mean in means]
    return np.stack(transforms + transforms[-1:] * (window - 1))


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares similarity transform (2, 3), rotation, scale and shift, from source to target points (N, 2).

    With points as complex numbers, the best factor a of `a s + b = t` is sum(conj(s) t) / sum(|s|^2) about the means.

    >>> matrix = similarity(np.array([[0.0, 0], [1, 0], [0, 1]]), np.array([[5.0, 5], [5, 7], [3, 5]]))
    >>> (matrix.round(6) + 0.0).tolist()
    [[0.0, -2.0, 5.0], [2.0, 0.0, 5.0]]
    """
    s, t = (points[:, 0] + 1j * points[:, 1] for points in (source, target))
    centred = s - s.mean()
    a = (centred.conj() * (t - t.mean())).sum() / (abs(centred) ** 2).sum()
    b = t.mean() - a * s.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def cut(frame: np.ndarray, matrix: np.ndarray, mouth: np.ndarray, region: Region = MOUTH) -> np.ndarray:
    """Cut a region, (S, S) grey or (S, S, 3) RGB, out of a transformed RGB frame; black beyond the edge of the frame.

    Args:
        frame: picture (H, W, 3)
        matrix: its transform (2, 3) to the mean face
        mouth: the centre of the mouth (2,) in the frame
        region: what is cut out
    """
    import cv2

    middle = np.rint(matrix @ np.append(mouth, 1.0)) if region.middle is None else np.array(region.middle)
    # the corner lies at whole pixels, as the original cuts out a patch
    shifted = matrix - np.column_stack([np.zeros((2, 2)), middle - region.span // 2])
    scaled = shifted * (region.side / region.span)
    frame = np.ascontiguousarray(frame)
    pixels = frame if region.colour else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return cv2.warpAffine(pixels, scaled, (region.side, region.side), flags=cv2.INTER_LINEAR)
