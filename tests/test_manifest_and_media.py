"""Bad input is named with file and line."""

import contextlib
import json
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from films import turn, write
from PIL import Image, ImageDraw

from dmlm.corpus.manifest import Utterance, read_corpus, read_utterances, write_corpus
from dmlm.corpus.media import read_audio, read_image, read_video, write_video
from dmlm.errors import UserError

CARD = {"name": "c", "version": "1", "licence": "CC0"}
GOOD = {"id": "a", "split": "train", "text": "one", "audio": "a.wav", "duration_s": 1.0, "spans": [[0.0, 0.5]]}


@pytest.fixture
def folder(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.ones(16_000), 16_000)
    return tmp_path


def manifest(folder, *lines):
    path = folder / "manifest.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({**GOOD, "text": "  "}, "text"),
        ({**GOOD, "duration_s": 0}, "duration_s"),
        ({**GOOD, "split": "dev"}, "split"),
        ({**GOOD, "colour": 1}, "colour"),
        ({**GOOD, "id": "z"}, "already used on line 1"),
        ("{not json", "line 2"),
    ],
)
def test_a_bad_line_is_named(folder, line, complaint):
    path = manifest(folder, {**GOOD, "id": "z"}, line)
    with pytest.raises(UserError, match=complaint) as error:
        read_utterances(path)
    assert f"{path}, line 2" in str(error.value)


def test_missing_media_are_named_when_a_corpus_is_written(folder):
    """With the number of such files: a recipe that lost a folder lost all of them."""
    utterances = [Utterance(**{**GOOD, "id": str(number), "audio": f"{number}.wav"}) for number in range(3)]
    with pytest.raises(UserError, match=r"0\.wav, of utterance '0', is missing or empty \(3 such files in all\)"):
        write_corpus(folder, utterances, CARD)


def test_byte_order_marks_and_crlf_are_fine(folder):
    path = folder / "manifest.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n")
    assert [u.id for u in read_utterances(path)] == ["a"]


def test_the_digest_is_of_manifest_and_media(folder):
    first = write_corpus(folder, [Utterance(**GOOD)], CARD).digest
    assert read_corpus(folder).digest == first
    soundfile.write(folder / "a.wav", 0.2 * np.ones(16_000), 16_000)
    assert write_corpus(folder, [Utterance(**GOOD)], CARD).digest != first


def test_a_manifest_that_was_changed_afterwards_is_refused(folder):
    """Tokens are looked up by the stored digest and the position in the manifest, so each would get those of another."""
    write_corpus(folder, [Utterance(**{**GOOD, "id": name}) for name in "ab"], CARD)
    path = folder / "manifest.jsonl"
    content = path.read_bytes()
    for changed in (content.splitlines(keepends=True)[1], content[:-20], b""):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"manifest\.jsonl is missing, or was changed .* or remove .*corpus\.json"):
            read_corpus(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"manifest\.jsonl is missing"):
        read_corpus(folder)
    path.write_bytes(content)
    assert [u.id for u in read_corpus(folder).utterances] == ["a", "b"]


def test_a_corpus_of_an_earlier_version_still_opens(folder):
    digest = write_corpus(folder, [Utterance(**GOOD)], CARD).digest
    card = json.loads((folder / "corpus.json").read_text())
    del card["manifest"], card["media"]
    (folder / "media.sha256").unlink()
    (folder / "corpus.json").write_text(json.dumps(card))
    assert read_corpus(folder).digest == digest
    assert list(read_corpus(folder).media_digests) == ["a.wav"]


@pytest.mark.parametrize("content", [b"", b'{"name": "c"', b"{}", b"[]", b"\xff"])
def test_a_damaged_corpus_card_is_named(folder, content):
    write_corpus(folder, [Utterance(**GOOD)], CARD)
    (folder / "corpus.json").write_bytes(content)
    with pytest.raises(UserError, match=r"corpus\.json is damaged; remove it"):
        read_corpus(folder)


@pytest.mark.parametrize("reader", [read_audio, read_video, read_image])
@pytest.mark.parametrize("content", [b"", b"not media at all"])
def test_unreadable_media_are_named(tmp_path, reader, content):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.bin"):
        reader(path)


def test_audio_with_nan_is_refused(tmp_path):
    soundfile.write(tmp_path / "n.wav", np.array([0.0, np.nan, 0.1]), 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match="NaN"):
        read_audio(tmp_path / "n.wav")


