"""The mouth in a video of a talking face: 96 x 96 grey pixels, 25 frames a second, as AV-HuBERT wants it.

Published preparation of AV-HuBERT (arXiv 2201.02184, commit 258fb50), which is that of lip readers since Martinez et al.
(arXiv 2001.08702): a similarity transform takes five points that speech does not move onto a mean face of 256 x 256
pixels, and the mouth is cut out around the middle of its outline. The transform of a frame is of the mean of it and the
11 frames after it; frames without a face take points between those of their neighbours.

How we differ: a video in which no face is found is refused, where the original shrinks the whole picture to 96 x 96; the
file is resampled to 25 frames a second, where the original asks for it; and what turns a phone's video upright is obeyed.

Shapes: T frames, H x W pixels; the 6 points of a face are STABLE's five and the middle of the mouth, (x, y) in pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dmlm import files, paths, progress
from dmlm.corpus.media import write_video
from dmlm.errors import UserError, did_you_mean

FPS = 25
SIDE = 96  # pixels
WINDOW = 12  # frames whose points are averaged
STABLE = np.array(  # nose base, corners of the right eye, corners of the left one: mean over LRW, 20words_mean_face.npy
    [[128.87, 137.30], [92.52, 94.37], [112.77, 94.94], [145.53, 94.53], [166.68, 93.57]]
)
IBUG = ([33, 36, 39, 42, 45], range(48, 68))  # those five, and the outlines of the mouth, among the 68 points of dlib
MESH = (  # the same among the 478 of MediaPipe
    [2, 33, 133, 362, 263],
    [61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87],
)
MODEL: dict[str, Any] = {  # of MediaPipe, Apache-2.0
    "name": "face_landmarker.task",
    "sha256": "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
    "bytes": 3_758_596,
    "url": "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
}
PREDICTOR = "models/shape_predictor_68_face_landmarks.dat"  # inside the package face_recognition_models

Detector = Callable[[np.ndarray], np.ndarray | None]  # RGB uint8 (H, W, 3) to the points (6, 2) of the surest face


@dataclass(frozen=True)
class Cropped:
    """What came of one video."""

    path: Path
    frames: int
    found: int  # frames in which a face was found; the others are interpolated


def crop_all(videos: Sequence[Path], folder: Path, find: Detector) -> list[Cropped]:
    """Write the mouth of each video as FOLDER/NAME.mp4; one that cannot be cropped does not stop the others.

    Raises:
        UserError: at the end, the sentences about those; at once, if two videos have one name.
    """
    names = [video.stem for video in videos]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"Two videos are called {double}; crop them into different folders.")
    done, refused = [], []
    with progress.bar("mouths", len(videos), "video") as shown:
        for video in videos:
            try:
                done.append(crop(video, folder / f"{video.stem}.mp4", find))
            except UserError as error:
                refused.append(str(error))
            shown.update(1)
    if refused:
        raise UserError(f"{len(refused)} of {len(videos)} videos gave no mouth: " + "\n".join(refused))
    return done


def crop(video: Path, target: Path, find: Detector) -> Cropped:
    """Write the mouth of one video. It is read twice, frame by frame, so its length and size do not matter.

    Raises:
        UserError: unreadable, no face in it, or a target that exists: it may be the video itself.
    """
    if target.exists():
        raise UserError(f"{target} exists and is not overwritten; move it away, or crop {video} into another folder.")
    found = [find(frame) for frame in frames_of(video)]
    points = interpolated(found, video)
    maps = steadied(points)
    mouths = [
        cut(frame, matrix, middle) for frame, matrix, middle in zip(frames_of(video), maps, points[:, 5], strict=True)
    ]
    with files.atomic(target) as temporary:
        write_video(temporary, np.stack(mouths), FPS)
    return Cropped(target, len(found), sum(face is not None for face in found))


def frames_of(video: Path) -> Iterator[np.ndarray]:
    """Upright RGB frames (H, W, 3), 25 a second: frame k is what the video shows at (k + 1/2) / 25 s.

    Raises:
        UserError: unreadable, or without a frame.
    """
    count, shown = 0, None
    for begin_s, frame in _timed(video):
        while shown is not None and Fraction(2 * count + 1, 2 * FPS) < begin_s:
            yield shown
            count += 1
        shown = frame


def _timed(video: Path) -> Iterator[tuple[Fraction, np.ndarray | None]]:
    """Frames and when each begins, from 0; at last the end, and None."""
    import av

    start_s = end_s = None
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            usual_s = 1 / (stream.average_rate or Fraction(FPS))
            for frame in container.decode(stream):
                begin_s = end_s or Fraction(0)
                if frame.pts is not None and frame.time_base is not None:
                    start_s = frame.pts * frame.time_base if start_s is None else start_s
                    begin_s = frame.pts * frame.time_base - start_s
                end_s = begin_s + usual_s
                yield begin_s, np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    except (OSError, IndexError, av.FFmpegError) as error:
        raise UserError(f"{video} cannot be read as video ({error}); replace the file.") from None
    if end_s is None:
        raise UserError(f"{video} holds no video frame; replace the file.")
    yield max(end_s, Fraction(1, FPS)), None


def interpolated(found: Sequence[np.ndarray | None], video: Path) -> np.ndarray:
    """Points of all frames (T, 6, 2); those not found lie between their neighbours, at the ends they are the nearest's.

    Raises:
        UserError: not found in any frame, or the stable ones within a pixel, which no transform can enlarge to a face.
    """
    known = {number: face for number, face in enumerate(found) if face is not None}
    if not known:
        raise UserError(f"{video} shows no face in any of its {len(found)} frames; leave it out, or crop it by hand.")
    for number, face in known.items():
        if not np.ptp(face[:5], axis=0).max() >= 1:
            raise UserError(
                f"{video}, frame {number}: the points of the face coincide; leave it out, or crop it by hand."
            )
    values = np.stack(list(known.values())).reshape(len(known), -1)
    columns = [np.interp(np.arange(len(found)), list(known), column) for column in values.T.astype(float)]
    return np.stack(columns, axis=1).reshape(len(found), 6, 2)


def steadied(points: np.ndarray) -> np.ndarray:
    """Similarity transforms (T, 2, 3) from frames to the mean face, of points (T, 6, 2).

    That of frame t is of the mean of frames t to t + 11; the last eleven frames share that of the last full window.
    """
    window = min(WINDOW, len(points))
    sums = np.cumsum(np.concatenate([np.zeros((1, 5, 2)), points[:, :5]]), axis=0)
    means = (sums[window:] - sums[:-window]) / window
    maps = [similarity(mean, STABLE) for mean in means]
    return np.stack(maps + maps[-1:] * (window - 1))


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The turn, scale and shift (2, 3) that take points (N, 2) to others with the least squared error.

    Points as complex numbers: the best factor a of `a s + b = t` is sum(conj(s) t) / sum(|s|^2) about the means.

    >>> found = similarity(np.array([[0.0, 0], [1, 0], [0, 1]]), np.array([[5.0, 5], [5, 7], [3, 5]]))
    >>> (found.round(6) + 0.0).tolist()
    [[0.0, -2.0, 5.0], [2.0, 0.0, 5.0]]
    """
    s, t = (points[:, 0] + 1j * points[:, 1] for points in (source, target))
    spread = s - s.mean()
    a = (spread.conj() * (t - t.mean())).sum() / (abs(spread) ** 2).sum()
    b = t.mean() - a * s.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def cut(frame: np.ndarray, matrix: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Grey pixels (96, 96) around a point of an RGB frame, as the transform shows it; black beyond the frame's edge."""
    import cv2

    corner = np.rint(matrix @ np.append(middle, 1.0)) - SIDE // 2  # whole pixels, as where a patch is cut out
    moved = matrix - np.column_stack([np.zeros((2, 2)), corner])
    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    return cv2.warpAffine(grey, moved, (SIDE, SIDE), flags=cv2.INTER_LINEAR)


def detector(name: str) -> Detector:
    """What finds the points of a face: `mediapipe`, or `dlib`, which is AV-HuBERT's own.

    Raises:
        UserError: unknown, not installed, or without its model.
    """
    if name not in DETECTORS:
        raise UserError(f"There are no landmarks {name!r}; {did_you_mean(name, DETECTORS)}.")
    return DETECTORS[name]()


def _chosen(points: np.ndarray, known: tuple[Any, Any]) -> np.ndarray:
    """The 6 points of a face (6, 2), of all that a detector gives."""
    stable, mouth = known
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
        return _chosen(np.array([(point.x * width, point.y * height) for point in faces[0]]), MESH)

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
        return _chosen(np.array([(point.x, point.y) for point in shape.parts()], dtype=float), IBUG)

    return find


DETECTORS: dict[str, Callable[[], Detector]] = {"mediapipe": _mediapipe, "dlib": _dlib}
