"""Bad input is named with file and line."""

import json

import numpy as np
import pytest
import soundfile

from dmlm.corpus.manifest import Utterance, read_corpus, read_utterances, write_corpus
from dmlm.corpus.media import read_audio, read_image, read_video
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
        ({**GOOD, "id": "z"}, "stands already on line 1"),
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
    """Tokens are found by the stored digest and the place in the manifest: every utterance would get another's."""
    card = {"name": "c", "version": "1", "licence": "CC0"}
    write_corpus(folder, [Utterance(**{**GOOD, "id": name}) for name in "ab"], card)
    path = folder / "manifest.jsonl"
    whole = path.read_bytes()
    for changed in (whole.splitlines(keepends=True)[1], whole[:-20], b""):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"manifest\.jsonl is missing, or was changed .* or remove .*corpus\.json"):
            read_corpus(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"manifest\.jsonl is missing"):
        read_corpus(folder)
    path.write_bytes(whole)
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
