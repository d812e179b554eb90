"""A stretch of a long video is what a full read has there, and a key frame is found where there is one."""

import math

import numpy as np
import pytest
from films import write

from dmlm.corpus.media import video_frames
from dmlm.errors import UserError

B_FRAMES = "keyint=40:min-keyint=20:scenecut=0:bframes=5:b-adapt=0"
KINDS = {  # file, codec, options
    "closed groups": ("v.mp4", "libx264", {"x264-params": B_FRAMES}),
    "open groups": ("v.mp4", "libx264", {"x264-params": B_FRAMES + ":open-gop=1:b-pyramid=2"}),
    "open groups, Matroska": ("v.mkv", "libx264", {"x264-params": B_FRAMES + ":open-gop=1"}),
    "refresh without key frames": ("v.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=40"}),
    "one key frame": ("v.mp4", "libx264", {"g": "9999", "sc_threshold": "0"}),
    "live": ("v.webm", "libvpx", {"g": "50", "deadline": "realtime"}),
    "AVI": ("v.avi", "mpeg4", {"g": "30", "bf": "2"}),
    "MPEG": ("v.mpg", "mpeg2video", {"g": "15", "bf": "2"}),
}


def level(frame):
    return frame.to_ndarray(format="gray")


def drifting(count):
    """Noise that drifts, so that every frame needs others and none is like another."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 96 + 3 * count, 3), dtype=np.uint8)
    return [noise[:, 3 * number : 3 * number + 96] for number in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stretch_is_what_a_full_read_has_there(tmp_path, kind):
    name, codec, options = KINDS[kind]
    write(tmp_path / name, 160, 25, pictures=drifting(160), codec=codec, options=options)
    full = list(video_frames(tmp_path / name, level))
    assert len(full) == 160
    for start, end in ((0, 9), (24, 25), (30, 31), (57, 70), (79, 83), (121, 160)):
        stretch = list(video_frames(tmp_path / name, level, start / 25, end / 25))
        np.testing.assert_array_equal(stretch, full[start:end])
    np.testing.assert_array_equal(list(video_frames(tmp_path / name, level, 121 / 25)), full[121:])


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_stretch_where_the_camera_dropped_frames(tmp_path, ending):
    path, without = tmp_path / f"v.{ending}", {*range(40, 95), *range(100, 150, 2)}
    write(path, 150, 25, pictures=drifting(150), without=without, options={"g": "10", "bf": "2"})
    full = list(video_frames(path, level))
    for start, end in ((38, 60), (60, 80), (90, 120), (101, 102)):
        np.testing.assert_array_equal(list(video_frames(path, level, start / 25, end / 25)), full[start:end])


def test_frames_are_counted_from_the_start_of_the_stretch(tmp_path):
    """Of 50 frames a second, those in the middle of 1/25 s after 1.31 s: at 1.33, 1.37, 1.41 s."""
    write(tmp_path / "v.mp4", 100, 50)
    levels = [frame.mean() / 5 for frame in video_frames(tmp_path / "v.mp4", level, 1.31, 1.43)]
    np.testing.assert_allclose(levels, [(n % 51.2) for n in (66, 68, 70)], atol=0.7)


def test_what_lies_before_and_after_a_stretch_is_not_decoded(tmp_path):
    """The bytes around it are damaged."""
    path = tmp_path / "v.mp4"
    write(path, 300, 25, pictures=drifting(300), options={"g": "25", "bf": "0", "sc_threshold": "0"})
    wanted = list(video_frames(path, level, 5.0, 6.0))
    content = bytearray(path.read_bytes())
    size = len(content)
    for start, end in ((0.1, 0.3), (0.6, 0.9)):
        content[int(start * size) : int(end * size)] = bytes(int(end * size) - int(start * size))
    path.write_bytes(content)
    np.testing.assert_array_equal(list(video_frames(path, level, 5.0, 6.0)), wanted)


@pytest.mark.parametrize("ending", ["mkv", "avi"])
def test_a_cut_file_serves_the_stretches_that_it_holds(tmp_path, ending):
    path = tmp_path / f"v.{ending}"
    codec = "mpeg4" if ending == "avi" else "libx264"
    write(path, 200, 25, pictures=drifting(200), codec=codec, options={"g": "25"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert len(list(video_frames(path, level, 2.0, 3.0))) == 25
    for stretch in ((3.0, 6.0), (6.0, 7.0), (2.0, None)):
        with pytest.raises(UserError, match=rf"v\.{ending} ends before its header says"):
            list(video_frames(path, level, *stretch))


@pytest.mark.parametrize("ending", ["mp4", "mkv", "mpg"])
def test_a_stretch_beyond_the_end_names_file_and_times(tmp_path, ending):
    path = tmp_path / f"v.{ending}"
    write(path, 100, 25, codec="mpeg2video" if ending == "mpg" else "libx264")
    assert len(list(video_frames(path, level, 3.0, 4.015))) == 25  # its frame ends at 4 s
    for start_s, end_s, words in ((3.0, 4.5, "3 s to 4.5 s"), (7.0, 9.0, "7 s to 9 s"), (5.0, None, "5 s to the end")):
        with pytest.raises(UserError, match=rf"v\.{ending} ends at 4\.00 s and does not hold the stretch from {words}"):
            list(video_frames(path, level, start_s, end_s))


@pytest.mark.parametrize("stretch", [(-1.0, 2.0), (2.0, 2.0), (2.0, 1.0), (0.0, 0.01), (math.nan, 1), (0, math.nan)])
def test_a_stretch_without_a_frame_is_a_sentence(tmp_path, stretch):
    write(tmp_path / "v.mp4", 100, 25)
    with pytest.raises(UserError, match=r"v\.mp4: the stretch from .* holds no frame; give a start and a later end"):
        list(video_frames(tmp_path / "v.mp4", level, *stretch))
