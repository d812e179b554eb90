"""What is found in media files, made here with one property each; a bad file is a fact, not an exception."""

import json

import av
import numpy as np
import pytest
import soundfile
from films import turn, write
from PIL import Image

from dmlm.corpus import inspection, media
from dmlm.errors import UserError

RATE_HZ = 16_000
NOISE = 0.1 * np.random.default_rng(0).normal(size=2 * RATE_HZ).clip(-4, 4)
FINE = {"truncated": False, "not_finite": 0, "clipped_share": 0.0, "cancel_db": 0.0, "silent_stretches": []}


def inspect(path, kind):
    """The facts of a file of these tests, each of which is also read: what is refused is bad by its facts, too."""
    facts = inspection.inspect(path, kind)
    fine = not facts.get("truncated") and not facts.get("not_finite") and facts.get("samples", 1)
    if fine and "unreadable" not in facts:
        media.READERS[kind](path)
    return facts


def heard(folder, samples, rate_hz=RATE_HZ, name="a.wav", **options):
    """The facts of an audio file with these samples; they are fit for JSON."""
    soundfile.write(folder / name, samples, rate_hz, **options)
    facts = inspect(folder / name, "audio")
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    return facts


def test_ordinary_audio(tmp_path):
    facts = heard(tmp_path, NOISE, 8_000)
    assert facts.items() >= FINE.items()
    assert facts["rate_hz"] == 8_000
    assert (facts["channels"], facts["samples"], facts["header_samples"]) == (1, 32_000, 32_000)
    assert facts["duration_s"] == 4.0
    assert facts["peak"] == pytest.approx(abs(NOISE).max(), abs=1e-4)
    assert facts["rms"] == pytest.approx(NOISE.std(), rel=1e-3)
    assert facts["dc"] == pytest.approx(NOISE.mean(), abs=1e-4)
    assert facts["quiet_stretches"] == []


@pytest.mark.parametrize("block", [1 << 20, 999])
def test_blocks_of_any_length_give_the_same(tmp_path, monkeypatch, block):
    monkeypatch.setattr(media, "BLOCK", block)
    speech = np.stack([NOISE, 0.5 * NOISE], axis=1)
    speech[3_000:5_000] = 0.25
    facts = heard(tmp_path, speech)
    assert facts["silent_stretches"] == [[3_000 / RATE_HZ, 5_000 / RATE_HZ]]
    assert facts["quiet_stretches"] == [[0.2, 0.3]]
    mono = soundfile.read(tmp_path / "a.wav")[0].mean(axis=1)
    assert facts["rms"] == pytest.approx(mono.std(), rel=1e-5)
    assert facts["cancel_db"] == pytest.approx(10 * np.log10(mono.var() / (0.625 * (2 * mono / 1.5).var())), abs=0.3)


def test_not_a_number(tmp_path):
    speech = NOISE.copy()
    speech[[5, 17, 900]] = np.nan, np.inf, -np.inf
    facts = heard(tmp_path, speech, subtype="FLOAT")
    assert facts["not_finite"] == 3
    assert np.isfinite([facts["peak"], facts["dc"], facts["rms"]]).all()


@pytest.mark.parametrize(("signal", "dc"), [(np.zeros(RATE_HZ), 0.0), (np.full(RATE_HZ, 0.5), 0.5)])
def test_silence_and_a_stuck_level(tmp_path, signal, dc):
    facts = heard(tmp_path, signal)
    assert facts["silent_stretches"] == [[0.0, 1.0]]
    assert (facts["dc"], facts["rms"], facts["clipped_share"]) == (dc, 0.0, 0.0)


def test_silence_within_and_at_the_ends(tmp_path):
    speech = NOISE.copy()
    speech[:1_600], speech[8_000:8_801], speech[20_000:20_700], speech[-900:] = 0, 0, 0, 0
    stretches = heard(tmp_path, speech)["silent_stretches"]
    assert stretches == [[0.0, 0.1], [0.5, 8_801 / RATE_HZ], [31_100 / RATE_HZ, 2.0]]


def test_no_sample_and_a_few(tmp_path):
    assert heard(tmp_path, np.zeros(0))["samples"] == 0
    assert heard(tmp_path, NOISE[:3])["samples"] == 3


def test_an_offset(tmp_path):
    facts = heard(tmp_path, NOISE + 0.2)
    assert facts["dc"] == pytest.approx(0.2, abs=0.01)
    assert facts["rms"] == pytest.approx(NOISE.std(), rel=1e-3)


