"""Any stretch of any recording is read: to the sample where the file is lossless, else within what the codec changes."""

import films
import numpy as np
import own_recordings as own
import pytest
import soundfile
from PIL import Image

from dmlm.corpus.recordings import Cut, Outside, read_any_audio
from dmlm.errors import UserError
from dmlm.importing.clip import Clip, Stretch
from dmlm.importing.copying import CopyJob, copy_clips
from dmlm.importing.settings import ImportSettings

SECONDS = 3.0


def source(rate_hz, channels=1):
    mono = own.tone(3, SECONDS, rate_hz)
    return mono if channels == 1 else np.stack([mono, 0.5 * mono], axis=1)


def lossless(path, rate_hz=16_000, subtype="PCM_16", channels=1):
    soundfile.write(path, source(rate_hz, channels), rate_hz, subtype)
    return path


LOSSLESS = {
    "wav": ("x.wav", 16_000, "PCM_16", 1),
    "24 bits": ("x.wav", 16_000, "PCM_24", 1),
    "float": ("x.wav", 16_000, "FLOAT", 1),
    "stereo": ("x.wav", 16_000, "PCM_24", 2),
    "flac": ("x.flac", 16_000, "PCM_16", 1),
    "aiff": ("x.aiff", 16_000, "PCM_16", 1),
    "au": ("x.au", 16_000, "PCM_16", 1),
}
OTHER_RATES = {
    "8 kHz": ("x.wav", 8_000, "PCM_16", 1),
    "44.1 kHz": ("x.wav", 44_100, "PCM_16", 1),
    "48 kHz, stereo, flac": ("x.flac", 48_000, "PCM_24", 2),
}
EXACT, CLOCK_OF_MS = (0, 0), (16, 16)  # samples that a stretch may be late: in its file, and in the source
DELAYED = (0, None)  # the encoder puts silence first, and nothing in the file says so
CODED = {  # name, rate, codec of FFmpeg (None: libsndfile writes it), beside a video, and how exact
    "ogg": ("x.ogg", 16_000, None, False, EXACT),
    "opus": ("x.opus", 48_000, "libopus", False, EXACT),
    "mp3": ("x.mp3", 16_000, None, False, EXACT),
    "m4a": ("x.m4a", 16_000, "aac", False, EXACT),
    "m4a at 44.1 kHz": ("x.m4a", 44_100, "aac", False, EXACT),
    "mp4": ("x.mp4", 48_000, "aac", True, EXACT),
    "mkv": ("x.mkv", 48_000, "aac", True, CLOCK_OF_MS),
    "webm": ("x.webm", 48_000, "libopus", False, CLOCK_OF_MS),
    "wma": ("x.wma", 44_100, "wmav2", False, (16, None)),
    "aac": ("x.aac", 16_000, "aac", False, DELAYED),
    "avi": ("x.avi", 44_100, "libmp3lame", True, DELAYED),
}


def rising(rate_hz):
    """A tone that is nowhere as it is elsewhere."""
    time_s = np.arange(round(SECONDS * rate_hz)) / rate_hz
    return 0.7 * np.sin(2 * np.pi * (200 + 300 * time_s) * time_s)


def coded(folder, name):
    file, rate_hz, codec, video, _ = CODED[name]
    if codec:
        return own.encode(folder / file, rising(rate_hz), rate_hz, codec, video)
    soundfile.write(folder / file, rising(rate_hz), rate_hz)
    return folder / file


def lateness(found, wanted, most=50):
    """By how many samples a stretch is late, and the correlation with it if that is mended."""
    middle = found[most:-most]
    shifts = {s: np.corrcoef(middle, wanted[most + s : len(wanted) - most + s])[0, 1] for s in range(-most, most + 1)}
    late = max(shifts, key=shifts.__getitem__)
    return abs(late), shifts[late]


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_stretch_of_a_lossless_file_is_exact_to_the_sample(name, tmp_path):
    file, rate_hz, subtype, channels = LOSSLESS[name]
    path = lossless(tmp_path / file, rate_hz, subtype, channels)
    wanted = source(rate_hz) * (1 if channels == 1 else 0.75)
    np.testing.assert_allclose(read_any_audio(path), wanted, atol=2e-7)
    np.testing.assert_allclose(read_any_audio(path, 1.00003, 2.50009), wanted[16_000:40_001], atol=2e-7)
    np.testing.assert_allclose(read_any_audio(path, 2.9), wanted[46_400:], atol=2e-7)


@pytest.mark.parametrize("name", OTHER_RATES)
def test_other_rates_are_resampled(name, tmp_path):
    file, rate_hz, subtype, channels = OTHER_RATES[name]
    path = lossless(tmp_path / file, rate_hz, subtype, channels)
    found = read_any_audio(path, 0.5, 2.5)
    assert len(found) == 32_000
    wanted = own.tone(3, SECONDS) * (1 if channels == 1 else 0.75)
    np.testing.assert_allclose(found[200:-200], wanted[8_200:39_800], atol=3e-3)


