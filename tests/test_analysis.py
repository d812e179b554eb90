"""Figures and report from a grid on disk: right numbers, gaps shown as gaps, nothing from outside, no torch."""

import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from fake_grid import figures_program, rows, word_loser, write_grid
from typer import Typer
from typer.testing import CliRunner

from dmlm import paths, recipes
from dmlm.results.figures import make_figures
from dmlm.results.grid import read_grid
from dmlm.results.measures import System, benefit_point, compared_systems, systems, wer_point
from dmlm.results.tables import terminal_tables
from dmlm.snr import CLEAN_DB

RATES = {"A -> T": {"clean": 0, 0.0: 2, -10.0: 5}, "A+L -> T": {"clean": 0, 0.0: 1, -10.0: 2}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A complete grid, with its figures made once."""
    root = tmp_path_factory.mktemp("runs")
    folder = write_grid(
        root,
        snrs_db=("clean", 0.0, -10.0),
        permuted_snrs_db=(-10.0,),
        draws=2,
        utterances=12,
        speaker=word_loser(RATES),
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


def test_a_grid_without_any_result_still_has_a_report(grid):
    shutil.rmtree(grid.parent / "trials")
    outcome = CliRunner().invoke(figures_program(), [str(grid), "--tables"])
    assert outcome.exit_code == 1
    assert "—" in outcome.output
    assert "8 evaluations" in outcome.output
    assert "Missing: 8 of 8 evaluations" in (grid / "report.html").read_text()
    assert "8 of 8" in terminal_tables(read_grid(grid))


# ---- mistakes, one sentence each, exit code 2


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
