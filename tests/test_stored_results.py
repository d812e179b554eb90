"""Results on disk: damaged, torn, of earlier versions, scored otherwise: told apart, and never read as numbers."""

import json
import math
from pathlib import Path

import pytest
from fake_grid import figures_program, rows, word_loser, write_evaluation, write_grid
from typer.testing import CliRunner

from dmlm.cli.main import app as commands
from dmlm.errors import UserError
from dmlm.results.figures import make_figures
from dmlm.results.grid import read_grid
from dmlm.results.measures import compared_systems, paired_counts, systems
from dmlm.results.tables import terminal_tables
from dmlm.score.benefit import relative_benefit

RATES = {"A -> T": {"clean": 0, 0.0: 2, -10.0: 5}, "A+L -> T": {"clean": 0, 0.0: 1, -10.0: 2}}


@pytest.fixture
def grid(tmp_path):
    """A complete grid that a test may damage; without figures."""
    levels = {"snrs_db": ("clean", 0.0, -10.0), "permuted_snrs_db": (-10.0,)}
    return write_grid(tmp_path / "runs", **levels, draws=2, utterances=12, speaker=word_loser(RATES))


def evaluation(grid, template, snr_db, permuted=None):
    return read_grid(grid).find("opt-tiny", template, snr_db, permuted)[0].folder.path


def as_an_earlier_version_wrote(grid):
    """Remove from all results what earlier versions did not record."""
    index = json.loads((grid / "grid.json").read_text("utf-8"))
    for cell in index["cells"]:
        del cell["normaliser"]
        for each in cell["evaluations"]:
            for name, added in (
                ("result.json", ("characters", "cut_hypotheses", "looped_hypotheses", "normaliser")),
                ("utterances.jsonl", ("characters", "cut", "looped")),
            ):
                path = (grid / each["folder"] / name).resolve()
                lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
                kept = [json.dumps({k: v for k, v in line.items() if k not in added}) for line in lines]
                path.write_text("\n".join(kept) + "\n", "utf-8")
    (grid / "grid.json").write_text(json.dumps(index | {"normaliser": "lower-whitespace/1"}), "utf-8")


def test_results_that_lack_what_earlier_versions_did_not_record_still_open(grid, tmp_path):
    as_an_earlier_version_wrote(grid)
    results = read_grid(grid)
    assert results.normaliser == "lower-whitespace/1"
    assert {e.counts.normaliser for e in results.finished} == {"lower-whitespace/1"}
    assert not make_figures(results).failures
    assert not (grid / "figures" / "cer_by_snr.csv").exists()
    assert "not recorded" in (grid / "report.html").read_text("utf-8")
    text = terminal_tables(results)
    assert "+50.0*" in text
    assert "cut" not in text
    CliRunner().invoke(commands, ["grid", "export", str(grid), "--csv", str(tmp_path / "table.csv")])
    assert {(row["cer"], row["cut_hypotheses"]) for row in rows(tmp_path / "table.csv")} == {("", "")}
    assert {row["normaliser"] for row in rows(tmp_path / "table.csv")} == {"lower-whitespace/1"}


def test_cut_hypotheses_are_told(grid):
    index = json.loads((grid / "grid.json").read_text("utf-8"))
    for cell in index["cells"]:
        cell["settings"] = {"decode": {"max_new_tokens": 64, "max_repeats": 4}}
    (grid / "grid.json").write_text(json.dumps(index), "utf-8")
    for place, level in enumerate((0.0, -10.0), start=1):
        path = evaluation(grid, "A -> T", level) / "utterances.jsonl"
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for record in records[: 4 * place]:
            record["cut"] = True
        records[-1]["looped"] = level == 0.0
        path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        result = json.loads((path.parent / "result.json").read_text("utf-8"))
        result |= {"cut_hypotheses": 4 * place, "looped_hypotheses": int(level == 0.0)}
        (path.parent / "result.json").write_text(json.dumps(result), "utf-8")
    text = terminal_tables(read_grid(grid))
    assert "12 of 96 hypotheses were cut at decode.max_new_tokens=64." in text
    assert "1 of 96 hypotheses were stopped at decode.max_repeats=4." in text
    make_figures(read_grid(grid))
    assert "12 of 96 hypotheses were cut" in (grid / "report.html").read_text("utf-8")


def test_a_count_that_does_not_add_up_is_refused(grid):
    path = evaluation(grid, "A -> T", 0.0) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"cut_hypotheses": 3}), "utf-8")
    with pytest.raises(UserError, match=r"says cut_hypotheses = 3, but utterances\.jsonl beside it adds up to 0"):
        terminal_tables(read_grid(grid))