@pytest.mark.parametrize(("gain", "ceiling"), [(8, 1.0), (8, 0.8), (8, 0.3)])
def test_clipping_at_full_scale_and_below(tmp_path, gain, ceiling):
    tone = np.sin(2 * np.pi * 200 * np.arange(RATE_HZ) / RATE_HZ)
    wanted = (abs(gain * tone) >= ceiling).mean()
    assert heard(tmp_path, np.clip(gain * tone, -ceiling, ceiling))["clipped_share"] == pytest.approx(wanted, abs=0.02)
    assert heard(tmp_path, 0.9 * tone)["clipped_share"] < 0.03


def test_one_clipped_channel_is_seen(tmp_path):
    tone = np.sin(2 * np.pi * 200 * np.arange(RATE_HZ) / RATE_HZ)
    assert heard(tmp_path, np.stack([NOISE[:RATE_HZ], np.clip(9 * tone, -1, 1)], axis=1))["clipped_share"] > 0.4


def test_silence_is_no_clipping_of_a_signal_of_one_sign(tmp_path):
    speech = abs(NOISE)
    speech[5_000:9_000] = 0
    assert heard(tmp_path, speech)["clipped_share"] == 0.0


def test_channels_that_cancel(tmp_path):
    assert heard(tmp_path, np.stack([NOISE, -NOISE], axis=1))["cancel_db"] < -80
    assert heard(tmp_path, np.stack([NOISE, NOISE], axis=1))["cancel_db"] == pytest.approx(0, abs=0.01)
    assert heard(tmp_path, np.stack([NOISE, 0 * NOISE], axis=1))["cancel_db"] == pytest.approx(-3, abs=0.1)


@pytest.mark.parametrize("padding", ["silence", "dither", "hum", "offset"])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_padding_that_is_not_constant_is_quiet(tmp_path, padding, rate_hz):
    """Padding with dither of one step of 16 bits, or a hum, was as good as speech."""
    times_s = np.arange(3 * rate_hz) / rate_hz
    speech = 0.1 * np.random.default_rng(0).normal(size=times_s.size)
    added = {
        "silence": 0 * times_s,
        "dither": np.random.default_rng(0).integers(-1, 2, times_s.size) / 2**15,
        "hum": 1e-4 * np.sin(2 * np.pi * 50 * times_s),
        "offset": np.full(times_s.size, 0.01),
    }[padding]
    quiet = (times_s < 0.5) | (abs(times_s - 1.2) < 0.1) | (abs(times_s - 1.5) < 0.04) | (times_s > 2)
    speech[quiet] = added[quiet]
    stretches = heard(tmp_path, speech, rate_hz)["quiet_stretches"]
    assert np.shape(stretches) == (3, 2)
    assert np.array(stretches) == pytest.approx(np.array([[0, 0.5], [1.1, 1.3], [2, 3]]), abs=0.021)
    assert stretches[-1][1] == 3.0


def test_quiet_is_less_than_the_loud_part_not_less_than_a_click(tmp_path):
    speech = 0.001 * NOISE
    speech[100], speech[1_000] = 1, -1
    assert heard(tmp_path, speech, subtype="FLOAT")["quiet_stretches"] == []
    mostly = np.concatenate([NOISE, np.zeros(60 * RATE_HZ)])
    assert heard(tmp_path, mostly)["quiet_stretches"] == [[2.0, 62.0]]


def test_of_very_many_quiet_stretches_the_longest_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "MOST_STRETCHES", 2)
    speech = NOISE.copy()
    speech[:3_200], speech[8_000:9_600], speech[16_000:20_800] = 0, 0, 0
    assert heard(tmp_path, speech)["quiet_stretches"] == [[0.0, 0.2], [1.0, 1.3]]


def test_audio_that_was_cut_and_audio_that_is_none(tmp_path):
    heard(tmp_path, NOISE)
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(content[: len(content) // 2])
    facts = inspect(tmp_path / "a.wav", "audio")
    assert facts["truncated"]
    assert facts["header_samples"] == pytest.approx(len(NOISE), abs=2)
    assert facts["samples"] == pytest.approx(len(NOISE) / 2, abs=30)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("block", [1 << 20, 5_000])
def test_flac_that_was_cut_is_truncated(tmp_path, monkeypatch, share, block):
    """Its decoder stops with an error, so it was called unreadable."""
    monkeypatch.setattr(media, "BLOCK", block)
    soundfile.write(tmp_path / "a.flac", NOISE, RATE_HZ)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: int(share * len(content))])
    facts = inspect(tmp_path / "a.flac", "audio")
    assert (facts["truncated"], facts["header_samples"]) == (True, len(NOISE))
    with pytest.raises(UserError, match=r"a\.flac ends before its header says; replace the file"):
        media.read_audio(tmp_path / "a.flac")


