"""`dmlm grid export`: a line for each evaluation, onto any file, pipe or terminal that the user names."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_grid import rows, word_loser, write_grid
from typer.testing import CliRunner

from dmlm import paths
from dmlm.cli.main import app as commands
from dmlm.errors import UserError
from dmlm.results.grid import read_grid

RATES = {"A -> T": {"clean": 0, 0.0: 2, -10.0: 5}, "A+L -> T": {"clean": 0, 0.0: 1, -10.0: 2}}


@pytest.fixture
def grid(tmp_path):
    """A complete grid, without figures."""
    levels = {"snrs_db": ("clean", 0.0, -10.0), "permuted_snrs_db": (-10.0,)}
    return write_grid(tmp_path / "runs", **levels, draws=2, utterances=12, speaker=word_loser(RATES))


def evaluation(grid, template, snr_db):
    return read_grid(grid).find("opt-tiny", template, snr_db)[0].folder.path


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
