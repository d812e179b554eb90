"""One broken figure costs one figure; a figure may lie anywhere; each cell is shown with its own corpus and tokenizers."""

import json
from pathlib import Path

import pytest
from fake_grid import write_grid

from dmlm.errors import UserError
from dmlm.results import figures
from dmlm.results.figures import make_figures
from dmlm.results.grid import read_grid
from dmlm.results.grid import write_grid as write_index
from dmlm.results.measures import baseline_of, compared_systems, systems

OWN = """
from dmlm.results.exhibit import Exhibit

def draw(results, folder):
    {body}
"""
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000049454e44ae426082")


def own_figure(folder: Path, body: str) -> str:
    path = folder / "mine.py"
    path.write_text(OWN.format(body=body))
    return str(path)


@pytest.fixture
def grid(tmp_path):
    return write_grid(tmp_path / "runs", snrs_db=("clean", 0.0), utterances=6)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("results.no_such_thing", "line 5: AttributeError"),
        ("return 3", "not a dmlm.results.exhibit.Exhibit"),
        ("raise ValueError('two\\nlines')", "line 5: ValueError: two"),
        (
            "return Exhibit(title='', caption='', files=(folder / 'none.png',))",
            "is not the Path of a file that it wrote",
        ),
        ("return Exhibit(title='', caption='', tables=('a',))", "tables has a str"),
        ("from dmlm import recipes; recipes.find('analysis', 'nothing')", "UserError: analysis: no recipe is named"),
        ("raise SystemExit(3)", "line 5: SystemExit: 3"),
        ("pass\n\ndraw = None\ndel draw", "defines no function draw"),
        ("pass\n\nORDER = 'first'", "ValueError"),
    ],
)
def test_a_broken_figure_costs_one_figure_and_is_named_with_its_line(grid, tmp_path, body, words):
    path = own_figure(tmp_path, body)
    drawn = make_figures(read_grid(grid), [path])
    (failure,) = drawn.failures
    assert failure.startswith(path)
    assert words in failure
    assert {"wer_by_snr.png", "report.html", "summary.md"} <= {file.name for file in drawn.files}
    page = (grid / "report.html").read_text()
    assert "This figure failed." in page
    assert "Word error rate by SNR" in page


def test_a_figure_that_does_not_even_load_costs_one_figure(grid, tmp_path):
    (tmp_path / "mine.py").write_text("def draw(:\n")
    (failure,) = make_figures(read_grid(grid), [str(tmp_path / "mine.py")]).failures
    assert "mine.py, line 1: SyntaxError" in failure


def test_a_broken_report_costs_the_report(grid, monkeypatch):
    monkeypatch.setattr(figures.recipes.load("analysis", "report"), "_facts", lambda results: 1 / 0)
    drawn = make_figures(read_grid(grid))
    assert len(drawn.failures) == 1
    assert "ZeroDivisionError" in drawn.failures[0]
    assert "wer_by_snr.png" in {file.name for file in drawn.files}


def test_an_unknown_figure_is_refused(grid):
    with pytest.raises(UserError, match="there is no file"):
        make_figures(read_grid(grid), ["nowhere/mine.py"])


def test_a_figure_of_ones_own_is_drawn_and_its_png_is_in_the_report(grid, tmp_path):
    body = f"(folder / 'mine.png').write_bytes(bytes.fromhex({PNG.hex()!r}))"
    body += "; return Exhibit(title='Mine', caption='', files=(folder / 'mine.png',))"
    drawn = make_figures(read_grid(grid), [own_figure(tmp_path, body)])
    assert not drawn.failures
    assert grid / "figures" / "mine.png" in drawn.files
    page = (grid / "report.html").read_text()
    assert 'src="data:image/png;base64,' in page


@pytest.fixture
def two_corpora(grid):
    """The same cells on a second corpus, read with another tokenizer of lips."""
    data = json.loads((grid / "grid.json").read_text())
    for cell in list(data["cells"]):
        other = json.loads(json.dumps(cell))
        other["corpus"] |= {"name": "spoken_notes", "digest": "cd" * 32, "licence": "CC-BY-4.0"}
        other["tokenizers"] = {letter: f"{letter.lower()}_other" for letter in cell["tokenizers"]}
        other["noise"]["placement"] = "whole"
        other["variant"] = "spoken_notes"
        data["cells"].append(other)
    (grid / "grid.json").write_text(json.dumps(data))
    return grid


def test_every_corpus_and_tokenizer_of_a_grid_is_shown(two_corpora):
    results = read_grid(two_corpora)
    assert [card.name for card in results.corpora] == ["three_equations", "spoken_notes"]
    assert results.tokenizers_of("L") == ["lips_dct", "l_other"]
    assert not make_figures(results).failures
    page = (two_corpora / "report.html").read_text()
    stand_ins = (two_corpora / "figures" / "stand_ins.csv").read_text()
    for text in ("three_equations 1", "spoken_notes 1"):
        assert text in page
        assert text in stand_ins
    assert "L lips_dct or l_other" in page
    assert "licence CC-BY-4.0" in page
    assert "placement second half" in page
    assert "placement whole" in page


def test_a_benefit_is_measured_within_one_corpus(two_corpora):
    results = read_grid(two_corpora)
    assert len(systems(results)) == 4
    for system in compared_systems(results):
        baseline = baseline_of(results, system)
        assert baseline is not None
        assert baseline.corpus == system.corpus


def test_the_index_of_a_grid_is_read_as_it_was_written(two_corpora):
    results = read_grid(two_corpora)
    before = json.loads((two_corpora / "grid.json").read_text())
    write_index(results)
    after = json.loads((two_corpora / "grid.json").read_text())
    assert after.pop("about") == ""
    for cell in after["cells"]:
        assert cell.pop("settings") == {}
    for cell in before["cells"]:
        cell.setdefault("variant", "")
        cell["corpus"] = {"left_out": {}, "lacking": {}, "folds": None, "not_imported": {}} | cell["corpus"]
    assert after == before