@pytest.mark.parametrize("kind", ["audio", "video", "image"])
@pytest.mark.parametrize("content", [b"", b"neither sound nor picture" * 40, None])
def test_a_file_that_cannot_be_read_is_a_fact(tmp_path, kind, content):
    if content is not None:
        (tmp_path / "x.bin").write_bytes(content)
    facts = inspect(tmp_path / "x.bin", kind)
    assert list(facts) == ["unreadable"]
    assert facts["unreadable"]
    assert str(tmp_path) not in facts["unreadable"]  # facts are kept by content, wherever the file lies


@pytest.mark.parametrize(
    ("name", "kind"), [("a.wav", "audio"), ("a.flac", "audio"), ("a.mp4", "video"), ("a.png", "image")]
)
def test_no_flipped_byte_of_a_header_raises(tmp_path, name, kind):
    if kind == "audio":
        soundfile.write(tmp_path / name, NOISE[:2_000], RATE_HZ)
    elif kind == "video":
        write(tmp_path / name, 3, 25)
    else:
        Image.fromarray(np.uint8(255 * abs(NOISE[:900].reshape(30, 30)))).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for number in np.random.default_rng(0).choice(min(len(content), 900), 60, replace=False):
        damaged = bytearray(content)
        damaged[number] ^= 0xFF
        (tmp_path / name).write_bytes(damaged)
        json.dumps(inspect(tmp_path / name, kind), allow_nan=False)


def test_too_little_memory_is_no_fact_but_a_damaged_size_is(tmp_path, monkeypatch):
    """FFmpeg says that memory is short for a packet of which a damaged file says that it has a gigabyte."""

    def fails(error):
        def inspector(path):
            raise error

        monkeypatch.setitem(inspection.INSPECTORS, "video", inspector)
        return inspect(tmp_path / "v.mp4", "video")

    assert fails(av.error.MemoryError(12, "Cannot allocate memory")) == {"unreadable": "Cannot allocate memory"}
    with pytest.raises(MemoryError):
        fails(MemoryError())


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("fps", [25, 30, 50])
def test_an_ordinary_video(tmp_path, ending, fps):
    path = tmp_path / f"v.{ending}"
    write(path, 2 * fps, fps)
    facts = inspect(path, "video")
    assert (facts["frames"], facts["width"], facts["height"], facts["rotation"]) == (2 * fps, 96, 64, 0)
    assert facts["nominal_rate_hz"] == fps
    assert facts["rate_hz"] == pytest.approx(fps, rel=0.01)
    assert facts["duration_s"] == pytest.approx(2, abs=0.002)
    assert (facts["irregular"], facts["truncated"], facts["corrupt"], facts["constant"]) == (0, False, [], False)
    assert facts["frames_at_25"] == len(media.read_video(path)) == 50


def test_frames_that_were_dropped(tmp_path):
    write(tmp_path / "v.mkv", 50, 25, without=[*range(10, 21), 30])
    facts = inspect(tmp_path / "v.mkv", "video")
    assert (facts["frames"], facts["irregular"], facts["frames_at_25"], facts["truncated"]) == (38, 2, 50, False)
    assert facts["frames_at_25"] == len(media.read_video(tmp_path / "v.mkv"))


def test_a_video_on_its_side(tmp_path):
    write(tmp_path / "v.mp4", 3, 25)
    turn(tmp_path / "v.mp4", 90)
    facts = inspect(tmp_path / "v.mp4", "video")
    assert (facts["width"], facts["height"], abs(facts["rotation"])) == (64, 96, 90)


def test_a_black_video_and_a_black_page(tmp_path):
    write(tmp_path / "v.mp4", 5, 25, pictures=[np.zeros((64, 96, 3), np.uint8)] * 5)
    assert inspect(tmp_path / "v.mp4", "video")["constant"]
    Image.new("RGB", (30, 20)).save(tmp_path / "x.png")
    assert inspect(tmp_path / "x.png", "image") == {"width": 30, "height": 20, "constant": True}


LEVELS = np.uint8(255 * abs(NOISE[:1_200].reshape(30, 40)))


def pictures():
    colours = Image.fromarray(LEVELS).convert("P")
    colours.putpalette([70] * 768)
    return {
        "16 bits with values of 8": (Image.fromarray(LEVELS.astype(np.uint16)), True),
        "16 bits": (Image.fromarray(LEVELS.astype(np.uint16) << 8), False),
        "transparent": (Image.fromarray(np.dstack([LEVELS, LEVELS, LEVELS, 0 * LEVELS])), True),
        "black behind a shape": (Image.fromarray(np.dstack([0 * LEVELS] * 3 + [LEVELS])), False),
        "colours that are one": (colours, True),
        "two levels": (Image.fromarray(LEVELS).convert("1"), False),
    }


