"""Bad input is named with file and line."""

import json
from fractions import Fraction

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageDraw

from dmlm.corpus.manifest import Utterance, read_corpus, read_utterances, write_corpus
from dmlm.corpus.media import read_audio, read_image, read_video, write_video
from dmlm.errors import UserError

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
        ({**GOOD, "audio": "gone.wav"}, r"gone\.wav is missing"),
        ({**GOOD, "duration_s": 0}, "duration_s"),
        ({**GOOD, "spans": [[0.5, 2.0]]}, "does not lie inside"),
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


def test_byte_order_marks_and_crlf_are_fine(folder):
    path = folder / "manifest.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n")
    assert [u.id for u in read_utterances(path)] == ["a"]


def test_the_digest_is_of_manifest_and_media(folder):
    card = {"name": "c", "version": "1", "licence": "CC0"}
    first = write_corpus(folder, [Utterance(**GOOD)], card).digest
    assert read_corpus(folder).digest == first
    soundfile.write(folder / "a.wav", 0.2 * np.ones(16_000), 16_000)
    assert write_corpus(folder, [Utterance(**GOOD)], card).digest != first


def test_a_manifest_that_was_changed_afterwards_is_refused(folder):
    """Tokens are looked up by the stored digest and the position in the manifest, so each would get those of another."""
    card = {"name": "c", "version": "1", "licence": "CC0"}
    write_corpus(folder, [Utterance(**{**GOOD, "id": name}) for name in "ab"], card)
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
    digest = write_corpus(folder, [Utterance(**GOOD)], {"name": "c"}).digest
    card = json.loads((folder / "corpus.json").read_text())
    del card["manifest"]
    (folder / "corpus.json").write_text(json.dumps(card))
    assert read_corpus(folder).digest == digest


@pytest.mark.parametrize("content", [b"", b'{"name": "c"', b"{}", b"[]", b"\xff"])
def test_a_damaged_corpus_card_is_named(folder, content):
    write_corpus(folder, [Utterance(**GOOD)], {"name": "c"})
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


@pytest.mark.parametrize("fps", [24, 30, 50])
def test_a_video_of_another_frame_rate_is_refused(tmp_path, fps):
    """Two seconds at 50 frames a second gave twice the units that the clock promises."""
    write_video(tmp_path / "v.mp4", np.zeros((4, 96, 96), np.uint8), fps)
    with pytest.raises(UserError, match=rf"v\.mp4 has {fps} frames a second instead of 25; convert it: ffmpeg"):
        read_video(tmp_path / "v.mp4")


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
    with pytest.raises(UserError, match=rf"x\.tif has grey levels of no known range \(mode {mode}\)"):
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
