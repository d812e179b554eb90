"""Files are known by their content: an unchanged one is not read again, a changed one always is."""

import os
import sqlite3
import time
from contextlib import closing

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
    stat = known_files._stat(path)
    monkeypatch.setattr(known_files, "_stat", lambda path: stat)
    path.write_bytes(b"other")  # within one tick of the file system's clock
    assert known_files.digests([path])[path] == files.digest(path)
    assert time.time_ns() - stat.ctime_ns < known_files.SETTLED_NS


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


class OfOneTick:
    """What `os.stat` says where the clock of the file system is so coarse that all files have equal times."""

    def __init__(self, path, stat=os.stat, **options):
        self.stat = stat(path, **options)

    def __getattr__(self, name):
        return 1 if name in ("st_mtime_ns", "st_ctime_ns") else getattr(self.stat, name)


@pytest.mark.parametrize("how", ["moved", "linked"])
def test_another_file_of_the_same_times_and_size_is_seen(tmp_path, monkeypatch, how):
    """`mv audio tmp; mv enhanced audio` passed: what one program writes in a row has equal times."""
    audio, enhanced = (tmp_path / name for name in ("audio", "enhanced"))
    for folder in (audio, enhanced):
        folder.mkdir()
        (folder / "clip.wav").write_bytes(folder.name[:5].encode())
    monkeypatch.setattr(os, "stat", OfOneTick)
    if how == "linked":
        audio = tmp_path / "link"
        audio.symlink_to("audio")
    before = known_files.digest(audio / "clip.wav")
    if how == "linked":
        audio.unlink()
        audio.symlink_to(enhanced)
    else:
        audio.rename(tmp_path / "tmp")
        enhanced.rename(audio)
    assert known_files.digest(audio / "clip.wav") == files.digest(audio / "clip.wav") != before


def test_a_file_dated_in_the_future_is_known(path, monkeypatch):
    """It was read again at every check. Only `ctime` counts, which nobody can set."""
    os.utime(path, (4e9, 4e9))
    known_files.digests([path])
    monkeypatch.setattr(files, "digest", lambda path: pytest.fail("it was read"))
    assert set(known_files.digests([path])) == {path}


def test_a_file_that_settles_while_others_are_read_is_not_trusted_yet(tmp_path, monkeypatch):
    path = tmp_path / "new.wav"
    path.write_bytes(b"first")
    stat, digest = known_files._stat(path), files.digest
    monkeypatch.setattr(known_files, "SETTLED_NS", 50_000_000)

    def slow(path):
        found = digest(path)
        time.sleep(0.1)  # longer than it takes to settle
        return found

    monkeypatch.setattr(known_files, "_stat", lambda path: stat)
    monkeypatch.setattr(files, "digest", slow)
    known_files.digests([path])
    path.write_bytes(b"other")  # was within the tick of the first reading
    assert known_files.digests([path])[path] == digest(path)


def test_what_cannot_be_read_is_a_reason_or_a_sentence(path, tmp_path):
    """Each was a traceback; a pipe was waited for."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    reasons = {
        "loop": "symbolic links", "folder": "it is a folder", "pipe": "not an ordinary file", "x" * 300: "name too long",
        "a\0b": "null",
    }  # fmt: skip
    found, refused = known_files.readable([path, tmp_path / "none", *(tmp_path / name for name in reasons)])
    assert set(found) == {path}
    assert {each.name for each in refused} == set(reasons)
    for name, reason in reasons.items():
        assert reason in refused[tmp_path / name]
        with pytest.raises(UserError, match=rf"cannot be read \(.*{reason}.*\); restore it"):
            known_files.digests([path, tmp_path / name])


def test_what_a_kill_leaves_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(known_files, "SETTLED_NS", -(10**12))
    monkeypatch.setattr(known_files, "KEEP_EVERY_S", 0.0)
    monkeypatch.setenv("DMLM_WORKERS", "1")
    paths = [tmp_path / f"{number}.wav" for number in range(6)]
    for path in paths:
        path.write_bytes(b"x")
    read, digest = [], files.digest

    def killed(path):
        read.append(path)
        if path.name == "3.wav":
            raise KeyboardInterrupt
        return digest(path)

    monkeypatch.setattr(files, "digest", killed)
    with pytest.raises(KeyboardInterrupt):
        known_files.digests(paths)
    assert paths[5] not in read[:4]
    read.clear()
    paths.pop(3)
    assert len(known_files.digests(paths)) == 5
    assert not set(read) & set(paths[:3])


def test_a_database_of_an_earlier_version_is_made_again(path, tmp_path):
    (tmp_path / "home" / "checks.sqlite").unlink()
    with closing(sqlite3.connect(tmp_path / "home" / "checks.sqlite")) as database, database:
        database.execute(
            "create table files (path blob primary key, size int, mtime_ns int, ctime_ns int, digest text) without rowid"
        )
    assert known_files.digests([path]) == {path: files.digest(path)}


def test_a_damaged_database_is_named(path, tmp_path):
    (tmp_path / "home" / "checks.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match=r"checks\.sqlite: .*; remove it"):
        known_files.digests([path])


@pytest.mark.parametrize("row", ['{"samples": 5', "5", None, b"\xff"])
def test_a_torn_row_is_a_damaged_database(path, tmp_path, row):
    digest = known_files.digests([path])[path]
    known_files.keep("audio/1", {digest: {"samples": 5}})
    with closing(sqlite3.connect(tmp_path / "home" / "checks.sqlite")) as database, database:
        database.execute("update facts set facts = ?", [row])
    with pytest.raises(UserError, match=r"checks\.sqlite: .*; remove it, and every file is read again"):
        known_files.facts("audio/1", [digest])


def test_a_database_that_is_locked_or_cannot_be_opened_need_not_be_removed(path, tmp_path, monkeypatch):
    database = tmp_path / "home" / "checks.sqlite"
    monkeypatch.setattr(known_files, "WAIT_S", 0)
    with closing(sqlite3.connect(database)) as other:
        other.execute("begin exclusive")
        with pytest.raises(UserError, match=r"database is locked; another process holds it: wait for that one"):
            known_files.digests([path])
    database.unlink()
    database.mkdir()
    with pytest.raises(UserError, match=r"unable to open database file; make it and its folder writable, or set DMLM"):
        known_files.digests([path])
    monkeypatch.setenv("DMLM_HOME", str(path))
    with pytest.raises(UserError, match=r"File exists; make it and its folder writable"):
        known_files.digests([path])


def test_a_folder_among_settings_counts_with_what_its_links_lead_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "real" / "weights").write_text("first")
    (tmp_path / "model" / "sub").symlink_to(tmp_path / "real")
    (tmp_path / "model" / "circle").symlink_to(tmp_path / "model")
    first = known_files.by_content({"model": str(tmp_path / "model")})
    (tmp_path / "real" / "weights").write_text("other")
    assert known_files.by_content({"model": str(tmp_path / "model")}) != first