def test_other_rates_and_stereo_become_16_khz_mono(tmp_path):
    time_s = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * time_s)
    soundfile.write(tmp_path / "s.wav", np.stack([tone, tone], axis=1), 44_100)
    audio = read_audio(tmp_path / "s.wav")
    assert len(audio) == 16_000
    spectrum = np.abs(np.fft.rfft(audio))
    assert spectrum.argmax() == pytest.approx(440, abs=1)


def test_a_transcript_may_hold_a_line_separator_of_unicode(folder):
    words = "one\u2028two\u0085three"
    path = manifest(folder, json.dumps({**GOOD, "text": words}, ensure_ascii=False))
    assert [u.text for u in read_utterances(path)] == [words]


@pytest.mark.parametrize(
    ("fps", "wanted"),
    [
        (25, list(range(12))),
        (50, [1, 3, 5, 7, 9, 11]),
        (12.5, [n // 2 for n in range(24)]),
        (30, [0, 1, 3, 4, 5, 6, 7, 9, 10, 11]),
        (24, list(range(12))),
    ],
)
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_video_is_read_by_time(tmp_path, fps, wanted, ending):
    """Two seconds at 50 frames a second gave twice the units that the clock promises, then they were refused."""
    write(tmp_path / f"v.{ending}", 12, fps)
    levels = read_video(tmp_path / f"v.{ending}").mean(axis=(1, 2)) / 5
    np.testing.assert_allclose(levels, wanted, atol=0.5)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_dropped_frames_are_filled_by_the_one_before(tmp_path, ending):
    """Matroska gives the rate of its header: the frames after the gap came early, and the video was short."""
    write(tmp_path / f"v.{ending}", 30, 25, without=range(10, 21))
    levels = read_video(tmp_path / f"v.{ending}").mean(axis=(1, 2)) / 5
    np.testing.assert_allclose(levels, [*range(10), *[9] * 11, *range(21, 30)], atol=0.5)


@pytest.mark.parametrize(("degrees", "light"), [(90, np.s_[:, :48]), (-90, np.s_[:, 48:]), (180, np.s_[:, :, 48:])])
def test_a_phone_video_is_turned_upright(tmp_path, degrees, light):
    """It was read lying on its side."""
    half = np.zeros((64, 96, 3), np.uint8)
    half[:, :48] = 200  # the left is light
    write(tmp_path / "v.mp4", 3, 25, pictures=[half] * 3)
    turn(tmp_path / "v.mp4", degrees)
    frames = read_video(tmp_path / "v.mp4")
    assert frames.shape == ((3, 64, 96) if degrees == 180 else (3, 96, 64))
    assert frames[light].mean() > 150
    assert frames.mean() < 110


def test_full_range_grey_is_returned_as_decoded(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 96), dtype=np.uint8)
    write_video(tmp_path / "v.mp4", frames)
    with av.open(str(tmp_path / "v.mp4")) as container:
        decoded = [np.array(frame.planes[0]).reshape(64, -1)[:, :96] for frame in container.decode(video=0)]
    assert np.array_equal(read_video(tmp_path / "v.mp4"), decoded)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_a_video_that_was_cut_is_refused(tmp_path, ending):
    """Half of a Matroska file was read as half of the speech."""
    write(tmp_path / f"v.{ending}", 50, 25, codec="mpeg4")
    content = (tmp_path / f"v.{ending}").read_bytes()
    (tmp_path / f"v.{ending}").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"v\.{ending} .*; replace the file"):
        read_video(tmp_path / f"v.{ending}")


def test_a_damaged_timestamp_does_not_fill_the_memory(tmp_path):
    write(tmp_path / "v.mkv", 1_800, 25, without=range(5, 1_799))
    with pytest.raises(UserError, match=r"v\.mkv .*it shows one picture for more than 60 s\); replace the file"):
        read_video(tmp_path / "v.mkv")


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_no_flipped_byte_of_a_video_is_a_traceback(tmp_path, ending):
    """PyAV raises a UnicodeDecodeError for a damaged name."""
    write(tmp_path / f"v.{ending}", 3, 25)
    content = (tmp_path / f"v.{ending}").read_bytes()
    for number in np.random.default_rng(0).choice(len(content), 200, replace=False):
        damaged = bytearray(content)
        damaged[number] ^= 0xFF
        (tmp_path / f"v.{ending}").write_bytes(damaged)
        with contextlib.suppress(UserError):
            read_video(tmp_path / f"v.{ending}")


