"""Figures and report from a grid on disk: right numbers, gaps shown as gaps, nothing from outside, no torch."""

import json
import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_grid import rows, write_evaluation, write_grid
from typer import Typer
from typer.testing import CliRunner

from dmlm import paths, recipes
from dmlm.cli.main import app as commands
from dmlm.errors import UserError
from dmlm.results.figures import make_figures
from dmlm.results.grid import read_grid
from dmlm.results.measures import System, benefit_point, compared_systems, paired_counts, systems, wer_point
from dmlm.results.tables import terminal_tables
from dmlm.score.benefit import relative_benefit
from dmlm.snr import CLEAN_DB

RATES = {"A -> T": {"clean": 0, 0.0: 2, -10.0: 5}, "A+L -> T": {"clean": 0, 0.0: 1, -10.0: 2}}


def speaker(reference, model, template, snr_db, permuted, draw):
    """Loses a known number of words of every sentence; with permuted lips as many as without lips."""
    lost = RATES["A -> T" if permuted else template][snr_db]
    return " ".join(reference.split()[lost:])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A complete grid, with its figures made once."""
    root = tmp_path_factory.mktemp("runs")
    folder = write_grid(
        root, snrs_db=("clean", 0.0, -10.0), permuted_snrs_db=(-10.0,), draws=2, utterances=12, speaker=speaker
    )
    results = read_grid(folder)
    files = make_figures(results).files
    assert not results.missing
    return folder, files


@pytest.fixture
def grid(made, tmp_path):
    """A copy that a test may damage; without figures."""
    shutil.copytree(made[0].parent, tmp_path / "runs", ignore=shutil.ignore_patterns("figures", "report.html"))
    return tmp_path / "runs" / made[0].name


def evaluation(grid, template, snr_db, permuted=None):
    return read_grid(grid).find("opt-tiny", template, snr_db, permuted)[0].folder.path


# ---- figures and their numbers


def test_every_file_is_written_and_named(made):
    folder, files = made
    assert all(file.is_file() and file.stat().st_size for file in files)
    written = {path for path in (folder / "figures").iterdir()}
    assert written | {folder / "report.html"} == set(files)
    for figure in ("wer_by_snr", "relative_benefit", "perceptual_score", "training_curves"):
        assert {f"{figure}.png", f"{figure}.pdf", f"{figure}.csv"} <= {file.name for file in files}


def test_numbers_equal_hand_computation(made):
    folder, _ = made
    references = [u.reference for u in read_grid(folder).cells[0].evaluations[0].utterances]
    words = sum(len(reference.split()) for reference in references)
    for row in rows(folder / "figures" / "wer_by_snr.csv"):
        lost = RATES[row["template"]][row["snr_db"] if row["snr_db"] == "clean" else float(row["snr_db"])]
        assert float(row["value"]) == pytest.approx(12 * lost / words)
        assert float(row["low_95"]) <= float(row["value"]) <= float(row["high_95"])
        assert int(row["errors"]) == 12 * lost
        assert int(row["reference_words"]) == words
    benefit = {row["snr_db"]: row for row in rows(folder / "figures" / "relative_benefit.csv")}
    assert float(benefit["0"]["value"]) == pytest.approx(0.5)
    assert float(benefit["-10"]["value"]) == pytest.approx(0.6)
    assert (benefit["clean"]["value"], benefit["clean"]["status"]) == ("", "undefined")
    (score,) = rows(folder / "figures" / "perceptual_score.csv")
    assert float(score["value"]) == pytest.approx(12 * 3 / words)
    means = {row["measure"]: float(row["value"]) for row in rows(folder / "figures" / "summary_benefit_means.csv")}
    assert means == pytest.approx({"mean_of_benefits": 0.55, "benefit_of_pooled_wer": (7 - 3) / 7})


def test_character_errors_have_a_figure_and_a_table(made):
    folder, _ = made
    lines = rows(folder / "figures" / "cer_by_snr.csv")
    assert rows(folder / "figures" / "summary_cer.csv") == lines
    for row in lines:
        place = row["snr_db"] if row["snr_db"] == "clean" else float(row["snr_db"])
        stored = (
            read_grid(folder).find("opt-tiny", row["template"], CLEAN_DB if place == "clean" else place)[0].utterances
        )
        errors = sum(u.characters.errors for u in stored)
        characters = sum(len(u.reference) for u in stored)
        assert float(row["value"]) == pytest.approx(errors / characters)
        assert (int(row["errors"]), int(row["reference_characters"])) == (errors, characters)
        assert (row["measure"], "reference_words" in row) == ("cer", False)
    assert "### Character error rate (%)" in (folder / "figures" / "summary.md").read_text("utf-8")
    assert "Character error rate (" in (folder / "figures" / "summary.tex").read_text("utf-8")


def test_seeds_are_averaged_and_their_spread_is_told(tmp_path):
    def lucky(reference, model, template, snr_db, permuted, draw):
        return " ".join(reference.split()[1 if draw == 0 else 2 :])

    folder = write_grid(tmp_path, templates=("A -> T",), snrs_db=(0.0,), seeds=(0, 1), utterances=5, speaker=lucky)
    results = read_grid(folder)
    (system,) = systems(results)
    point = wer_point(results, system, 0.0)
    words = point.counts.words.sum()
    assert point.estimate.value == pytest.approx(7.5 / words)
    assert point.seed_sd == pytest.approx((10 - 5) / words / math.sqrt(2))
    assert (point.runs_done, point.runs_asked) == (2, 2)


def test_a_model_worse_than_silence_is_not_read_as_a_finding(tmp_path):
    folder = write_grid(tmp_path, snrs_db=(0.0, -10.0), utterances=5, speaker=lambda *asked: "so " * 60)
    make_figures(read_grid(folder))
    said = (folder / "figures" / "findings.md").read_text()
    assert said.count("has not learned to transcribe, so read no effect into it") == 1  # told once, of the baseline
    assert "opt-tiny, A+L: it or the baseline never beats writing nothing" in said
    assert "lowers WER" not in said


def test_settings_that_differ_in_more_than_the_seed_are_never_pooled(grid):
    path = grid / "grid.json"
    data = json.loads(path.read_text())
    data["cells"].append({**data["cells"][1], "variant": "lambda_A=0"})
    data["cells"].append(data["cells"][1])
    path.write_text(json.dumps(data))
    results = read_grid(grid)
    names = [system.name for system in systems(results)]
    assert names == ["A", "A+L", "A+L (lambda_A=0)", "A+L (setting 2)"]
    assert len(compared_systems(results)) == 3


def test_a_benefit_over_fewer_seeds_than_wer_is_told(tmp_path):
    folder = write_grid(tmp_path, snrs_db=("clean", 0.0), seeds=(0, 1), utterances=8)
    path = folder / "grid.json"
    assert "it shares with the baseline" not in terminal_tables(read_grid(folder))
    data = json.loads(path.read_text())
    del data["cells"][-1]  # A+L of seed 1
    path.write_text(json.dumps(data))
    said = "A+L: the benefit is over seed 0, which it shares with the baseline; WER is over seed 0, that of the baseline over"
    results = read_grid(folder)
    assert terminal_tables(results).count(said) == 1
    make_figures(results)
    for written in (folder / "figures" / "summary.md", folder / "report.html"):
        assert said in written.read_text()
    (system,) = compared_systems(results)
    point = benefit_point(results, system, 0.0)
    assert (point.runs_done, point.runs_asked, point.status) == (1, 1, "measured")


def test_effects_of_systems_that_have_not_learned_are_marked_everywhere(tmp_path):
    folder = write_grid(tmp_path, snrs_db=(0.0, -10.0), utterances=5, speaker=lambda *asked: "so " * 60)
    make_figures(read_grid(folder))
    summary = (folder / "figures" / "summary.md").read_text()
    assert "A+L † |" in summary
    assert "† it or the baseline never beats writing nothing" in summary
    assert r"A+L $\dagger$" in (folder / "figures" / "summary.tex").read_text()
    page = (folder / "report.html").read_text()
    assert "† it or the baseline" in page
    assert "the best system" not in page
    assert "no system has learned" in page


def test_a_report_has_the_question_of_its_grid_and_paths_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path))
    folder = write_grid(tmp_path / "runs", snrs_db=(0.0,), utterances=3)
    path = folder / "grid.json"
    data = json.loads(path.read_text()) | {"about": "Do lips help in the car?"}
    for cell in data["cells"]:
        cell["noise"]["set"] = "/data/my_noise"
    path.write_text(json.dumps(data))
    make_figures(read_grid(folder))
    page = (folder / "report.html").read_text()
    assert "Do lips help in the car?" in page
    assert "When does a further modality help" not in page
    assert "set /data/my_noise" in page
    assert "python analysis/make_figures.py fake<" in page  # by its name, which the script takes
    app = recipes.load("analysis", str(paths.recipe_folder("analysis") / "make_figures.py"))
    commands = Typer()
    commands.command()(app.main)
    assert CliRunner().invoke(commands, ["fake"]).exit_code == 0


def test_steps_of_a_short_training_are_whole_numbers(tmp_path, monkeypatch):
    folder = write_grid(tmp_path, templates=("A -> T",), snrs_db=(0.0,), utterances=2)
    (log,) = folder.parent.glob("trials/*/train.jsonl")
    log.write_text(
        "".join(
            line.replace(f'"step": {n}0,', f'"step": {n},') + "\n"
            for n, line in enumerate(log.read_text().splitlines()[:2], 1)
        )
    )
    module, drawn = recipes.load("analysis", "training_curves"), []
    monkeypatch.setattr(module, "save", lambda figure, *_: (drawn.append(figure), ((), ""))[1])
    module.draw(read_grid(folder), folder / "figures")
    (figure,) = drawn
    assert all(tick == round(tick) for axis in figure.axes for tick in axis.get_xticks())


def test_alignments_have_their_key_and_count_one_error_as_one(made):
    text = (made[0] / "figures" / "worst_utterances.txt").read_text()
    assert text.startswith("Words in error are in capitals: S substituted")
    assert ": 1 error in " in text


# ---- what is missing


def test_a_missing_evaluation_is_shown_as_missing(grid):
    (evaluation(grid, "A+L -> T", 0.0) / "result.json").unlink()
    results = read_grid(grid)
    exhibits = [
        recipes.load("analysis", name).draw(results, grid / "figures") for name in ("wer_by_snr", "summary_table")
    ]
    recipes.load("analysis", "report").write(results, grid / "report.html", exhibits)
    (row,) = (row for row in rows(grid / "figures" / "wer_by_snr.csv") if row["status"] == "missing")
    assert (row["template"], row["snr_db"]) == ("A+L -> T", "0")
    assert (row["value"], row["low_95"], row["runs_done"], row["runs_asked"]) == ("", "", "0", "1")
    assert "of 6 points 1 missing" in exhibits[0].svg
    assert "opt-tiny A+L -&gt; T, seed 0: 0 dB" in (grid / "report.html").read_text(encoding="utf-8")
    assert "—" in (grid / "figures" / "summary.md").read_text(encoding="utf-8")
    assert "1 of 8 evaluations" in terminal_tables(results)
    assert (
        benefit_point(results, System("opt-tiny", "A+L -> T", corpus="three_equations-abababab"), 0.0).estimate is None
    )


def exported(grid, *options):
    return CliRunner().invoke(commands, ["grid", "export", str(grid), *map(str, options)])


def test_the_exported_table_has_a_line_per_evaluation_and_counts_the_missing(grid, tmp_path):
    (evaluation(grid, "A+L -> T", 0.0) / "result.json").unlink()
    table = tmp_path / "table.csv"
    assert exported(grid, "--csv", table).output == f"{table}: 8 evaluations, 1 of them missing\n"
    lines = {(row["template"], row["snr_db"], row["permuted"], row["draw"]): row for row in rows(table)}
    assert len(lines) == 8
    missing = lines["A+L -> T", "0", "", "0"]
    assert (missing["status"], missing["wer"]) == ("missing", "")
    measured = [row for row in lines.values() if row["status"] == "measured"]
    assert len(measured) == 7
    assert all(row["wer"] for row in measured)


def test_the_exported_table_says_what_its_grid_left_out_and_calls_clean_speech_clean(grid, tmp_path):
    path = grid / "grid.json"
    data = json.loads(path.read_text())
    for cell in data["cells"]:
        cell["corpus"]["left_out"] = {"test": {"silent_span": 3, "too_long": 2}, "train": {"too_long": 9}}
        cell["settings"] = {"split": "test", "snr_db": {"test": ["Infinity", 0.0], "train": ["Infinity"]}}
    path.write_text(json.dumps(data))
    result = evaluation(grid, "A -> T", 0.0) / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"left_out": {"silent": 1}}))  # of an earlier grid
    exported(grid, "--csv", tmp_path / "table.csv")
    for row in rows(tmp_path / "table.csv"):
        assert row["left_out"] == "5"
        assert json.loads(row["left_out_by_rule"]) == {"silent_span": 3, "too_long": 2}
        assert not [name for name in row if name.startswith("left_out.")]
        assert row["setting.snr_db.test"] == '["clean", 0.0]'
        assert "Infinity" not in row.values()


@pytest.mark.parametrize("option", ["--trn", "--stm"])
def test_transcripts_are_no_single_file(grid, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{option} - is no folder"):
        raise exported(grid, option, "-").exception
    assert not (tmp_path / "-").exists()


def test_an_exported_table_replaces_plain_files_only(grid, tmp_path):
    table, link, pipe = tmp_path / "table.csv", tmp_path / "link.csv", tmp_path / "pipe"
    table.write_text("old")
    link.symlink_to(table.name)
    exported(grid, "--csv", link)
    assert link.is_symlink()
    assert len(rows(table)) == 8
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as thread:
        read = thread.submit(pipe.read_bytes)
        exported(grid, "--csv", pipe)
        assert read.result() == table.read_bytes()
    assert pipe.is_fifo()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize(
    "name", ["-", "/dev/fd/1"]
)  # never /dev/stdout itself: a mistake would cost the machine that link
def test_a_table_on_standard_output_has_its_summary_on_standard_error(grid, tmp_path, name):
    table = tmp_path / "table.csv"
    program = "from dmlm.cli.main import main; main()"
    with table.open("wb") as output:
        command = [sys.executable, "-c", program, "grid", "export", str(grid), "--csv", name]
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=True)
    assert len(rows(table)) == 8
    assert done.stderr == f"{name}: 8 evaluations\n"


def test_an_exported_table_that_cannot_be_written_is_a_sentence(grid, tmp_path):
    (tmp_path / "file").write_text("")
    for path, words in ((tmp_path, "is a folder; give a file"), (tmp_path / "file" / "x.csv", "cannot be written")):
        with pytest.raises(UserError, match=words):
            raise exported(grid, "--csv", path).exception
    with pytest.raises(UserError, match="name the same file"):
        raise exported(grid, "--csv", "-", "--parquet", "-").exception


def test_a_table_is_printed_on_a_terminal_that_lacks_its_letters(grid):
    shutil.rmtree(grid.parent / "trials")
    command = [sys.executable, str(paths.recipe_folder("analysis") / "make_figures.py"), str(grid), "--tables"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "8 evaluations are missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert "   - " in done.stdout


def test_the_exported_table_has_characters_normaliser_and_cut_hypotheses(grid, tmp_path):
    exported(grid, "--csv", tmp_path / "table.csv")
    for row in rows(tmp_path / "table.csv"):
        assert float(row["cer"]) <= float(row["wer"]) or row["wer"] == "0.0"
        assert int(row["characters.reference_characters"]) > int(row["reference_words"])
        assert (row["cut_hypotheses"], row["looped_hypotheses"], row["normaliser"]) == ("0", "0", "basic/2")


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
    exported(grid, "--csv", tmp_path / "table.csv")
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


def test_a_grid_without_any_result_still_has_a_report(grid):
    shutil.rmtree(grid.parent / "trials")
    outcome = CliRunner().invoke(app(), [str(grid), "--tables"])
    assert outcome.exit_code == 1
    assert "—" in outcome.output
    assert "8 evaluations" in outcome.output
    assert "Missing: 8 of 8 evaluations" in (grid / "report.html").read_text()
    assert "8 of 8" in terminal_tables(read_grid(grid))


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


# ---- mistakes, one sentence each, exit code 2


def app():
    """The command line of make_figures."""
    import typer

    program = typer.Typer()
    program.command()(recipes.load("analysis", str(paths.recipe_folder("analysis") / "make_figures.py")).main)
    return program


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
    outcome = CliRunner().invoke(app(), [str(grid)])
    assert isinstance(outcome.exception, UserError)
    assert said in str(outcome.exception)
    assert len(str(outcome.exception).splitlines()) == 1


# ---- the report


class Page(HTMLParser):
    """Collects what a browser would fetch, and checks that tags are closed in order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self):
        super().__init__()
        self.open, self.links, self.images, self.text = [], [], 0, []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.images += tag == "img"
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_report_opens_offline(made):
    source = (made[0] / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(source)
    page.close()
    assert page.open == []
    assert page.images == 5
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in page.links)
    assert "http" not in source.replace("data:image/svg+xml;base64,", "")
    assert "url(" not in source


