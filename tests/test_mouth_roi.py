"""The mouth in a video: geometry against a picture that is known at every point, and detectors on a real face."""

import os
import subprocess
import sys
from collections import deque
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from films import turn, write
from hypothesis import given
from hypothesis import strategies as st

from dmlm import processes
from dmlm.corpus import face_points, mouth_roi
from dmlm.corpus.media import read_video
from dmlm.corpus.mouth_roi import STABLE
from dmlm.errors import UserError

MOUTH = np.array([[129.3, 156.8]])  # of the mean face
FACE = np.concatenate([STABLE, MOUTH])
SHAPE = (360, 480)  # H, W of a frame
SIDE = mouth_roi.MOUTH.side


def still(points):
    """A detector that finds the same points everywhere."""
    return lambda frames: (points for _ in frames)


def seeing(faces):
    """A detector that finds these points, frame by frame."""
    return lambda frames: (points for _, points in zip(frames, faces, strict=True))


@pytest.fixture
def crop_all(tmp_path, monkeypatch):
    """`mouth_roi.crop_all` in this process, with a detector named `still`."""
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(face_points.DETECTORS, "still", lambda: still(FACE))

    def run(videos, folder, region=mouth_roi.MOUTH):
        return mouth_roi.crop_all(videos, folder, "still", region, map)

    return run


def picture(x, y):
    """A smooth face to everybody's taste: grey levels at any point of the mean face's canvas."""
    waves = np.sin(x / 9 + y / 31) + np.sin(y / 7 - x / 23) + 1.5 * np.exp(-((x - 129) ** 2 + (y - 157) ** 2) / 300)
    return np.clip(110 + 40 * waves, 0, 255)


def pose(scale, degrees, x, y):
    """Where the canvas lies in a frame: (2, 3)."""
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[c, -s, x], [s, c, y]])


def moved(points, matrix):
    return points @ matrix[:, :2].T + matrix[:, 2]


def scene(matrix):
    """A frame that shows the picture in a pose, RGB, and the six points in it."""
    back = cv2.invertAffineTransform(matrix)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    there = moved(np.stack([columns.ravel(), rows.ravel()], 1), back).reshape(*SHAPE, 2)
    grey = picture(there[..., 0], there[..., 1]).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2), moved(FACE, matrix)


def expected():
    """What has to be cut out: whole pixels of the canvas around the mouth."""
    left, top = np.rint(MOUTH[0]).astype(int) - SIDE // 2
    rows, columns = np.mgrid[top : top + SIDE, left : left + SIDE]
    return picture(columns, rows)


@given(st.floats(0.9, 1.8), st.floats(-40, 40), st.floats(-20, 60), st.floats(-20, 60))
def test_a_face_turned_scaled_and_shifted_gives_the_same_mouth(scale, degrees, x, y):
    turned = pose(scale, degrees, 0, 0)
    shift = np.array([240 + x / 4, 180 + y / 4]) - moved(MOUTH, turned)[0]
    frame, points = scene(turned + np.column_stack([np.zeros((2, 2)), shift]))
    (matrix,) = mouth_roi.smoothed_transforms(points[None])
    assert np.abs(mouth_roi.cut(frame, matrix, points[5]) - expected()).mean() < 1.0
    assert np.abs(mouth_roi.cut(frame, matrix, points[5]) - expected()).max() < 8


def test_a_face_as_the_mean_face_is_cut_pixel_by_pixel():
    frame, points = scene(pose(1, 0, 0, 0))
    (matrix,) = mouth_roi.smoothed_transforms(points[None])
    np.testing.assert_allclose(matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-9)
    assert np.array_equal(mouth_roi.cut(frame, matrix, points[5]), frame[109:205, 81:177, 0])


