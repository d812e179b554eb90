"""`dmlm clean` removes what no grid refers to, and nothing else: no trial at work, nothing behind a link."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from fake_grid import write_grid
from typer.testing import CliRunner

from dmlm.cli.main import app
from dmlm.engines.lease import Leases
from dmlm.errors import UserError
from dmlm.sweep import clean

USED, OLD = "ab" * 32, "cd" * 32  # digests; the first is that of the corpus of `write_grid`


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder with one grid and, of each kind of folder, one that it uses and one that nothing does."""
    home = tmp_path / "home"
    monkeypatch.setenv("DMLM_HOME", str(home))
    grid = write_grid(home / "runs", templates=["A -> T"], snrs_db=["clean"], utterances=2)
    (trial,) = (home / "runs" / "trials").iterdir()
    write(trial, {"spec.json": json.dumps({"corpus": USED, "tokenizers": {"A": "11" * 32}})})
    write(trial.with_name("old"), {"spec.json": json.dumps({"corpus": OLD, "tokenizers": {"A": "22" * 32}})})
    for name, digest in (("used", USED), ("old", OLD)):
        write(home / "corpora" / f"{name}-tiny-1a2b3c4d", {"corpus.json": json.dumps({"digest": digest})})
    write(home / "tokens" / "audio_mfcc-11111111", {"clean/train-0000.safetensors": "1"})
    write(home / "tokens" / "audio_mfcc-22222222", {"clean/train-0000.safetensors": "1"})
    write(home / "tokens" / "codebooks", {"audio_mfcc-0123456789abcdef.safetensors": "1"})
    write(home / "tokens" / "text", {"bpe400-0123456789abcdef.json": ""})
    write(home / "tokens" / "lips_dct-33333333", {"clean/0123456789abcdef.safetensors": "1"})
    assert grid.is_dir()
    age(home)
    return home


UNUSED = [
    *("corpora/old-tiny-1a2b3c4d", "tokens/audio_mfcc-22222222", "tokens/lips_dct-33333333", "runs/trials/old"),
]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def age(home: Path) -> None:
    """Let everything be of yesterday."""
    for path in (home, *home.rglob("*")):
        os.utime(path, (time.time() - 86_400,) * 2, follow_symlinks=False)


def found(home: Path) -> list[str]:
    return [str(one.path.relative_to(home)) for one in clean.unused()]


def everything(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*")}


def test_only_what_no_grid_refers_to_is_listed_and_only_on_demand_removed(home):
    before = everything(home)
    listed = CliRunner().invoke(app, ["clean"]).output
    assert [line.split()[-1] for line in listed.splitlines()[:-1]] == UNUSED
    assert "4 folders" in listed
    assert everything(home) == before
    assert "removed 4 folders" in CliRunner().invoke(app, ["clean", "--remove"]).output
    assert before - everything(home) == {name for name in before if name.startswith(tuple(UNUSED))}
    assert found(home) == []


def test_what_no_recipe_made_stays(home):
    """A corpus that was written by a program of one's own once was removed, its recordings with it."""
    write(home / "corpora" / "imported", {"import.jsonl": ""})
    write(home / "corpora" / "written", {"corpus.json": json.dumps({"digest": OLD})})
    age(home)
    assert found(home) == UNUSED


def test_a_trial_at_work_and_what_it_needs_stays(home):
    with Leases().hold(home / "runs" / "trials" / "old" / "train.lease"):
        age(home)
        assert found(home) == ["tokens/lips_dct-33333333"]


def test_what_a_search_refers_to_stays(home):
    write(home / "runs" / "lr", {"search.csv": "model,trial\nopt-tiny,../trials/old\n"})
    assert found(home) == ["tokens/lips_dct-33333333"]


def test_tokens_of_a_trial_that_has_not_begun_stay(home):
    (trial,) = (path for path in (home / "runs" / "trials").iterdir() if path.name != "old")
    (trial / "spec.json").unlink()
    assert "tokens/audio_mfcc-22222222" not in found(home)


def test_what_was_written_just_now_stays(home):
    write(home / "corpora" / "old-tiny-1a2b3c4d", {"audio/a.wav": ""})
    assert "corpora/old-tiny-1a2b3c4d" not in found(home)


def test_what_was_written_within_the_hour_is_counted(home):
    (home / "corpora" / "old-tiny-1a2b3c4d" / "new.wav").write_text("1" * 2_000_000)
    listed = CliRunner().invoke(app, ["clean"]).output
    assert "left alone: 1 folder, 2.0 MB, because a run may need what was written within the last hour" in listed
    assert "3 folders" in listed.splitlines()[-1]


def test_nothing_is_removed_while_a_run_prepares_or_a_grid_cannot_be_read(home):
    listed = clean.unused()
    with Leases().hold(home / "prepare.lease"), pytest.raises(UserError, match="prepares a run; nothing is removed"):
        clean.remove(listed)
    (home / "runs" / "fake" / "grid.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        clean.remove(listed)
    assert all(one.path.is_dir() for one in listed)


def test_links_are_left_alone(home, tmp_path):
    write(tmp_path / "outside" / "mine", {"a.wav": ""})
    (home / "corpora" / "link").symlink_to(tmp_path / "outside" / "mine")
    shutil.move(home / "tokens", tmp_path / "outside" / "tokens")
    (home / "tokens").symlink_to(tmp_path / "outside" / "tokens")
    (home / "runs" / "trials" / "old" / "link").symlink_to(tmp_path / "outside" / "mine")
    before = everything(tmp_path / "outside")
    age(home)
    assert found(home) == ["corpora/old-tiny-1a2b3c4d", "runs/trials/old"]
    clean.remove(clean.unused())
    assert everything(tmp_path / "outside") == before
    assert (home / "corpora" / "link").is_symlink()


def test_an_interrupted_removal_leaves_no_half_folder_and_is_finished_later(home, monkeypatch):
    def interrupted(path: Path) -> None:
        (path / "spec.json").unlink()
        raise KeyboardInterrupt

    (one,) = (one for one in clean.unused() if one.path.name == "old" and one.path.parent.name == "trials")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            clean.remove([one])
    assert not one.path.exists()
    (left,) = [name for name in found(home) if name.startswith(".trash/old.")]
    assert (home / left).is_dir()
    clean.remove(clean.unused())
    assert not (home / ".trash").exists()


def test_a_grid_whose_folder_cannot_be_read_is_not_passed_over(home):
    (home / "runs" / "fake").chmod(0)
    try:
        if os.access(home / "runs" / "fake", os.R_OK):
            pytest.skip("root reads everything")
        with pytest.raises(PermissionError):
            clean.unused()
    finally:
        (home / "runs" / "fake").chmod(0o755)
