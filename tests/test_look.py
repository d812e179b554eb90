"""`dmlm corpus look`: its files are what the grid reads, and its page plays them."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from small_corpus import in_this_process, small_cell, write_tones
from typer.testing import CliRunner

from dmlm.cli.main import app
from dmlm.corpus import media
from dmlm.corpus.noise import noisy_spans
from dmlm.errors import UserError
from dmlm.plan.grid import Grid, read_grid_file
from dmlm.results import look as looks
from dmlm.sequence.template import unpack
from dmlm.snr import CLEAN_DB
from dmlm.sweep.api import load_results
from dmlm.sweep.look import grid_named, grid_with, look_in_corpus, look_in_grid
from dmlm.sweep.preparation import find_ready, prepare_under_lease

ID = "test-00003"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def command(*arguments: str) -> str:
    """What the command prints."""
    result = CliRunner().invoke(app, ["corpus", "look", *arguments])
    if result.exception:
        raise result.exception
    return result.stdout


def token_shards(home: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in home.glob("tokens/*/*/*.safetensors")}


@pytest.fixture(scope="module")
def written(home, finished, tmp_path_factory) -> Path:
    """The folder of a look at an utterance of the smoke grid, at 0 dB; nothing was encoded for it."""
    folder = tmp_path_factory.mktemp("look") / "é"
    shards = token_shards(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMLM_HOME", str(home))
        printed = command(ID, "--grid", "smoke", "--to", str(folder))
    *files, blank, last = printed.splitlines()
    assert files == [str(folder / name) for name in NAMES]
    assert (blank, last) == ("", f"Open {folder / 'look.html'} in a browser.")
    assert token_shards(home) == shards
    return folder


NAMES = ["noisy.wav", "clean.wav", "noise.wav", "lips.mp4", "page.png", "recognised.txt", "tokens.json"]
NAMES += ["sequence.txt", "look.html"]


@pytest.fixture
def materials(home, finished, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(home))
    return find_ready(read_grid_file("smoke").cells)[0]


def test_the_mixture_is_that_of_the_test_and_the_sum_of_its_parts(written, materials) -> None:
    noisy, clean, noise = (soundfile.read(written / f"{name}.wav")[0] for name in ("noisy", "clean", "noise"))
    (utterance,) = (u for u in materials.corpus.utterances if u.id == ID)
    condition = materials.test_conditions[0.0]
    path = materials.corpus.media(utterance, "audio")
    assert np.array_equal(noisy, condition.apply(utterance, media.read_audio(path), ID).audio)
    assert np.abs(noisy - clean - noise).max() <= 1e-4
    (span,) = noisy_spans(utterance, len(clean), condition.noise)
    assert 10 * np.log10(np.var(clean[span]) / np.var(noise[span])) == pytest.approx(0.0, abs=0.1)
    assert not noise[: span.start].any()
    assert not noise[span.stop :].any()


def test_tokens_and_sequences_are_those_of_the_cache(written, materials) -> None:
    letters = ("A", "L", "O")
    items, _ = materials.streams(letters, "test", materials.test_conditions[0.0])
    item = items[[u.id for u in materials.corpus.split("test")].index(ID)]
    stored = json.loads((written / "tokens.json").read_text("utf-8"))
    assert stored["condition"] == materials.test_conditions[0.0].key
    assert {k: s["ids"] for k, s in stored["streams"].items()} == {k: ids.tolist() for k, ids in item.items()}
    assert {k: s["rate_hz"] for k, s in stored["streams"].items() if k in "AL"} == materials.rates_hz
    assert (written / "recognised.txt").read_text("utf-8") == stored["streams"]["O"]["text"] + "\n"
    look = look_in_grid(read_grid_file("smoke"), ID, 0.0)
    assert [sequence.template.notation for sequence in look.sequences] == ["A -> T", "A+L -> T", "A+O -> T"]
    listed = (written / "sequence.txt").read_text("utf-8").split("\n\n")
    assert "".join(look.streams["T"].pieces).strip() == look.utterance.text
    for sequence, text in zip(look.sequences, listed, strict=True):
        inputs = sequence.template.letters
        streams = unpack(sequence.packed, sequence.template, materials.vocabulary(inputs))
        assert {k: ids.tolist() for k, ids in streams.items()} == {k: item[k].tolist() for k in (*inputs, "T")}
        rows = [line.split(maxsplit=3) for line in text.strip().splitlines()[2:]]
        assert [int(row[1]) for row in rows] == sequence.packed.ids.tolist()
        assert [row[3] for row in rows[:2]] == ["<bos>", f"<{inputs[0]}>"]
        assert [row[2] for row in rows] == [role or "-" for role in sequence.roles]


def test_lips_and_page_are_as_read_and_a_browser_plays_them(written, materials) -> None:
    (utterance,) = (u for u in materials.corpus.utterances if u.id == ID)
    frames = media.read_video(materials.corpus.media(utterance, "lips"))
    with av.open(str(written / "lips.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuvj420p", 25)
    again = media.read_video(written / "lips.mp4")
    assert again.shape == frames.shape
    assert np.abs(again.astype(int) - frames).mean() < 3
    page = media.read_image(materials.corpus.media(utterance, "image"))
    assert np.array_equal(media.read_image(written / "page.png"), page)


def test_the_page_is_whole_and_tells_what_the_models_wrote(written, home, monkeypatch) -> None:
    monkeypatch.setenv("DMLM_HOME", str(home))
    page = (written / "look.html").read_text("utf-8")
    assert all(url.startswith("data:") or url in NAMES for url in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "://" not in re.sub(r'"data:[^"]*"', "", page)
    for cell in load_results("smoke").cells:
        (result,) = (u for e in cell.evaluations if e.snr_db == 0 for u in e.utterances if u.id == ID)
        assert f"{result.errors} of {result.reference_words}" in page
    assert page.count("<td>mamba-nano") == 2
    assert "0.00 dB measured, 0 dB asked for" in page


@contextmanager
def opened(page: Path, profile: Path):
    """A function that runs JavaScript on a page in a browser and returns its value: DevTools' protocol, over two pipes."""
    (read, commands), (answers, write) = os.pipe(), os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    options += ["--autoplay-policy=no-user-gesture-required"]
    shell = ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", BROWSER, *options]
    browser = subprocess.Popen(shell, pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for end in (read, write):
        os.close(end)
    with os.fdopen(commands, "wb", 0) as to_browser, os.fdopen(answers, "rb") as from_browser:

        def hear(is_it: Callable[[dict], bool]) -> dict:
            while True:
                answer = b""
                while not answer.endswith(b"\0"):
                    answer += from_browser.read(1)
                if is_it(found := json.loads(answer[:-1])):
                    return found

        def ask(method: str, session: str | None = None, **parameters) -> dict:
            message = {"id": 1, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
            to_browser.write(json.dumps(message).encode() + b"\0")
            return hear(lambda found: "id" in found)["result"]

        target = ask("Target.createTarget", url="about:blank")["targetId"]
        session = ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        ask("Page.enable", session)
        ask("Page.navigate", session, url=page.as_uri())
        hear(lambda found: found.get("method") == "Page.loadEventFired")

        def run(code: str):
            options = {"awaitPromise": True, "returnByValue": True}
            until = "const until = async test => { while (!test()) await new Promise(go => setTimeout(go, 20)); };"
            result = ask("Runtime.evaluate", session, expression=f"(async () => {{ {until} {code} }})()", **options)
            assert "exceptionDetails" not in result, result
            return result["result"].get("value")

        try:
            yield run
        finally:
            browser.kill()
            browser.wait()


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_the_playhead_follows_the_audio(written, tmp_path) -> None:
    streams = json.loads((written / "tokens.json").read_text("utf-8"))["streams"]
    with opened(written / "look.html", tmp_path) as run:
        run("go(1.0); await until(() => parseFloat(head.style.left) > 0)")
        at_s = run("return parseFloat(head.style.left) / 100 * END")
        told = run("return [$('now-A').textContent, $('now-L').textContent]")
        later_s = run(
            "$('play').click(); await until(() => shown > 1.2); return head.offsetLeft / stack.offsetWidth * END"
        )
        run(
            "$('play').click(); await until(() => track.paused && Math.abs(lips.currentTime - track.currentTime) < 0.1)"
        )
    assert at_s == pytest.approx(1.0, abs=0.01)
    assert told == [str(streams[letter]["ids"][int(streams[letter]["rate_hz"])]) for letter in "AL"]
    assert later_s > 1.19


def test_transcripts_are_of_this_very_condition(home, finished, tmp_path, monkeypatch) -> None:
    shutil.copytree(home, tmp_path / "home")  # not to encode in the other
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    grid = read_grid_file("smoke")
    assert len(look_in_grid(grid, ID, 0.0).transcripts) == 5
    for look in (look_in_grid(grid, ID, 1.0), look_in_grid(grid, ID, 0.0, kind="babble")):
        assert not look.transcripts
        assert look.notes[-1].endswith("split test was tested at: clean, 0 dB, -20 dB.")


def test_an_unknown_utterance_is_one_sentence_with_the_nearest(home, finished, monkeypatch) -> None:
    monkeypatch.setenv("DMLM_HOME", str(home))
    with pytest.raises(UserError, match=r"no utterance 'tes-0003'; did you mean 'test-\d+' or "):
        command("tes-0003", "--grid", "smoke")
    with pytest.raises(UserError, match=r"no utterance '§'; its 88 ids are like 'train-00000' or 'test-00015'"):
        command("§", "--grid", "smoke")
    with pytest.raises(UserError, match="--snr loud: an SNR is a number of dB"):
        command(ID, "--grid", "smoke", "--snr", "loud")
    with pytest.raises(UserError, match="--cell 9: smoke has cells 0 to 4"):
        command(ID, "--grid", "smoke", "--cell", "9")


@pytest.fixture
def small(tmp_path, monkeypatch) -> Grid:
    """A grid of one cell on a small corpus; nothing is prepared."""
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    write_tones(tmp_path / "tones")
    return Grid("small", "A -> T", "", (small_cell(tmp_path / "tones"),), ("",))


def test_without_a_prepared_grid_the_page_says_what_to_run(small, tmp_path) -> None:
    look = look_in_grid(small, "test-2", -5.0)
    assert not look.streams
    assert "dmlm grid run" in look.notes[0]
    written = looks.write(look, tmp_path / "look")
    assert [path.name for path in written] == ["noisy.wav", "clean.wav", "noise.wav", "look.html"]
    assert "No tokens are shown" in written[-1].read_text("utf-8")


def test_another_level_encodes_this_clip_only(small, tmp_path) -> None:
    (materials,) = prepare_under_lease(small.cells, lambda line: None, in_this_process)
    look = look_in_grid(small, "test-2", 7.0)
    source = materials.sources["A"]
    (utterance,) = (u for u in materials.corpus.utterances if u.id == "test-2")
    noisy = look.condition.apply(utterance, media.read_audio(materials.corpus.media(utterance, "audio")), "").audio
    assert look.streams["A"].ids.tolist() == source.encoder.encode([noisy])[0].tolist()
    assert len(source.missing("test", look.condition)) == len(materials.corpus.split("test")) - 1
    only = look_in_grid(small, "test-2", 7.0, kind="music")
    assert only.sound.noise_file.parent.name == "music"
    assert only.condition.key != look.condition.key


def test_a_clip_to_train_on_and_clean_speech(small, tmp_path) -> None:
    prepare_under_lease(small.cells, lambda line: None, in_this_process)
    look = look_in_grid(small, "train-3", CLEAN_DB)
    written = looks.write(look, tmp_path / "look")
    assert [path.name for path in written] == ["clean.wav", "tokens.json", "sequence.txt", "look.html"]
    looks.write(look_in_grid(small, "train-3", 0.0), tmp_path / "look")  # over the one before
    assert (tmp_path / "look" / "noisy.wav").is_file()
    looks.write(look, tmp_path / "look")
    assert not (tmp_path / "look" / "noisy.wav").exists()


def test_a_folder_with_something_else_stays(small, tmp_path) -> None:
    look = look_in_grid(small, "test-2", CLEAN_DB)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "clean.wav").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        looks.write(look, tmp_path / "mine")
    with pytest.raises(UserError, match="is a file"):
        looks.write(look, tmp_path / "mine" / "clean.wav")
    assert (tmp_path / "mine" / "clean.wav").read_text() == "mine"


def test_a_corpus_without_a_grid(small, tmp_path) -> None:
    corpus = look_in_grid(small, "test-2", CLEAN_DB)
    (manifest,) = (tmp_path / "home" / "corpora").glob("*/manifest.jsonl")
    look = look_in_corpus(manifest, small.cells[0].noise, "test-2", 0.0)
    assert look.utterance == corpus.utterance
    assert not look.streams
    (manifest.parent / "corpus.json").unlink()
    assert look_in_corpus(manifest, small.cells[0].noise, "test-2", 0.0).corpus == manifest.parent.name


def test_without_a_grid_the_one_that_was_run_and_has_the_utterance_is_meant(
    finished, home, tmp_path, monkeypatch
) -> None:
    """It once made the corpus of the quickstart, for minutes, to say that the utterance is not in it."""
    monkeypatch.setenv("DMLM_HOME", str(home))
    assert grid_with(ID) == "smoke"
    assert grid_named("smoke").cells == read_grid_file("smoke").cells
    before = sorted(path.name for path in (home / "corpora").iterdir())
    with pytest.raises(UserError, match="No grid that was run has an utterance 'srwo6n'; no corpus here has it"):
        command("srwo6n")
    assert sorted(path.name for path in (home / "corpora").iterdir()) == before
