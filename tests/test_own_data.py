"""docs/own-data.md, run: a folder of recordings, the commands of the page in their order, and what they leave."""

import shlex
import shutil

import numpy as np
import pytest
import soundfile
from test_docs import ROOT, blocks, program
from typer.testing import CliRunner

from dmlm.cli.main import app
from dmlm.corpus.manifest import read_corpus
from dmlm.corpus.media import write_video
from dmlm.plan.grid import read_grid_file
from dmlm.synthesis.speech import SPEAKERS, engine

PAGE = ROOT / "docs" / "own-data.md"
COMMANDS = [line for block in blocks(PAGE, "") for line in block.splitlines() if line.startswith("dmlm ")]
SMALL = ["backbone=opt-nano", "train.steps=2", "train.batch_size=2", "train.draws=1", "execution.loggers=[]"]
SMALL += ["snr_db.train=[clean, 0]", "tokenizers.A.settings.clusters=16", "tokenizers.L.settings.clusters=16"]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture
def folder(tmp_path, monkeypatch, finished, home):
    """The current folder, with ten recordings and their texts; lips to all of them. The built-in noise is made already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    shutil.copytree(home / "noise", tmp_path / "home" / "noise")
    (tmp_path / "recordings").mkdir()
    random = np.random.default_rng(0)
    for number in range(1, 11):
        name = tmp_path / "recordings" / f"anna-{number:03d}"
        text = " ".join(random.choice(WORDS, 2))
        samples = engine().say(text, SPEAKERS[number % 2]).samples
        soundfile.write(name.with_suffix(".wav"), samples, 16_000)
        name.with_suffix(".txt").write_text(f"{text}\n")
        frames = round(len(samples) / 640)
        write_video(name.with_suffix(".mp4"), random.integers(0, 255, (frames, 96, 96)).astype(np.uint8))
    return tmp_path


def run(line: str, *more: str) -> str:
    words = [*shlex.split(line)[1:], *more]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.output


def test_the_page_runs_as_written(folder):
    """Only the sizes are smaller: two steps of the smallest model."""
    home = folder / "home"
    imports = [line for line in COMMANDS if line.startswith("dmlm corpus import recordings")]
    assert len(imports) == 3
    assert "10 clips" in run(imports[0])
    assert "corpus=mine" in run(imports[0])  # again: nothing is to be done
    made = read_corpus(home / "corpora" / "mine")
    assert made.counts == {"train": 7, "val": 1, "test": 2}
    assert all(utterance.lips and utterance.spans for utterance in made.utterances)
    run(imports[2])
    grids = [line for line in COMMANDS if line.startswith("dmlm grid run")]
    for line in grids:
        name, *overrides = shlex.split(line)[3:]
        assert read_grid_file(name, overrides).cells
    tables = run(grids[0], *SMALL)
    assert "WER in %" in tables
    assert (home / "runs" / "mine" / "report.html").is_file()
    for line in (line for line in COMMANDS if line.startswith("dmlm transcribe")):
        assert "anna-001" in run(line)


def test_every_option_and_form_of_the_page_exists():
    command, _ = program(["dmlm", "corpus", "import"])
    known = {option for parameter in command.params for option in parameter.opts}
    text = PAGE.read_text("utf-8")
    named = {word.strip("`,.") for word in text.split() if word.strip("`").startswith("--")}
    assert {word for word in named if word not in ("--model", "--noise", "--snr")} <= known
    for line in COMMANDS:
        found, arguments = program(shlex.split(line))
        with found.make_context(found.name, list(arguments)):
            pass
