"""Audio that was cut is told from audio that is short, in every format that soundfile can write."""

import av
import numpy as np
import pytest
import soundfile

from dmlm.corpus.media import read_audio
from dmlm.errors import UserError

SPEECH = 0.3 * np.random.default_rng(0).normal(size=16_000).clip(-3, 3)
NO_PROMISE = {"IRCAM", "PAF", "PVF", "XI"}  # their headers do not say how long they are
NOT_READ_AGAIN = {"RAW", "SD2"}


@pytest.mark.parametrize("form", sorted(soundfile.available_formats()))
def test_audio_that_was_cut_is_refused(tmp_path, form):
    """libsndfile reads half a file as a shorter one, of every format but FLAC, and says nothing."""
    path, cut = tmp_path / f"a.{form.lower()}", tmp_path / f"cut.{form.lower()}"
    refused = 0
    for coding in soundfile.available_subtypes(form):
        try:
            soundfile.write(path, SPEECH, 16_000, coding, format=form)
            assert 5_000 < len(read_audio(path)) < 33_000, coding  # some know one rate only
        except soundfile.SoundFileError:
            continue
        except UserError as error:
            assert "cannot be read as audio" in str(error), coding  # noqa: PT017
            continue
        content = path.read_bytes()
        for length in (len(content) * 99 // 100, len(content) // 2, len(content) // 9):
            cut.write_bytes(content[:length])
            if form in NO_PROMISE:
                continue
            with pytest.raises(
                UserError, match=r"(ends before its header says|cannot be read as audio .*|holds no sample)"
            ):
                read_audio(cut)
            refused += 1
    assert refused or form in NO_PROMISE | NOT_READ_AGAIN


@pytest.mark.parametrize("size", [0x7FFF_F000, 0x7FFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFDB])
def test_a_length_that_nobody_knew_promises_nothing(tmp_path, size):
    """What programs write into a pipe, such as `ffmpeg ... -f wav -` and `sox ... -t wav -`."""
    soundfile.write(tmp_path / "a.wav", SPEECH, 16_000)
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(content[:40] + size.to_bytes(4, "little") + content[44:])
    assert len(read_audio(tmp_path / "a.wav")) == 16_000


def mp3(path, options, quality=None):
    """Noise, nearly nothing, and noise as MP3."""
    parts = np.concatenate([SPEECH, SPEECH / 1e4, SPEECH]) * 2**15
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libmp3lame", rate=16_000, layout="mono")
        if quality is not None:
            stream.codec_context.qscale, stream.codec_context.global_quality = True, quality * 118
        frame = av.AudioFrame.from_ndarray(parts.astype("<i2")[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        for resampled in av.AudioResampler(stream.format.name, "mono", 16_000, 576).resample(frame):
            container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("tag", ["1", "0"])
def test_an_mp3_file_is_walked_to_its_end(tmp_path, tag):
    mp3(tmp_path / "a.mp3", {"write_xing": tag, "id3v2_version": "3"})
    content = (tmp_path / "a.mp3").read_bytes()
    assert len(read_audio(tmp_path / "a.mp3")) >= 47_000
    (tmp_path / "a.mp3").write_bytes(content + b"TAG" + bytes(125))
    assert len(read_audio(tmp_path / "a.mp3")) >= 47_000
    (tmp_path / "a.mp3").write_bytes(content[:-40])
    with pytest.raises(UserError, match=r"a\.mp3 ends before its header says; replace the file"):
        read_audio(tmp_path / "a.mp3")


def test_an_mp3_file_of_which_only_a_part_would_be_read_is_refused(tmp_path):
    """Of a file with a varying bit rate and no count of its frames, libsndfile reads as much as the first one foretells."""
    mp3(tmp_path / "a.mp3", {"write_xing": "0"}, quality=4)
    with pytest.raises(UserError, match=r"a\.mp3 holds more than the [\d,]+ samples that are read of it"):
        read_audio(tmp_path / "a.mp3")


def test_flac_without_a_length_is_a_sentence(tmp_path):
    """As FFmpeg writes it into a pipe; it was a ValueError."""
    soundfile.write(tmp_path / "a.flac", SPEECH, 16_000)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0  # the number of samples is the last 36 bits before the checksum
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.flac cannot be read as audio"):
        read_audio(tmp_path / "a.flac")


def test_one_missing_byte_is_noticed(tmp_path):
    soundfile.write(tmp_path / "a.wav", SPEECH, 16_000)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"a\.wav ends before its header says"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("coding", ["VORBIS", "OPUS"])
def test_an_ogg_file_with_a_damaged_page_is_refused(tmp_path, coding):
    """The decoder leaves out a page whose checksum is wrong: up to a second of a clip was missing."""
    soundfile.write(tmp_path / "a.ogg", np.tile(SPEECH, 8), 16_000, coding)
    content = bytearray((tmp_path / "a.ogg").read_bytes())
    for share in (0.3, 0.6, 0.97):
        damaged = content.copy()
        damaged[int(share * len(content))] ^= 0xFF
        (tmp_path / "a.ogg").write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.ogg is damaged: a part of it is missing; replace the file"):
            read_audio(tmp_path / "a.ogg")