@given(st.integers(0, 10_000))
def test_the_transform_has_the_least_squared_error(seed):
    """Against a linear solver for the four unknowns."""
    source, target = np.random.default_rng(seed).normal(0, 50, (2, 5, 2))
    x, y = source.T
    one, none = np.ones(5), np.zeros(5)
    rows = np.concatenate([np.stack([x, -y, one, none], 1), np.stack([y, x, none, one], 1)])
    a, b, c, d = np.linalg.lstsq(rows, target.T.ravel(), rcond=None)[0]
    np.testing.assert_allclose(mouth_roi.similarity(source, target), [[a, -b, c], [b, a, d]], atol=1e-6)


@pytest.mark.parametrize("count", [1, 5, 12, 13, 40])
def test_landmarks_are_averaged_as_published(count):
    """Written as the published preparation describes it: a queue of 12 frames, whose last transform serves the rest."""
    rng = np.random.default_rng(count)
    points = FACE + rng.normal(0, 3, (count, 6, 2))
    queue, wanted = deque(), []
    for number in range(count):
        queue.append(points[number])
        if len(queue) == min(count, 12):
            matrix = mouth_roi.similarity(np.mean(queue, axis=0)[:5], STABLE)
            wanted.append(matrix)
            queue.popleft()
    wanted += [matrix] * len(queue)
    np.testing.assert_allclose(mouth_roi.smoothed_transforms(points), wanted, atol=1e-9)


def test_cutting_is_warping_the_whole_face_and_taking_a_patch():
    frame, points = scene(pose(1.3, 12, 60, -10))
    matrix = mouth_roi.smoothed_transforms(points[None] + 0.4)[0]
    face = cv2.warpAffine(frame[..., 0], matrix, (256, 256))
    x, y = (round(value) for value in moved(points[5:], matrix)[0])
    mouth = mouth_roi.cut(frame, matrix, points[5])
    assert np.abs(mouth.astype(int) - face[y - 48 : y + 48, x - 48 : x + 48]).max() <= 2


def test_missing_frames_lie_between_their_neighbours():
    first, last = FACE, FACE + 30
    points = mouth_roi.interpolate([None, first, None, None, last, None], Path("a.mp4"))
    np.testing.assert_allclose(points, [first, first, FACE + 10, FACE + 20, last, last])


def test_no_face_is_a_sentence_with_the_name(tmp_path):
    write(tmp_path / "wall.mp4", 5, 25)
    with pytest.raises(UserError, match=r"wall.mp4 shows no face in any of its 5 frames"):
        mouth_roi.crop(tmp_path / "wall.mp4", tmp_path / "out.mp4", still(None))
    assert not (tmp_path / "out.mp4").exists()


def test_a_file_that_exists_is_not_overwritten(tmp_path, monkeypatch, crop_all):
    """`dmlm mouths talk.mp4 --to .` put the mouth in the place of the video."""
    write(tmp_path / "talk.mp4", 3, 25)
    before = (tmp_path / "talk.mp4").read_bytes()
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(UserError, match=r"talk\.mp4 exists and was not made from .*; it is not overwritten"):
            crop_all([Path("talk.mp4")], Path())
    assert (tmp_path / "talk.mp4").read_bytes() == before
    with pytest.raises(UserError, match=r"talk\.mp4 exists and is not overwritten"):
        mouth_roi.crop(Path("talk.mp4"), Path("talk.mp4"), still(FACE))


def test_an_interrupted_call_goes_on(tmp_path, monkeypatch, crop_all):
    """Each finished file was an error."""
    videos = [tmp_path / f"{name}.mp4" for name in "ab"]
    for number, video in enumerate(videos):
        write(video, 3 + number, 25)
    crop_all(videos[:1], tmp_path / "to")
    made = (tmp_path / "to" / "a.mp4").stat()
    assert [done.frames for done in crop_all(videos, tmp_path / "to")] == [3, 4]
    (tmp_path / "to").rename(tmp_path / "moved")
    assert [done.frames_with_face for done in crop_all(videos, tmp_path / "moved")] == [3, 4]
    assert (tmp_path / "moved" / "a.mp4").stat() == made
    with pytest.raises(UserError, match=r"2 of 2 videos gave no face: .*a\.mp4 exists and was not made"):
        crop_all(videos, tmp_path / "moved", mouth_roi.FACE)  # other settings
    write(videos[0], 5, 25)  # another video
    with pytest.raises(UserError, match=r"1 of 2 videos gave no mouth: .*a\.mp4 exists and was not made"):
        crop_all(videos, tmp_path / "moved")
    write(videos[0], 3, 25)
    (tmp_path / "moved" / "a.mp4").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"1 of 2 videos gave no mouth: .*a\.mp4 exists and was not made"):
        crop_all(videos, tmp_path / "moved")
    assert (tmp_path / "moved" / "a.mp4").read_bytes() == b"something else"


