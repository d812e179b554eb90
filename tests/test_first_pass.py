"""Lines of a page that are kept because a first pass over the audio heard them, and how such a first pass is made."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dmlm.cli import grid
from dmlm.corpus.condition import CLEAN, Condition
from dmlm.corpus.manifest import Corpus, Utterance
from dmlm.errors import UserError
from dmlm.ocr import lines
from dmlm.ocr.lines import Line, count_heard
from dmlm.plan.grid import read_grid_file
from dmlm.sweep.controls import exchanged_with, permute
from dmlm.sweep.materials import prepare
from dmlm.sweep.trial import trial_of
from dmlm.synthesis.page import draw_page
from dmlm.tokens import encoding
from dmlm.tokens.encoder import Reader
from dmlm.tokens.encoding import EncoderSpec
from dmlm.tokens.shards import TokenSource

NOISY = Condition(0.0)
EQUATIONS = ("12 + 45 a = 38", "7 x - 3 = 9 y", "k + 20 = 6 m")
SPOKEN = ("12 plus 45 a equals 38", "7 x minus 3 equals 9 y", "k plus 20 equals 6 m")


def first_pass(folder: Path, heard: dict[str, str], split: str = "test", name: str = "u") -> Path:
    """What was understood of one utterance, by condition."""
    for condition, text in heard.items():
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
        return TokenSource(corpus, "ocr_rapidocr", settings, CLEAN, run=map)

    return build


@pytest.mark.parametrize("number", range(3))
def test_the_line_that_was_heard_is_kept(number) -> None:
    page_lines = [Line(text, (0, 10 * size, 0, 100), 1.0) for size, text in enumerate(EQUATIONS, start=1)]
    settings = lines.Settings(keep=1, first_pass=Path("any"))
    misheard = SPOKEN[number].replace("equals", "was", 1).replace("plus", "", 1)
    for heard in (SPOKEN[number], misheard, f"well {SPOKEN[number]} then"):
        assert lines.page_text(page_lines, (40, 100), settings, heard) == EQUATIONS[number]
    assert lines.page_text(page_lines, (40, 100), lines.Settings(keep=1), SPOKEN[number]) == EQUATIONS[2], (
        "no first pass asked"
    )


@given(st.lists(st.sampled_from("abcdefgh"), max_size=8), st.lists(st.sampled_from("abcdefgh"), max_size=8))
def test_a_line_has_words_that_were_heard_in_order_and_others(line, heard) -> None:
    common, others = count_heard(" ".join(line), " ".join(heard), "words/1")
    assert common + others == len(line)
    assert 0 <= common <= len(heard)
    assert count_heard(" ".join(line), " ".join([*heard, *line]), "words/1") == (len(line), 0)
    assert count_heard(" ".join(line), "", "words/1") == (0, len(line))


def test_lines_of_which_nothing_was_heard_come_last_and_the_most_prominent_first() -> None:
    """So that a smudge is not taken for a line that was heard badly, nor for the answer to silence."""
    page_lines = [
        Line(text, (0, 10, 0, width), 1.0) for text, width in (("~ - =", 30), ("3x+4y-7z=12", 20), ("9k", 10))
    ]
    for heard, kept in (("3 x plus 4", "3x+4y-7z=12"), ("", "~ - ="), ("nothing of it", "~ - =")):
        assert [
            line.text for line in lines.select_lines(page_lines, lines.Settings(keep=1, first_pass=Path("any")), heard)
        ] == [kept]


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


def test_transcripts_of_another_corpus_are_refused(page_source, tmp_path) -> None:
    folder = first_pass(tmp_path / "pass", {"clean": SPOKEN[0]})
    for corpus, refused in (("speeches-01234567", True), ("pictures-00000000", False)):
        (folder / "first_pass.json").write_text(json.dumps({"corpus": corpus}))
        with pytest.raises(UserError, match="about corpus speeches") if refused else nullcontext():
            page_source(folder).load("test", CLEAN)
    (folder / "first_pass.json").write_text("{")
    with pytest.raises(UserError, match=r"first_pass\.json is damaged"):
        page_source(folder).load("test", NOISY)


def test_transcripts_that_change_while_a_grid_runs_are_refused(page_source, tmp_path) -> None:
    source = page_source(first_pass(tmp_path / "pass", {"clean": SPOKEN[0], NOISY.key: SPOKEN[0]}))
    name = source.name
    source.load("test", CLEAN)
    first_pass(tmp_path / "pass", {"clean": SPOKEN[1], NOISY.key: SPOKEN[1]})
    assert source.name == name
    assert source.load("test", CLEAN).tokens["u"] == EQUATIONS[0], "as it was encoded"
    encoding.release_encoder()
    with pytest.raises(UserError, match="was changed while it was in use"):
        source.load("test", NOISY)


def test_what_a_first_pass_lacks_is_a_sentence(page_source, tmp_path) -> None:
    with pytest.raises(UserError, match=r"nowhere has no transcripts .* dmlm grid transcribe"):
        page_source(tmp_path / "nowhere").encoder.require()
    folder = first_pass(tmp_path / "pass", {"clean": SPOKEN[0]}, name="v")
    with pytest.raises(UserError, match="no line of utterance 'u'"):
        page_source(folder).load("test", CLEAN)
    with pytest.raises(UserError, match=r"there is no .*test\.jsonl; .* same noise, levels and draws"):
        page_source(folder).load("test", NOISY)
    (folder / NOISY.key).mkdir()
    for second in ('{"id": "w"}', '{"id": "w", "text": null}', '{"id": "u", "text": "b"}', "w: a", ""):
        (folder / NOISY.key / "test.jsonl").write_text('{"id": "u", "text": "a"}\n' + second + "\n")
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
    both = cell.model_copy(update={"template": "A+O -> T"})
    assert exchanged_with("A", both, materials) == ["A"]
    monkeypatch.setattr(type(reader), "first_pass", tmp_path)
    assert exchanged_with("A", both, materials) == ["A", "O"], "an exchanged audio takes what it chose along"
    assert exchanged_with("O", both, materials) == ["O"]
    assert trial_of(cell, materials, grid.baseline).spec["noise"] == [c.key for c in materials.train_conditions[:1]]


def test_a_trained_cell_writes_what_it_understands_of_every_clip(finished, home, tmp_path, monkeypatch) -> None:
    """The test split as its evaluations have it; a second command goes on where the first one ended."""
    monkeypatch.setenv("DMLM_HOME", str(home))
    folder = tmp_path / "first pass"
    grid.transcribe(to=folder, overrides=["smoke"], cell=0)
    cell = read_grid_file("smoke").cells[0]
    (materials,) = prepare([cell])
    trial = trial_of(cell, materials, "A -> T")
    for evaluation in trial.evaluations:
        scored = map(json.loads, (trial.folder_of(evaluation).path / "utterances.jsonl").read_text().splitlines())
        path = folder / evaluation.condition.key / "test.jsonl"
        heard = [(record["id"], record["text"]) for record in map(json.loads, path.read_text().splitlines())]
        assert heard == [(record["id"], record["hypothesis"]) for record in scored]
    training = folder / materials.train_conditions[0].key / "train.jsonl"
    assert len(training.read_text().splitlines()) == len(materials.corpus.split("train"))

    whole = {path: path.read_text() for path in folder.glob("*/*.jsonl")}
    shutil.rmtree(training.parent)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.jsonl")}
    grid.transcribe(to=folder, overrides=["smoke"], cell=0)
    assert {path: path.read_text() for path in whole} == whole
    assert {path: path.stat().st_mtime_ns for path in times} == times

    (tmp_path / "file").touch()
    (tmp_path / "full" / "of photographs").mkdir(parents=True)
    for to, changes, cell, complaint in (
        (folder, [], 1, "of another model"),
        (tmp_path / "full", [], 0, "or something else"),
        (tmp_path / "file", [], 0, "is a file"),
        (tmp_path / "none", ["train.steps=7"], 0, "has no trained model yet"),
        (tmp_path / "none", [], 99, "has cells 0 to 4"),
    ):
        with pytest.raises(UserError, match=complaint):
            grid.transcribe(to=to, overrides=["smoke", *changes], cell=cell)
    assert not (tmp_path / "none").exists()


def test_what_is_exchanged_together_stays_together() -> None:
    items = [{"A": [n] * 5, "O": [10 * n], "T": [n]} for n in range(6)]
    given = permute(items, ["A", "O"], 0)
    assert all(item["O"] == [10 * item["A"][0]] and item["A"] != [item["T"][0]] * 5 for item in given)
    assert [item["A"] for item in given] == [item["A"] for item in permute(items, ["A"], 0)], "the same donors"