@pytest.mark.parametrize("name", pictures())
def test_a_page_is_blank_as_it_is_read_not_as_it_is_stored(tmp_path, name):
    picture, blank = pictures()[name]
    picture.save(tmp_path / "x.png")
    assert (
        inspect(tmp_path / "x.png", "image")["constant"] == blank == (media.read_image(tmp_path / "x.png").std() == 0)
    )


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_levels_of_no_known_range_are_unreadable(tmp_path, dtype):
    Image.fromarray(LEVELS.astype(dtype)).save(tmp_path / "x.tif")
    assert "its grey levels have no known range" in inspect(tmp_path / "x.tif", "image")["unreadable"]


def test_a_video_that_is_refused_is_unreadable(tmp_path):
    for name, shape in (("a", (64, 96, 3)), ("b", (32, 48, 3))):
        write(tmp_path / f"{name}.h264", 3, 25, pictures=[np.zeros(shape, np.uint8)] * 3)
    (tmp_path / "v.h264").write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    assert inspect(tmp_path / "v.h264", "video") == {"unreadable": "it changes its picture size"}
    write(tmp_path / "v.mkv", 1_800, 25, without=range(5, 1_799))
    assert inspect(tmp_path / "v.mkv", "video") == {"unreadable": "it shows one picture for more than 60 s"}


@pytest.mark.parametrize(
    ("length", "facts"), [(0.5, "truncated"), (0.7, "truncated"), (0.8, "truncated"), (0.001, "unreadable")]
)
def test_an_mp4_file_that_ends_before_its_index_is_truncated(tmp_path, length, facts):
    path = tmp_path / "v.mp4"
    write(path, 50, 25)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * length)])
    assert list(inspect(path, "video")) == [facts]
    path.write_bytes(content.replace(b"ftyp", b"fxyp").replace(b"moov", b"mxxv"))
    assert list(inspect(path, "video")) == ["unreadable"]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_video_that_was_cut(tmp_path, ending, share):
    path = tmp_path / f"v.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (50, 64, 96, 3), dtype=np.uint8)
    write(path, 50, 25, pictures=noise, codec="mpeg4")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    facts = inspect(path, "video")
    assert "unreadable" in facts or facts["truncated"]


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_picture_that_was_cut(tmp_path, ending, share):
    path = tmp_path / f"x.{ending}"
    Image.fromarray(np.uint8(255 * abs(NOISE[:30_000].reshape(150, 200)))).save(path)
    facts = inspect(path, "image")
    assert (facts["width"], facts["height"], facts["constant"]) == (200, 150, False)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert list(inspect(path, "image")) == ["unreadable"]


def test_an_upright_photograph_has_the_size_that_is_read(tmp_path):
    image = Image.fromarray(np.zeros((40, 100, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # Orientation: turn it a quarter clockwise
    image.save(tmp_path / "x.jpg", exif=exif)
    facts = inspect(tmp_path / "x.jpg", "image")
    assert (facts["height"], facts["width"]) == media.read_image(tmp_path / "x.jpg").shape[:2]


def test_large_files_are_inspected_in_small_groups(tmp_path, monkeypatch):
    """What was found is kept as groups end, and a group of long files took long."""
    monkeypatch.setattr(inspection, "JOB_BYTES", 10)
    jobs = []
    for number, size in enumerate((4, 4, 4, 30, 1, 9, 1)):
        (tmp_path / f"{number}.wav").write_bytes(bytes(size))
        jobs.append((tmp_path / f"{number}.wav", "audio"))
    sizes = []

    def run(function, groups):
        sizes.extend(map(len, groups))
        return map(function, groups)

    assert len(list(inspection.inspect_all(jobs, run))) == 7
    assert sizes == [2, 1, 1, 2, 1]


def test_many_files_are_inspected_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "JOB_FILES", 3)
    jobs = []
    for number in range(8):
        soundfile.write(tmp_path / f"{number}.wav", NOISE[: 100 * (number + 1)], RATE_HZ)
        jobs.append((tmp_path / f"{number}.wav", "audio"))
    sizes = []

    def run(function, groups):
        sizes.extend(map(len, groups))
        return map(function, reversed(groups))

    found = dict(inspection.inspect_all([*jobs, (tmp_path / "none.png", "image")], run))
    assert sizes == [3, 3, 3]
    assert [found[path]["samples"] for path, _ in jobs] == [100 * (number + 1) for number in range(8)]
    assert "unreadable" in found[tmp_path / "none.png"]