def test_a_result_that_lacks_a_count_of_characters_is_missing(grid):
    path = evaluation(grid, "A -> T", 0.0) / "result.json"
    result = json.loads(path.read_text("utf-8"))
    del result["characters"]["insertions"]
    path.write_text(json.dumps(result), "utf-8")
    assert len(read_grid(grid).missing) == 1


def test_systems_of_two_normalisers_have_no_benefit_and_the_reader_is_told(grid):
    index = json.loads((grid / "grid.json").read_text("utf-8"))
    (cell,) = (cell for cell in index["cells"] if cell["template"] == "A+L -> T")
    cell["normaliser"] = "english/1"
    for each in cell["evaluations"]:
        path = (grid / each["folder"] / "result.json").resolve()
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"normaliser": "english/1"}), "utf-8")
    (grid / "grid.json").write_text(json.dumps(index), "utf-8")
    results = read_grid(grid)
    assert compared_systems(results) == []
    assert "A+L: no relative benefit, because A -> T was scored with another normaliser" in terminal_tables(results)
    (system,) = (system for system in systems(results) if system.template == "A+L -> T")
    with pytest.raises(UserError, match="one was scored with normaliser basic/2, the other with english/1"):
        relative_benefit(*paired_counts(results, system, 0.0, against=systems(results)[0]))


def test_a_torn_last_line_is_forgiven_only_while_unfinished(grid):
    folder = evaluation(grid, "A -> T", 0.0)
    lines = folder / "utterances.jsonl"
    lines.write_text(lines.read_text()[:-40])
    with pytest.raises(UserError, match=r"utterances\.jsonl, line 12"):
        _ = read_grid(grid).find("opt-tiny", "A -> T", 0.0)[0].utterances
    (folder / "result.json").unlink()
    assert len(read_grid(grid).find("opt-tiny", "A -> T", 0.0)[0].utterances) == 11


def test_a_torn_line_in_the_middle_is_never_forgiven(grid):
    folder = evaluation(grid, "A -> T", 0.0)
    (folder / "result.json").unlink()
    lines = (folder / "utterances.jsonl").read_text().splitlines()
    lines[3] = lines[3][:20]
    (folder / "utterances.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 4"):
        _ = read_grid(grid).find("opt-tiny", "A -> T", 0.0)[0].utterances


def lose_a_line(grid):
    path = evaluation(grid, "A -> T", 0.0) / "utterances.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def be_another_schema(grid):
    (grid / "grid.json").write_text(json.dumps({**json.loads((grid / "grid.json").read_text()), "schema": 7}))


def lose_a_field(grid):
    data = json.loads((grid / "grid.json").read_text())
    del data["cells"][0]["corpus"]
    (grid / "grid.json").write_text(json.dumps(data))


def be_too_loud(grid):
    folder = evaluation(grid, "A -> T", 0.0)
    write_evaluation(folder, [("utt-0000", "a b", "a")], 0.0, offset_db=0.3)


def swap_the_test_set(grid):
    folder = evaluation(grid, "A -> T", 0.0)
    write_evaluation(folder, [(f"other-{i}", "a b", "a") for i in range(12)], 0.0)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lose_a_line, "adds up to 11"),
        (be_another_schema, "schema 7"),
        (lose_a_field, "'corpus' is missing"),
        (be_too_loud, "0.30 dB instead of 0 dB"),
        (swap_the_test_set, "cannot be compared"),
        (lambda grid: (grid / "grid.json").unlink(), "There is no file"),
        (lambda grid: (grid / "grid.json").write_text("{"), "cannot be read as JSON"),
    ],
)
def test_a_mistake_is_one_sentence(grid, damage, said):
    damage(grid)
    outcome = CliRunner().invoke(figures_program(), [str(grid)])
    assert isinstance(outcome.exception, UserError)
    assert said in str(outcome.exception)
    assert len(str(outcome.exception).splitlines()) == 1


def test_r12_a_store_of_the_first_schema_still_opens():
    """Kept as it was written: a reader that stops understanding it needs a new schema number."""
    results = read_grid(Path(__file__).parent / "stores" / "schema_1" / "store_1")
    assert [cell.label for cell in results.cells] == ["OPT A", "OPT A+L"]
    assert not results.missing
    assert {len(e.utterances) for cell in results.cells for e in cell.evaluations} == {16}
    (clean,) = results.find("opt-nano", "A -> T", math.inf)
    assert (clean.counts.errors.sum(), clean.counts.words.sum()) == (373, 117)
    assert results.cells[1].evaluations[-1].permuted == "L"
