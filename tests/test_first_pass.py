"""Lines of a page that are kept because a first pass over the audio heard them, and how such a first pass is made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dmlm.corpus.condition import CLEAN, Condition
from dmlm.corpus.manifest import Corpus, Utterance
from dmlm.corpus.synthesis.page import draw_page
from dmlm.errors import UserError
from dmlm.sweep import commands
from dmlm.sweep.grid import read_grid_file
from dmlm.sweep.materials import prepare
from dmlm.sweep.trial import trial_of
from dmlm.tokens import lines
from dmlm.tokens.lines import Line, heard
from dmlm.tokens.shards import EncoderSpec, TokenSource
from dmlm.tokens.tokenizer import Reader

NOISY = Condition((0.0,))
EQUATIONS = ("12 + 45 a = 38", "7 x - 3 = 9 y", "k + 20 = 6 m")
SPOKEN = ("12 plus 45 a equals 38", "7 x minus 3 equals 9 y", "k plus 20 equals 6 m")


def first_pass(folder: Path, said: dict[str, str], split: str = "test", name: str = "u") -> Path:
    """What was understood of one utterance, by condition."""
    for condition, text in said.items():
        (folder / condition).mkdir(parents=True, exist_ok=True)
        (folder / condition / f"{split}.jsonl").write_text(json.dumps({"id": name, "text": text}) + "\n")
    return folder


@pytest.fixture
def page_source(tmp_path, monkeypatch):
    """Builds the token source of one page with three equations, of which a first pass in `folder` chooses one."""
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    Image.fromarray(draw_page(list(EQUATIONS), np.random.default_rng(0))).save(tmp_path / "page.png")
    card = {"name": "pictures", "digest": "0" * 64}
    fields = {"id": "u", "split": "test", "text": "quite other", "audio": "none.flac", "duration_s": 1.0}
    corpus = Corpus(tmp_path, (Utterance(**fields, image="page.png"),), card)

    def build(folder: Path) -> TokenSource:
        settings = {"keep": 1, "first_pass": str(folder)}
        return TokenSource(corpus, "ocr_rapidocr", settings, CLEAN, run=lambda f, jobs, _: map(f, jobs))

    return build


@pytest.mark.parametrize("number", range(3))
def test_the_line_that_was_heard_is_kept(number) -> None:
    found = [Line(text, (0, 10 * size, 0, 100), 1.0) for size, text in enumerate(EQUATIONS, start=1)]
    settings = lines.Settings(keep=1, first_pass=Path("any"))
    misheard = SPOKEN[number].replace("equals", "was", 1).replace("plus", "", 1)
    for said in (SPOKEN[number], misheard, f"well {SPOKEN[number]} then"):
        assert lines.written(found, (40, 100), settings, said) == EQUATIONS[number]
    assert lines.written(found, (40, 100), lines.Settings(keep=1), SPOKEN[number]) == EQUATIONS[2], (
        "no first pass asked"
    )


@given(st.lists(st.sampled_from("abcdefgh"), max_size=8), st.lists(st.sampled_from("abcdefgh"), max_size=8))
def test_a_line_counts_its_words_heard_in_order_less_the_others(line, said) -> None:
    score = heard(" ".join(line), " ".join(said), "words/1")
    assert -len(line) <= score <= len(line)
    assert (len(line) - score) % 2 == 0
    assert heard(" ".join(line), " ".join([*said, *line]), "words/1") == len(line)
    assert heard(" ".join(line), "", "words/1") == -len(line)


def test_each_condition_has_the_lines_that_were_heard_in_it(page_source, tmp_path) -> None:
    source = page_source(first_pass(tmp_path / "pass", {CLEAN.key: SPOKEN[0], NOISY.key: SPOKEN[1]}))
    read = {condition: source.load("test", condition).tokens["u"] for condition in (CLEAN, NOISY)}
    assert read == {CLEAN: EQUATIONS[0], NOISY: EQUATIONS[1]}


def test_the_transcripts_enter_the_fingerprint(page_source, tmp_path) -> None:
    source = page_source(first_pass(tmp_path / "pass", {"clean": SPOKEN[0]}))
    before = source.encoder.fingerprint
    assert source.load("test", CLEAN).tokens["u"] == EQUATIONS[0]
    again = page_source(first_pass(tmp_path / "pass", {"clean": SPOKEN[2]}))
    assert again.encoder.fingerprint != before
    assert again.load("test", CLEAN).tokens["u"] == EQUATIONS[2]


def test_what_a_first_pass_lacks_is_a_sentence(page_source, tmp_path) -> None:
    with pytest.raises(UserError, match=r"nowhere has no transcripts .* dmlm grid transcribe"):
        page_source(tmp_path / "nowhere").encoder.require()
    folder = first_pass(tmp_path / "pass", {"clean": SPOKEN[0]}, name="v")
    with pytest.raises(UserError, match="no line of utterance 'u'"):
        page_source(folder).load("test", CLEAN)
    with pytest.raises(UserError, match=r"there is no .*test\.jsonl; .* same noise, levels and draws"):
        page_source(folder).load("test", NOISY)
    (folder / NOISY.key).mkdir()
    (folder / NOISY.key / "test.jsonl").write_text('{"id": "u", "text": "a"}\n{"id": "w"}\n')
    with pytest.raises(UserError, match=r"test\.jsonl, line 2 is not"):
        page_source(folder).load("test", NOISY)
    for settings in ({"first_pass": "any"}, {"first_pass": "any", "frequencies": "any", "keep": 1}):
        with pytest.raises(UserError, match="rank"):
            EncoderSpec("ocr_rapidocr", settings).build()


def test_text_that_depends_on_what_was_heard_depends_on_the_noise(finished, home, tmp_path, monkeypatch) -> None:
    """A model of such text alone has the noise in its identity, one of all lines has not."""
    monkeypatch.setenv("DMLM_HOME", str(home))
    grid = read_grid_file("smoke", ["backbone=opt-nano", "template=O -> T"])
    (cell,) = grid.cells
    (materials,) = prepare([cell])
    assert trial_of(cell, materials, grid.baseline).spec["noise"] == []
    reader = materials.sources["O"].encoder
    assert isinstance(reader, Reader)
    monkeypatch.setattr(type(reader), "first_pass", tmp_path)
    assert trial_of(cell, materials, grid.baseline).spec["noise"] == [c.key for c in materials.train_conditions[:1]]


def test_a_trained_cell_writes_what_it_understands_of_every_clip(finished, home, tmp_path, monkeypatch) -> None:
    """The test split as its evaluations have it; a second command goes on where the first one ended."""
    monkeypatch.setenv("DMLM_HOME", str(home))
    folder = tmp_path / "first pass"
    commands.transcribe(to=folder, overrides=["smoke"], cell=0)
    cell = read_grid_file("smoke").cells[0]
    (materials,) = prepare([cell])
    trial = trial_of(cell, materials, "A -> T")
    for evaluation in trial.evaluations:
        scored = map(json.loads, (trial.scores(evaluation) / "utterances.jsonl").read_text().splitlines())
        path = folder / evaluation.condition.key / "test.jsonl"
        said = [(record["id"], record["text"]) for record in map(json.loads, path.read_text().splitlines())]
        assert said == [(record["id"], record["hypothesis"]) for record in scored]
    training = folder / materials.train_conditions[0].key / "train.jsonl"
    assert len(training.read_text().splitlines()) == len(materials.corpus.split("train"))

    whole = {path: path.read_text() for path in folder.glob("*/*.jsonl")}
    shutil.rmtree(training.parent)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.jsonl")}
    commands.transcribe(to=folder, overrides=["smoke"], cell=0)
    assert {path: path.read_text() for path in whole} == whole
    assert {path: path.stat().st_mtime_ns for path in times} == times

    for to, changes, cell, complaint in (
        (folder, [], 1, "of another model"),
        (tmp_path / "none", ["train.steps=7"], 0, "has no trained model yet"),
        (tmp_path / "none", [], 99, "has cells 0 to 4"),
    ):
        with pytest.raises(UserError, match=complaint):
            commands.transcribe(to=to, overrides=["smoke", *changes], cell=cell)
    assert not (tmp_path / "none").exists()
