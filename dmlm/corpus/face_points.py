"""Find the points of a face by which a video is aligned, in each frame: with dlib or MediaPipe.

The box of a face is looked for once a second, which is what costs time; between, it moves with the landmarks, which are looked
for in every frame. It is looked for again when the picture in it is no longer the one that was found, as when the landmarks
have lost the face, and at a cut.
MediaPipe follows a face by itself in its video mode.

Shapes: H x W pixels; a face is 6 points (x, y) in pixels: nose base, corners of the right eye, corners of the left one, centre
of the mouth's outline.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dmlm import paths
from dmlm.errors import UserError, did_you_mean
from dmlm.modalities import FRAMES_HZ

IBUG = (
    [33, 36, 39, 42, 45],
    range(48, 68),
)  # the five stable points and the mouth outline, as indices into dlib's 68 landmarks
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
ALIKE = 0.8  # correlation of the box's picture with the one that was found, below which the box is looked for
GLANCE = 24  # pixels a side, to which these pictures are shrunk

Box = tuple[int, int, int, int]  # left, top, right, bottom
Detector = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray | None]]
"""From the RGB frames, uint8 (H, W, 3), of one video at 25 a second to the points (6, 2) of the most confident face of each
frame, or None. It keeps nothing from one video to the next."""


def detector(name: str) -> Detector:
    """Open the landmark detector `mediapipe` or `dlib`; dlib is the one that AV-HuBERT used.

    Raises:
        UserError: the name is unknown, the package is not installed, or its model file is missing.
    """
    if name not in DETECTORS:
        raise UserError(f"There are no landmarks {name!r}; {did_you_mean(name, DETECTORS)}.")
    return DETECTORS[name]()


def follow(
    frames: Iterable[np.ndarray],
    find_box: Callable[[np.ndarray], Box | None],
    find_landmarks: Callable[[np.ndarray, Box], np.ndarray],
    every: int = FRAMES_HZ,
) -> Iterator[np.ndarray | None]:
    """Yield the landmarks (N, 2) of each frame, or None where there is no face.

    Args:
        frames: pictures (H, W, 3) of a video
        find_box: finds the face in a frame
        find_landmarks: finds the landmarks in a box of a frame
        every: frames after which the box is looked for at the latest; 1: in each frame
    """
    found, age, box = None, 0, (0, 0, 0, 0)
    for frame in map(np.ascontiguousarray, frames):
        age += 1
        if found and age < every:
            points = find_landmarks(frame, box)
            box = found.moved(points)
            if _alike(found.picture, _glance(frame, box)):
                yield points
                continue
        if seen := find_box(frame):
            points = find_landmarks(frame, seen)
            found, age, box = _Found(seen, points, _glance(frame, seen)), 0, seen
            yield points
        else:
            found = None
            yield None


@dataclass(frozen=True)
class _Found:
    """A face as it was when its box was looked for."""

    box: Box
    points: np.ndarray
    picture: np.ndarray

    def moved(self, points: np.ndarray) -> Box:
        """Return the box where the landmarks have moved, larger or smaller as they are."""
        scale = points.std(axis=0).mean() / self.points.std(axis=0).mean()
        corners = (np.reshape(self.box, (2, 2)) - self.points.mean(axis=0)) * scale + points.mean(axis=0)
        left, top, right, bottom = np.rint(corners.ravel()).astype(int).tolist()
        return left, top, right, bottom


def _glance(frame: np.ndarray, box: Box) -> np.ndarray:
    """Return what is in a box, small and grey; beyond the edge of the frame, its last pixels."""
    import cv2

    left, top, right, bottom = box
    scale = np.array([[(right - left) / GLANCE, 0, left], [0, (bottom - top) / GLANCE, top]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(frame[..., 1], scale, (GLANCE, GLANCE), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _alike(before: np.ndarray, now: np.ndarray) -> bool:
    """Whether two pictures show one thing; what has no contrast is like nothing."""
    if not before.std() or not now.std():
        return False
    return bool(np.corrcoef(before.ravel(), now.ravel())[0, 1] > ALIKE)


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

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(path)), num_faces=1, running_mode=vision.RunningMode.VIDEO
    )
    try:
        vision.FaceLandmarker.create_from_options(options).close()
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({str(error).splitlines()[0]}); remove it and run: dmlm mouths --fetch"
        ) from None

    def find(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray | None]:
        with vision.FaceLandmarker.create_from_options(options) as landmarker:  # a new one, which follows no other face
            for number, frame in enumerate(frames):
                image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
                faces = landmarker.detect_for_video(image, number * 1000 // FRAMES_HZ).face_landmarks
                size = frame.shape[1], frame.shape[0]
                yield _six_points(np.array([(point.x, point.y) for point in faces[0]]) * size, MESH) if faces else None

    return find


def _dlib() -> Detector:
    if find_spec("dlib") is None or (models := find_spec("face_recognition_models")) is None:
        raise UserError('The packages dlib-bin and face_recognition_models are missing; run: pip install -e ".[dlib]"')
    import dlib

    detect = dlib.get_frontal_face_detector()
    predict = dlib.shape_predictor(str(Path(str(models.origin)).parent / PREDICTOR))

    def box_of(frame: np.ndarray) -> Box | None:
        boxes, scores, _ = detect.run(frame, 1, 0.0)
        if not boxes:
            return None
        best = boxes[int(np.argmax(scores))]
        return best.left(), best.top(), best.right(), best.bottom()

    def landmarks_in(frame: np.ndarray, box: Box) -> np.ndarray:
        return np.array([(point.x, point.y) for point in predict(frame, dlib.rectangle(*box)).parts()], dtype=float)

    def find(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray | None]:
        for points in follow(frames, box_of, landmarks_in):
            yield None if points is None else _six_points(points, IBUG)

    return find


DETECTORS: dict[str, Callable[[], Detector]] = {"mediapipe": _mediapipe, "dlib": _dlib}
