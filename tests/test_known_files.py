"""Files are known by their content: an unchanged one is not read again, a changed one always is."""

import os
import time

import pytest

from dmlm import files, known_files
from dmlm.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A file that is known, and old enough to be trusted."""
    path = tmp_path / "clip.wav"
    path.write_bytes(b"first")
    monkeypatch.setattr(known_files, "SETTLED_NS", -(10**12))
    known_files.digests([path])
    return path


def test_an_unchanged_file_is_not_read_again(path, monkeypatch):
    monkeypatch.setattr(files, "digest", lambda path: pytest.fail("it was read"))
    assert set(known_files.digests([path])) == {path}


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_file_of_the_same_size_with_other_content_is_seen(path, keep_times):
    before, stat = known_files.digests([path])[path], path.stat()
    path.write_bytes(b"other")
    if keep_times:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert known_files.digests([path])[path] == files.digest(path) != before


def test_a_file_that_was_just_written_is_not_trusted_yet(tmp_path, monkeypatch):
    path = tmp_path / "new.wav"
    path.write_bytes(b"first")
    known_files.digests([path])
    stat = os.stat(path)
    monkeypatch.setattr(known_files, "_stat", lambda path: (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    path.write_bytes(b"other")  # within one tick of the file system's clock
    assert known_files.digests([path])[path] == files.digest(path)
    assert time.time_ns() - stat.st_mtime_ns < known_files.SETTLED_NS


def test_missing_files_are_left_out_and_facts_follow_the_content(path, tmp_path):
    moved = path.rename(tmp_path / "moved.wav")
    assert set(known_files.digests([path, moved])) == {moved}
    digest = known_files.digests([moved])[moved]
    known_files.keep("audio/1", {digest: {"samples": 5}})
    assert known_files.facts("audio/1", [digest, "0" * 64]) == {digest: {"samples": 5}}
    assert known_files.facts("audio/2", [digest]) == {}


def test_more_files_than_one_statement_holds(tmp_path):
    paths = [tmp_path / f"{number}.txt" for number in range(known_files.ROWS + 3)]
    for path in paths:
        path.write_text(path.name)
    found = known_files.digests(paths)
    assert [found[path] for path in paths] == [files.digest(path) for path in paths]


def test_a_damaged_database_is_named(path, tmp_path):
    (tmp_path / "home" / "checks.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match=r"checks\.sqlite: .*; remove it"):
        known_files.digests([path])