def test_report_says_what_a_reviewer_asks(made):
    page = Page()
    page.feed((made[0] / "report.html").read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    for said in (
        "basic/2",
        "hypotheses that did not end none",
        "three_equations 1",
        "CC0-1.0",
        "second half",
        "stand-in",
        "2000 resamples",
        "0.010",
    ):
        assert said in text
    assert "WER rises from 0.0 % in clean speech to" in text
    assert "excludes zero: yes" in text
    assert "not measured" in text


def test_terminal_tables(made):
    text = terminal_tables(read_grid(made[0]))
    assert "+50.0*" in text
    assert "+60.0*" in text
    assert "undef." in text
    assert "missing" not in text


def test_levels_run_from_clean_to_loud(made):
    assert read_grid(made[0]).snrs_db == [CLEAN_DB, 0.0, -10.0]


# ---- the folder of figures


def test_figures_have_one_shape():
    for name in recipes.names("analysis"):
        module = recipes.load("analysis", name)
        assert module.__doc__, name
        assert hasattr(module, "draw") == hasattr(module, "ORDER"), name
    assert not (paths.recipe_folder("analysis") / "__init__.py").exists()


def test_figures_are_made_again_by_hand_without_torch(grid, made):
    """In a fresh process, from another folder, as a user runs it; the same results give the same bytes."""
    script = paths.recipe_folder("analysis") / "make_figures.py"
    code = (
        "import sys, runpy; sys.argv = ['make_figures.py', sys.argv[1]]\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'torch', 'transformers'}, loaded\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(grid)]
    outcome = subprocess.run(command, cwd=grid.parent, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines()[-1] == str(grid / "report.html")
    for file in made[1]:
        again = (grid / file.relative_to(made[0])).read_bytes()
        if file.name == "report.html":  # which says how it is made again, with the path of the grid
            again = again.replace(str(grid).encode(), str(made[0]).encode())
        assert again == file.read_bytes(), file.name


def test_no_figure_imports_another():
    siblings = set(recipes.names("analysis"))
    for path in paths.recipe_folder("analysis").glob("*.py"):
        imported = {line.split()[1] for line in path.read_text().splitlines() if line.startswith(("import ", "from "))}
        assert not imported & siblings, path.name


def test_r12_a_store_of_the_first_schema_still_opens():
    """Kept as it was written: a reader that stops understanding it needs a new schema number."""
    results = read_grid(Path(__file__).parent / "stores" / "schema_1" / "store_1")
    assert [cell.label for cell in results.cells] == ["OPT A", "OPT A+L"]
    assert not results.missing
    assert {len(e.utterances) for cell in results.cells for e in cell.evaluations} == {16}
    (clean,) = results.find("opt-nano", "A -> T", math.inf)
    assert (clean.counts.errors.sum(), clean.counts.words.sum()) == (373, 117)
    assert results.cells[1].evaluations[-1].permuted == "L"