def test_a_video_that_changes_its_size_is_a_sentence(tmp_path):
    for name, shape in (("a", (64, 96, 3)), ("b", (32, 48, 3))):
        write(tmp_path / f"{name}.h264", 3, 25, pictures=[np.zeros(shape, np.uint8)] * 3)
    (tmp_path / "v.h264").write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    with pytest.raises(UserError, match=r"v\.h264 changes its picture size"):
        read_video(tmp_path / "v.h264")


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(24_999, 1000)])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_25_frames_a_second_may_be_written_a_little_otherwise(tmp_path, rate, count):
    write_video(tmp_path / "v.mp4", np.zeros((count, 96, 96), np.uint8), rate)
    assert read_video(tmp_path / "v.mp4").shape == (count, 96, 96)


def drawn(background, ink):
    """A page with a line across it."""
    image = Image.new("RGBA", (20, 10), background)
    ImageDraw.Draw(image).line((0, 5, 19, 5), ink)
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    """Black on nothing became black on black."""
    image = drawn((0, 0, 0, 0), (0, 0, 0, 255))
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "x.png")
    page = read_image(tmp_path / "x.png")
    assert page.shape == (10, 20, 3)
    assert (page[5] == 0).all()
    assert (np.delete(page, 5, axis=0) == 255).all()


def test_half_transparent_ink_lets_the_paper_through(tmp_path):
    drawn((0, 0, 0, 0), (200, 0, 0, 128)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png")[5, 0].tolist() == pytest.approx([227, 127, 127], abs=1)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_levels(tmp_path, ending):
    """All but the darkest 256 levels became white."""
    levels = np.arange(256, dtype=np.uint16).reshape(8, 32) * 257
    Image.fromarray(levels).save(tmp_path / f"x.{ending}")
    assert np.array_equal(read_image(tmp_path / f"x.{ending}")[..., 0], levels // 257)


@pytest.mark.parametrize(("dtype", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_grey_of_no_known_range_is_refused(tmp_path, dtype, mode):
    Image.fromarray(np.full((4, 4), 1000, dtype)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=rf"x\.tif .*grey levels have no known range, mode {mode}: save it as PNG"):
        read_image(tmp_path / "x.tif")


def test_a_photograph_is_turned_upright(tmp_path):
    image = Image.fromarray(np.zeros((40, 100, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # Orientation: turn it a quarter clockwise
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (100, 40, 3)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_grey_and_colour_of_8_bits_are_taken_as_they_are(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png"), np.broadcast_to(pixels.reshape(20, 30, -1), (20, 30, 3)))


def test_too_large_an_image_is_a_sentence(tmp_path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png cannot be read as an image .*exceeds limit"):
        read_image(tmp_path / "x.png")


def test_a_damaged_image_is_a_sentence(tmp_path):
    """Pillow raises a SyntaxError for the one, a ValueError for the other."""
    Image.new("L", (4, 4)).save(tmp_path / "x.png", exif=b"Exif\0\0no such thing")
    (tmp_path / "x.pgm").write_bytes(b"P5 4x 4 255\n" + bytes(16))
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match=rf"{path.name} cannot be read as an image .*; replace the file"):
            read_image(path)


def test_what_is_no_video_is_told_why(tmp_path):
    """A picture was a video of one frame."""
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / "page.png")
    (tmp_path / "page.mp4").write_bytes((tmp_path / "page.png").read_bytes())
    soundfile.write(tmp_path / "talk.wav", np.zeros(16_000), 16_000)
    write(tmp_path / "new.mp4", 5, 25)
    (tmp_path / "new.mp4").write_bytes((tmp_path / "new.mp4").read_bytes().replace(b"avc1", b"avc9"))
    for name, reason in (
        ("page.png", "it is a picture, not a video"),
        ("page.mp4", "it is a picture, not a video"),
        ("talk.wav", "it has no video track"),
        ("new.mp4", "the installed FFmpeg has no decoder for its codec, as it has for H.264"),
    ):
        with pytest.raises(UserError, match=rf"{name} cannot be read as video \({reason}\); replace the file"):
            read_video(tmp_path / name)
