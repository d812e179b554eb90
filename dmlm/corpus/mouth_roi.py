"""Crop the mouth from a video of a talking face: 96 x 96 grey pixels, 25 frames a second, the input of AV-HuBERT.

This is the published preparation of AV-HuBERT (arXiv 2201.02184, commit 258fb50), in use since Martinez et al. (arXiv
2001.08702). A similarity transform maps five landmarks that speech does not move onto a mean face of 256 x 256 pixels;
the mouth is cut out around the centre of its outline. The transform of a frame is computed from the landmarks averaged
over that frame and the 11 frames after it. Landmarks of frames without a face are interpolated.

How we differ: a video without any face is an error, where the original shrinks the full picture to 96 x 96. The video is
resampled to 25 frames a second, where the original expects that rate. The rotation flag of phone videos is applied.

Shapes: T frames, H x W pixels; a face is 6 points (x, y) in pixels: the five of STABLE, then the centre of the mouth.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dmlm import files, paths, progress
from dmlm.corpus import media
from dmlm.errors import UserError, did_you_mean

SIDE = 96  # pixels of the crop
WINDOW = 12  # frames over which landmarks are averaged
STABLE = np.array(  # nose base, corners of the right eye, corners of the left one: mean over LRW, 20words_mean_face.npy
    [[128.87, 137.30], [92.52, 94.37], [112.77, 94.94], [145.53, 94.53], [166.68, 93.57]]
)
IBUG = (
    [33, 36, 39, 42, 45],
    range(48, 68),
)  # the five of STABLE and the mouth outline, as indices into dlib's 68 landmarks
MESH = (  # the same as indices into MediaPipe's 478 landmarks
    [2, 33, 133, 362, 263],
    [61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87],
)
MODEL: dict[str, Any] = {  # MediaPipe's, Apache-2.0
    "name": "face_landmarker.task",
    "sha256": "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
    "bytes": 3_758_596,
    "url": "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
}
PREDICTOR = "models/shape_predictor_68_face_landmarks.dat"  # inside the package face_recognition_models

Detector = Callable[
    [np.ndarray], np.ndarray | None
]  # RGB uint8 (H, W, 3) -> points (6, 2) of the most confident face, or None


@dataclass(frozen=True)
class Cropped:
    """The mouth video made from one face video."""

    path: Path
    frames: int
    frames_with_face: int  # landmarks of the others are interpolated


def crop_all(videos: Sequence[Path], folder: Path, find: Detector) -> list[Cropped]:
    """Write the mouth of each video to FOLDER/NAME.mp4. A video that cannot be cropped does not stop the others.

    Raises:
        UserError: two videos have the same name (raised before any work), or some videos failed (raised at the end,
            with one message per video).
    """
    names = [video.stem for video in videos]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"Two videos are called {duplicate}; crop them into different folders.")
    mouths, failures = [], []
    with progress.bar("mouths", len(videos), "video") as bar:
        for video in videos:
            try:
                mouths.append(crop(video, folder / f"{video.stem}.mp4", find))
            except UserError as error:
                failures.append(str(error))
            bar.update(1)
    if failures:
        raise UserError(f"{len(failures)} of {len(videos)} videos gave no mouth: " + "\n".join(failures))
    return mouths


def crop(video: Path, target: Path, find: Detector) -> Cropped:
    """Write the mouth of one video. The video is read twice, frame by frame, so memory does not grow with its size.

    Raises:
        UserError: the video is unreadable or has no face, or the target exists (it may be the video itself).
    """
    if target.exists():
        raise UserError(f"{target} exists and is not overwritten; move it away, or crop {video} into another folder.")
    faces = [find(frame) for frame in frames_of(video)]
    points = interpolate(faces, video)
    transforms = smoothed_transforms(points)
    mouths = [
        cut(frame, matrix, centre)
        for frame, matrix, centre in zip(frames_of(video), transforms, points[:, 5], strict=True)
    ]
    with files.atomic(target) as temporary:
        media.write_video(temporary, np.stack(mouths))
    return Cropped(target, len(faces), sum(face is not None for face in faces))


def frames_of(video: Path) -> Iterator[np.ndarray]:
    """Yield upright RGB frames (H, W, 3) at 25 frames a second; see `media.video_frames`.

    Raises:
        UserError: the video is unreadable or cut, or has no frame.
    """
    return media.video_frames(video, lambda frame: frame.to_ndarray(format="rgb24"))


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


def cut(frame: np.ndarray, matrix: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Cut grey pixels (96, 96) around a point of a transformed RGB frame; black beyond the edge of the frame."""
    import cv2

    corner = np.rint(matrix @ np.append(centre, 1.0)) - SIDE // 2  # whole pixels, as the original cuts out a patch
    shifted = matrix - np.column_stack([np.zeros((2, 2)), corner])
    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    return cv2.warpAffine(grey, shifted, (SIDE, SIDE), flags=cv2.INTER_LINEAR)


def detector(name: str) -> Detector:
    """Open the landmark detector `mediapipe` or `dlib`; dlib is the one that AV-HuBERT used.

    Raises:
        UserError: the name is unknown, the package is not installed, or its model file is missing.
    """
    if name not in DETECTORS:
        raise UserError(f"There are no landmarks {name!r}; {did_you_mean(name, DETECTORS)}.")
    return DETECTORS[name]()


def _six_points(points: np.ndarray, indices: tuple[Any, Any]) -> np.ndarray:
    """Select the 6 points of a face (6, 2) from all landmarks (N, 2) of a detector; `indices` is IBUG or MESH."""
    stable, mouth = indices
    return np.concatenate([points[list(stable)], points[list(mouth)].mean(axis=0, keepdims=True)])


def _mediapipe() -> Detector:
    path = paths.home() / "weights" / "mouth_roi" / str(MODEL["name"])
    if find_spec("mediapipe") is None:
        raise UserError('The package mediapipe is missing; run: pip install -e ".[lips]"')
    if not path.is_file():
        raise UserError(f"{path}, the model of MediaPipe (3.8 MB), is not here; run: dmlm mouths --fetch")
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    try:
        options = vision.FaceLandmarkerOptions(base_options=BaseOptions(model_asset_path=str(path)), num_faces=1)
        landmarker = vision.FaceLandmarker.create_from_options(options)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({str(error).splitlines()[0]}); remove it and run: dmlm mouths --fetch"
        ) from None

    def find(frame: np.ndarray) -> np.ndarray | None:
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
        faces = landmarker.detect(image).face_landmarks
        if not faces:
            return None
        height, width = frame.shape[:2]
        return _six_points(np.array([(point.x * width, point.y * height) for point in faces[0]]), MESH)

    return find


def _dlib() -> Detector:
    if find_spec("dlib") is None or (models := find_spec("face_recognition_models")) is None:
        raise UserError('The packages dlib-bin and face_recognition_models are missing; run: pip install -e ".[dlib]"')
    import dlib

    detect = dlib.get_frontal_face_detector()
    predict = dlib.shape_predictor(str(Path(str(models.origin)).parent / PREDICTOR))

    def find(frame: np.ndarray) -> np.ndarray | None:
        frame = np.ascontiguousarray(frame)
        boxes, scores, _ = detect.run(frame, 1, 0.0)
        if not boxes:
            return None
        shape = predict(frame, boxes[int(np.argmax(scores))])
        return _six_points(np.array([(point.x, point.y) for point in shape.parts()], dtype=float), IBUG)

    return find


DETECTORS: dict[str, Callable[[], Detector]] = {"mediapipe": _mediapipe, "dlib": _dlib}