@pytest.mark.parametrize("name", CODED)
def test_a_stretch_of_a_coded_file_is_where_it_should_be(name, tmp_path):
    path, (in_file, in_source) = coded(tmp_path, name), CODED[name][4]
    whole = read_any_audio(path)
    assert len(whole) / 16_000 == pytest.approx(SECONDS, abs=0.15)
    for start_s, end_s in ((0.0, 1.0), (0.7, 1.7), (1.5, 2.5)):
        found, place = read_any_audio(path, start_s, end_s), slice(round(start_s * 16_000), round(end_s * 16_000))
        assert len(found) == 16_000
        for wanted, most in ((whole, in_file), (rising(16_000), in_source)):
            if most is not None:
                late, alike = lateness(found, wanted[place])
                assert late <= most
                assert alike > (0.95 if most else 0.99)


def test_the_name_of_a_file_does_not_matter(tmp_path):
    path = coded(tmp_path, "mp3").rename(tmp_path / "x.wav")
    video = coded(tmp_path, "mp4").rename(tmp_path / "y.wav")
    assert len(read_any_audio(path)) == 48_000 <= len(read_any_audio(video))


def test_an_import_keeps_samples_of_16_bits_as_they_are(tmp_path):
    samples = np.random.default_rng(0).integers(-32_768, 32_768, 16_000).astype(np.int16)
    soundfile.write(tmp_path / "x.wav", samples, 16_000)
    clip = Clip(id="x", text="a", audio=(Stretch(path=tmp_path / "x.wav"),))
    copy_clips(CopyJob(tmp_path, ((clip, "x"),), ImportSettings(spans="whole")))
    kept, _ = soundfile.read(tmp_path / "audio" / "x.flac", dtype="int16")
    np.testing.assert_array_equal(kept, samples)


@pytest.mark.parametrize("name", ["wav", "flac", "aiff", "au"])
def test_a_lossless_file_that_was_cut_is_noticed(name, tmp_path):
    path = lossless(tmp_path / LOSSLESS[name][0])
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(Cut, match="ends before its header says"):
        read_any_audio(path)
    if name != "flac":  # whose decoder refuses the file
        assert len(read_any_audio(path, 0.5, 1.0)) == 8_000  # which is there


@pytest.mark.parametrize("name", [name for name in CODED if name not in ("aac", "wma")])  # whose header says no length
def test_a_coded_file_that_was_cut_is_noticed(name, tmp_path):
    path = coded(tmp_path, name)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with pytest.raises(UserError, match=r"ends before its header says|cannot be read|damaged"):
        read_any_audio(path)


def test_a_cut_sound_track_whose_index_comes_first_is_noticed(tmp_path):
    path = own.encode(tmp_path / "x.mp4", rising(48_000), 48_000, "aac", options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with pytest.raises(UserError, match="cannot be read as audio"):  # the last packet is half there
        read_any_audio(path)


def test_a_stretch_beyond_the_end_is_told_from_one_that_is_rounded(tmp_path):
    for path in (lossless(tmp_path / "x.wav"), coded(tmp_path, "m4a")):
        assert len(read_any_audio(path, 2.0, 3.05)) == pytest.approx(16_000, abs=2_048)
        for start_s, end_s in ((2.0, 3.5), (4.0, 5.0), (4.0, None)):
            with pytest.raises(Outside, match="of the stretch from"):
                read_any_audio(path, start_s, end_s)


def test_what_is_no_recording_is_refused_in_one_sentence(tmp_path):
    text, picture, nothing, short = (tmp_path / f"{name}.wav" for name in ("text", "picture", "nothing", "short"))
    text.write_text("one of two, and some more words so that it is longer than a header\n" * 20)
    Image.new("RGB", (64, 64)).save(picture, format="PNG")
    nothing.write_bytes(b"")
    soundfile.write(short, np.zeros(0), 16_000)
    films.write(silent := tmp_path / "silent.mp4", 10, 25)
    soundfile.write(infinite := tmp_path / "infinite.wav", np.array([0.5, np.inf]), 16_000, "FLOAT")
    unknown = coded(tmp_path, "m4a")
    unknown.write_bytes(unknown.read_bytes().replace(b"mp4a", b"xxxx").replace(b"esds", b"xxxx"))
    for path, complaint in (
        (text, "cannot be read as audio"),
        (picture, "has no sound"),
        (nothing, "cannot be read as audio"),
        (short, "holds no sample"),
        (silent, "has no sound"),
        (infinite, "NaN or infinite"),
        (unknown, "cannot decode"),
        (tmp_path, "There is no file"),
        (tmp_path / ("a transcript in the column of the recordings " * 10), "There is no file"),
    ):
        with pytest.raises(UserError, match=complaint):
            read_any_audio(path)