def test_what_has_its_name_when_a_kill_comes_is_known(tmp_path, monkeypatch, crop_all):
    """Were a crop noted after it got its name, a kill between would leave a file that no call accepts."""
    write(tmp_path / "a.mp4", 3, 25)
    replace = os.replace

    def killed(source, target):
        replace(source, target)
        if Path(target).name == "a.mp4":
            raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        crop_all([tmp_path / "a.mp4"], tmp_path / "to")
    assert crop_all([tmp_path / "a.mp4"], tmp_path / "to")[0].frames == 3  # not made again, or it would be killed again


@pytest.mark.parametrize("face", [np.full((6, 2), 5.0), FACE / 1000, np.full((6, 2), np.nan)])
def test_points_that_coincide_are_a_sentence(tmp_path, face):
    """They gave a mouth of black pixels, or of one."""
    write(tmp_path / "talk.mp4", 3, 25)
    seen = [FACE, face, FACE]
    with pytest.raises(UserError, match=r"talk\.mp4, frame 1: the points of the face coincide"):
        mouth_roi.crop(tmp_path / "talk.mp4", tmp_path / "out.mp4", seeing(seen))
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("fps", "wanted"),
    [
        (25, list(range(12))),
        (50, [1, 3, 5, 7, 9, 11]),
        (12.5, [n // 2 for n in range(24)]),
        (30, [0, 1, 3, 4, 5, 6, 7, 9, 10, 11]),
    ],
)
def test_any_rate_becomes_25_frames_a_second(tmp_path, fps, wanted):
    write(tmp_path / "v.mp4", 12, Fraction(fps).limit_denominator(10))
    levels = [frame.mean() / 5 for frame in mouth_roi.frames_of(tmp_path / "v.mp4")]
    np.testing.assert_allclose(levels, wanted, atol=0.5)


def test_a_phone_video_is_turned_upright_in_colour(tmp_path):
    half = np.zeros((64, 96, 3), np.uint8)
    half[:, :48] = (200, 100, 0)  # the left is orange
    write(tmp_path / "v.mp4", 3, 25, pictures=[half] * 3)
    turn(tmp_path / "v.mp4", 90)
    for frame in mouth_roi.frames_of(tmp_path / "v.mp4"):
        assert frame.shape == (96, 64, 3)
        np.testing.assert_allclose(frame[:40].mean(axis=(0, 1)), (200, 100, 0), atol=8)


def test_the_whole_face_is_cut_out_in_colour(tmp_path):
    """The square of 176 px about the middle of the mean face, enlarged to 224; red on the left, blue on the right."""
    matrix = pose(1.2, 8, 40, 10)
    frame = np.zeros((*SHAPE, 3), np.uint8)
    there = moved(np.stack(np.meshgrid(range(SHAPE[1]), range(SHAPE[0])), -1), cv2.invertAffineTransform(matrix))
    frame[there[..., 0] < 128] = (200, 40, 30)
    frame[there[..., 0] >= 128] = (30, 60, 180)
    frame[np.linalg.norm(there - MOUTH[0], axis=-1) < 15] = (240, 240, 240)
    write(tmp_path / "talk.mp4", 4, 25, pictures=[frame] * 4)
    points = moved(FACE, matrix)
    done = mouth_roi.crop(tmp_path / "talk.mp4", tmp_path / "face.mp4", still(points), region=mouth_roi.FACE)
    faces = np.stack(list(mouth_roi.frames_of(done.path)))
    assert faces.shape == (4, 224, 224, 3)
    np.testing.assert_allclose(faces[:, 20:100, 10:100].mean(axis=(0, 1, 2)), (200, 40, 30), atol=6)
    np.testing.assert_allclose(faces[:, 20:100, 124:214].mean(axis=(0, 1, 2)), (30, 60, 180), atol=6)
    bright = np.argwhere(faces[0].min(axis=-1) > 150).mean(axis=0)
    np.testing.assert_allclose(bright, (MOUTH[0, ::-1] - (128 - 88)) * 224 / 176, atol=1)
    assert read_video(done.path).shape == (4, 224, 224)  # grey, for the lip encoders


def test_a_stretch_of_a_long_video_is_cropped(tmp_path):
    poses = [pose(1, 0, number, 0) for number in range(60)]
    scenes = [scene(matrix) for matrix in poses]
    write(tmp_path / "talk.mp4", 60, 25, pictures=[frame for frame, _ in scenes])
    seen = [points for _, points in scenes]
    done = mouth_roi.crop(tmp_path / "talk.mp4", tmp_path / "part.mp4", seeing(seen[30:50]), 1.2, 2.0)
    assert done.frames == 20
    assert np.abs(read_video(done.path)[:9].astype(float) - expected()).mean() < 12
    with pytest.raises(UserError, match=r"talk\.mp4 ends at 2\.40 s and does not hold the stretch from 2 s to 3 s"):
        mouth_roi.crop(tmp_path / "talk.mp4", tmp_path / "more.mp4", still(FACE), 2.0, 3.0)


def test_a_damaged_video_is_a_sentence(tmp_path):
    """The decoder mends pictures that it cannot read; the mouth would be that of another frame, or none."""
    pictures = list(np.random.default_rng(0).integers(0, 256, (10, 64, 96, 3), dtype=np.uint8))
    write(tmp_path / "talk.mp4", 10, 25, pictures=pictures)
    content = bytearray((tmp_path / "talk.mp4").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 999] = bytes(999)
    (tmp_path / "talk.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"talk\.mp4 is damaged \(h264: .*\); replace it, or"):
        mouth_roi.crop(tmp_path / "talk.mp4", tmp_path / "out.mp4", still(FACE))
    assert not (tmp_path / "out.mp4").exists()


def test_a_moving_face_gives_a_still_mouth_in_a_file_that_media_reads(tmp_path):
    poses = [pose(1 + n / 60, n - 10, 60 + n, 10 - n / 2) for n in range(20)]
    scenes = [scene(matrix) for matrix in poses]
    write(tmp_path / "talk.mp4", 20, 25, pictures=[frame for frame, _ in scenes])
    seen = [points if number % 5 != 3 else None for number, (_, points) in enumerate(scenes)]
    done = mouth_roi.crop(tmp_path / "talk.mp4", tmp_path / "out" / "talk.mp4", seeing(seen))
    assert (done.frames, done.frames_with_face) == (20, 16)
    mouths = read_video(done.path)
    assert mouths.shape == (20, SIDE, SIDE)
    assert mouths.dtype == np.uint8
    distance = np.abs(mouths.astype(float) - expected()).mean(axis=(1, 2))
    assert distance[5:].max() < 25  # a transform of 12 frames lags behind a face that never rests
    assert np.abs(mouths[:, 40:56, 40:56].astype(float) - expected()[40:56, 40:56]).mean() < 12


def test_one_bad_video_does_not_stop_the_others(tmp_path, crop_all):
    write(tmp_path / "a.mp4", 3, 25)
    (tmp_path / "b.mp4").write_text("no video")
    write(tmp_path / "c.mp4", 3, 25)
    with pytest.raises(UserError, match=r"1 of 3 videos gave no mouth: .*b\.mp4 cannot be read as video"):
        crop_all([tmp_path / f"{name}.mp4" for name in "abc"], tmp_path / "to")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["a.mp4", "c.mp4"]
    with pytest.raises(UserError, match="Two videos are called a"):
        crop_all([tmp_path / "a.mp4", tmp_path / "x" / "a.mp4"], tmp_path / "to")


@pytest.mark.parametrize(("name", "extra"), [("mediapipe", "lips"), ("dlib", "dlib")])
def test_a_missing_package_is_a_sentence_with_the_command(name, extra, monkeypatch):
    monkeypatch.setattr(face_points, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"missing; run: pip install -e \"\.\[{extra}\]\""):
        face_points.detector(name)
    with pytest.raises(UserError, match="did you mean 'dlib'"):
        face_points.detector("dlip")


def test_a_missing_or_damaged_model_of_mediapipe_is_a_sentence(tmp_path, monkeypatch):
    pytest.importorskip("mediapipe")
    monkeypatch.setenv("DMLM_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"is not here; run: dmlm mouths --fetch"):
        face_points.detector("mediapipe")
    path = tmp_path / "weights" / "mouth_roi" / "face_landmarker.task"
    path.parent.mkdir(parents=True)
    for content in (b"", b"half a file" * 99):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"face_landmarker.task is damaged .* run: dmlm mouths --fetch"):
            face_points.detector("mediapipe")


def test_the_command_line_wants_videos_and_fetches_only_when_asked(tmp_path):
    """With downloads forbidden, and with a file that is not the model."""
    (tmp_path / "weights" / "mouth_roi").mkdir(parents=True)
    given = {**os.environ, "DMLM_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    def run(*arguments):
        command = [sys.executable, "-c", "from dmlm.cli.main import main; main()", "mouths", *arguments]
        return subprocess.run(command, env=given, capture_output=True, text=True, check=False)

    done = run("--to", str(tmp_path))
    assert done.returncode == 2
    assert "Say which videos" in done.stderr
    for arguments, complaint in (
        (["nowhere.mp4"], "There is no video nowhere.mp4"),
        (["--fetch", "--landmarks", "dlib"], "not of dlib"),
        (["--fetch"], "HF_HUB_OFFLINE is set"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert complaint in done.stderr
    (tmp_path / "weights" / "mouth_roi" / "face_landmarker.task").write_bytes(b"no model")
    done = run("--fetch")
    assert done.returncode == 2
    assert "is not the published file" in done.stderr


def test_a_real_face_that_moves_keeps_its_mouth_in_the_middle(tmp_path, monkeypatch):
    """With the 68 points of dlib: the face of scikit-image's astronaut, shifted, turned and enlarged over 15 frames."""
    pytest.importorskip("dlib")
    if find_spec("face_recognition_models") is None:  # which cannot be imported where pkg_resources has gone
        pytest.skip("face_recognition_models is not installed")
    face = pytest.importorskip("skimage.data").astronaut()[:256, 96:352]
    pictures = []
    for number in range(15):
        matrix = pose(1.2 + number / 100, 0.4 * number - 3, 10 + number / 2, 30 - number / 2)
        pictures.append(cv2.warpAffine(face, matrix, (360, 360), borderMode=cv2.BORDER_REPLICATE))
    write(tmp_path / "face.mp4", 15, 25, pictures=pictures)
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    run = partial(processes.run, workers=2, tasks_per_process=None)
    (done,) = mouth_roi.crop_all([tmp_path / "face.mp4"], tmp_path / "mouths", "dlib", mouth_roi.MOUTH, run)
    assert done.frames_with_face == 15
    mouths = read_video(done.path).astype(float)
    assert mouths.shape == (15, SIDE, SIDE)
    middle = mouths[:, 24:72, 24:72].reshape(15, -1)
    likeness = np.corrcoef(middle)
    assert likeness.min() > 0.8, likeness.min()
