"""An import that is interrupted goes on and gives the same corpus; one of changed recordings is told from the one before."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import own_recordings as own
import pytest
import soundfile
from grids import run_here
from own_recordings import imported

from dmlm import files, processes
from dmlm.corpus.imported import corpus_named
from dmlm.corpus.manifest import in_fold, read_corpus
from dmlm.errors import UserError


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home é"))


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(processes, "run", lambda function, jobs, *_, **__: map(function, jobs))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder that takes some seconds to import, and the digest of its corpus."""
    folder = tmp_path_factory.mktemp("long") / "mine"
    own.write_folder(folder, 8)
    for number in range(8):
        soundfile.write(folder / f"clip-{number:02}.wav", own.tone(number, 5.0), own.RATE_HZ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMLM_HOME", str(folder.parent / "home"))
        patch.setattr(processes, "run", lambda function, jobs, *_, **__: map(function, jobs))
        return folder, imported(folder, "--spans", "speech").digest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_import_goes_on_and_gives_the_same_corpus(number, undisturbed):
    source, digest = undisturbed
    folder = corpus_named("mine")
    command = [sys.executable, "-c", own.DMLM, "corpus", "import", str(source), "--to", "mine", "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and (not (folder / "import.jsonl").is_file() or '"key"' not in _records(folder)):
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    made = _records(folder).count('"key"')
    assert not (folder / "corpus.json").exists(), "it was interrupted too late"
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert errors.endswith("Interrupted. The same command continues from here.\n")
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert 0 < made < _records(folder).count('"key"') == 8  # what was made is not made again
    assert read_corpus(folder).digest == digest
    assert not list(folder.rglob("*.part"))


def _records(folder):
    return (folder / "import.jsonl").read_text()


def test_a_record_that_a_kill_cut_short_is_made_again_alone(in_process, tmp_path):
    own.write_folder(tmp_path / "mine")
    digest = imported(tmp_path / "mine").digest
    folder = corpus_named("mine")
    (folder / "corpus.json").unlink()
    (folder / "import.jsonl").write_bytes((folder / "import.jsonl").read_bytes()[:-30])
    (folder / "audio" / ".clip-11.flac.0123456789ab.part").write_bytes(b"half")
    assert imported(tmp_path / "mine").digest == digest
    assert len([line for line in _records(folder).split("\n") if line.startswith("{")]) == 13
    assert not list(folder.rglob("*.part"))


def test_two_ids_of_one_recording_have_each_its_own_file_when_an_import_goes_on(in_process, tmp_path):
    rows = own.write_folder(tmp_path / "mine")
    for row in rows:
        row["audio"] = "clip-00.wav"
    table = own.write_jsonl(tmp_path / "x.jsonl", rows, tmp_path / "mine")
    first = imported(table, "--split", "id")
    (first.folder / "corpus.json").unlink()
    again = imported(table, "--split", "id")
    assert again.digest == first.digest
    assert len({utterance.audio for utterance in again.utterances}) == 12


def test_a_second_import_of_the_same_does_nothing(in_process, tmp_path):
    own.write_folder(tmp_path / "mine")
    first = imported(tmp_path / "mine")
    before = (first.folder / "corpus.json").stat()
    assert imported(tmp_path / "mine").digest == first.digest
    assert (first.folder / "corpus.json").stat() == before


CHANGES = {
    "a recording": lambda folder: soundfile.write(folder / "clip-03.wav", own.tone(30), own.RATE_HZ),
    "a text": lambda folder: (folder / "clip-03.txt").write_text("other words"),
    "one clip less": lambda folder: [path.unlink() for path in folder.glob("clip-03.*")],
    "a clip without text": lambda folder: shutil.copy(folder / "clip-03.wav", folder / "clip-20.wav"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_not_taken_for_what_was_imported(change, in_process, tmp_path):
    own.write_folder(tmp_path / "mine")
    first = imported(tmp_path / "mine", "--leave-out", "no_text")
    CHANGES[change](tmp_path / "mine")
    with pytest.raises(UserError, match="Corpus mine exists, made of other clips, of files that have changed since"):
        imported(tmp_path / "mine", "--leave-out", "no_text")
    assert read_corpus(first.folder).digest == first.digest
    again = imported(tmp_path / "mine", "--leave-out", "no_text", "--replace")
    fresh = imported(tmp_path / "mine", "--leave-out", "no_text", to="fresh")
    assert again.digest == fresh.digest
    assert (again.digest == first.digest) == (change == "a clip without text")


def test_files_are_named_as_in_a_fresh_import_when_an_id_is_added(in_process, tmp_path):
    rows = own.write_folder(tmp_path / "mine")
    imported(own.write_jsonl(tmp_path / "x.jsonl", rows, tmp_path / "mine"))
    rows.append({**rows[3], "id": "CLIP-03"})
    table = own.write_jsonl(tmp_path / "x.jsonl", rows, tmp_path / "mine")
    assert imported(table, "--replace").digest == imported(table, to="fresh").digest


def test_the_order_of_a_table_and_its_place_do_not_matter(in_process, tmp_path):
    rows = own.write_folder(tmp_path / "mine")
    first = imported(own.write_jsonl(tmp_path / "x.jsonl", rows, tmp_path / "mine"))
    again = imported(own.write_csv(tmp_path / "y.csv", rows[::-1], tmp_path / "mine"))  # is known, so not refused
    assert again.card == first.card


def test_new_splits_make_no_media_again(in_process, tmp_path):
    own.write_folder(tmp_path / "mine")
    first = imported(tmp_path / "mine")
    before = {path: path.stat().st_mtime_ns for path in (first.folder / "audio").iterdir()}
    folds = imported(tmp_path / "mine", "--folds", "3", "--replace")
    assert {path: path.stat().st_mtime_ns for path in (first.folder / "audio").iterdir()} == before
    assert folds.card["folds"] == 3
    tested = [u.id for fold in range(3) for u in in_fold(folds, fold).split("test")]
    assert sorted(tested) == sorted(u.id for u in folds.utterances)  # each once


def test_a_kill_between_manifest_and_card_leaves_no_corpus_that_is_half_old(in_process, tmp_path, monkeypatch):
    own.write_folder(tmp_path / "mine")
    imported(tmp_path / "mine")
    write = files.write_text

    def killed(path, text):
        write(path, text)
        if path.name == "manifest.jsonl":
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_text", killed)
    with pytest.raises(UserError, match="did not finish"):
        imported(tmp_path / "mine", "--folds", "3", "--replace")
    monkeypatch.setattr(files, "write_text", write)
    assert imported(tmp_path / "mine", "--folds", "3").card["folds"] == 3


def test_a_full_disk_is_said_and_what_was_made_is_kept(in_process, tmp_path, monkeypatch):
    own.write_folder(tmp_path / "mine")
    folder, write = corpus_named("mine"), Path.write_bytes

    def full(path, content):
        if len(list((folder / "audio").glob("*.flac"))) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device"):
        imported(tmp_path / "mine")
    monkeypatch.setattr(Path, "write_bytes", write)
    before = {path: path.stat().st_mtime_ns for path in (folder / "audio").iterdir()}
    assert len(before) == 5
    assert imported(tmp_path / "mine").counts == {"train": 8, "val": 2, "test": 2}


def test_folds_are_an_axis_of_a_grid_that_reads_the_corpus_by_name(in_process, tmp_path):
    own.write_folder(tmp_path / "mine")
    imported(tmp_path / "mine", "--folds", "3")
    grid = tmp_path / "folds.yaml"
    grid.write_text(GRID)
    home = Path(os.environ["DMLM_HOME"])
    ran = run_here(home, "--grid", str(grid))
    assert ran.returncode == 0, ran.stderr
    found = [path.read_text("utf-8").splitlines() for path in home.glob("runs/trials/*/evals/*/utterances.jsonl")]
    assert sorted(json.loads(line)["id"] for lines in found for line in lines) == [f"clip-{n:02}" for n in range(12)]
    assert len(found) == 3
    pooled, *others = csv.DictReader((home / "runs/folds/figures/summary_wer.csv").open(encoding="utf-8"))
    assert (pooled["utterances"], others) == ("12", [])


GRID = """
about: Folds of recordings.
base:
  corpus: mine
  tokenizers: {A: {recipe: audio_mfcc, settings: {clusters: 8}}}
  text: {vocab_size: 300}
  snr_db: {train: [clean], test: [clean]}
  backbone: opt-nano
  train: {steps: 2, batch_size: 2}
  decode: {max_new_tokens: 16}
axes: {template: [A -> T], corpus.fold: [0, 1, 2]}
"""


def test_what_was_overwritten_is_not_taken_for_what_was_made_before(in_process, tmp_path):
    """Importing one, then another, then the first again once kept the media of the other under the first's name."""
    for name, number in (("mine", 3), ("other", 30)):
        own.write_folder(tmp_path / name)
        soundfile.write(tmp_path / name / "clip-03.wav", own.tone(number), own.RATE_HZ)
    first = imported(tmp_path / "mine")
    assert imported(tmp_path / "other", "--replace").digest != first.digest
    assert imported(tmp_path / "mine", "--replace").digest == first.digest


def test_an_import_that_was_killed_amid_another_leaves_nothing_that_is_taken_for_the_first(
    in_process, tmp_path, monkeypatch
):
    for name, number in (("mine", 3), ("other", 30)):
        own.write_folder(tmp_path / name)
        soundfile.write(tmp_path / name / "clip-03.wav", own.tone(number), own.RATE_HZ)
    first = imported(tmp_path / "mine")

    def killed(function, jobs, *_, **__):
        for job in jobs:
            function(job)  # nothing of it is recorded
        raise KeyboardInterrupt

    run = processes.run
    monkeypatch.setattr(processes, "run", killed)
    with pytest.raises(UserError, match="did not finish"):
        imported(tmp_path / "other", "--replace")
    monkeypatch.setattr(processes, "run", run)
    assert imported(tmp_path / "mine").digest == first.digest


def test_a_clip_that_was_left_out_and_is_mended_is_noticed(in_process, tmp_path):
    own.write_folder(tmp_path / "mine")
    (tmp_path / "mine/clip-03.wav").write_bytes(b"no sound")
    assert len(imported(tmp_path / "mine", "--leave-out", "unreadable").utterances) == 11
    assert len(imported(tmp_path / "mine", "--leave-out", "unreadable").utterances) == 11  # does nothing
    soundfile.write(tmp_path / "mine/clip-03.wav", own.tone(3), own.RATE_HZ)
    with pytest.raises(UserError, match="of files that have changed since"):
        imported(tmp_path / "mine", "--leave-out", "unreadable")
    assert len(imported(tmp_path / "mine", "--leave-out", "unreadable", "--replace").utterances) == 12


def test_a_recording_that_was_withdrawn_is_removed(tmp_path):
    own.write_folder(tmp_path / "mine")
    first = imported(tmp_path / "mine")
    (tmp_path / "mine" / "clip-03.wav").unlink()
    (tmp_path / "mine" / "clip-03.txt").unlink()
    again = imported(tmp_path / "mine", "--replace")
    assert len(again.utterances) == len(first.utterances) - 1
    assert {f"audio/{path.name}" for path in (again.folder / "audio").iterdir()} == {u.audio for u in again.utterances}
