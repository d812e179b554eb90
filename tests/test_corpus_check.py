"""Every fault of a corpus is listed, once, before anything is made from it; none of its files is read twice."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from faulty_corpus import RATE_HZ, Folder, plant, speech, write_film
from typer.testing import CliRunner

from dmlm import known_files
from dmlm.cli.main import app
from dmlm.corpus.check import check_corpus, check_folder, check_manifest
from dmlm.corpus.faults import RULES
from dmlm.corpus.manifest import Utterance, read_corpus, without, write_corpus
from dmlm.errors import UserError

CARD = {"name": "mine", "version": "1", "licence": "CC0-1.0"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))


def in_this_process(function, jobs):
    return map(function, jobs)


def no_reading(function, jobs):
    pytest.fail(f"{jobs} was read again")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("faulty") / "corpus")


def test_each_planted_fault_is_listed_once_and_no_other(planted):
    manifest, rules = planted
    faults = check_manifest(manifest, in_this_process)
    assert sorted((fault.utterance, fault.rule) for fault in faults if fault.utterance) == sorted(rules.items())
    assert len(rules) >= 25
    assert [fault.rule for fault in faults if not fault.utterance] == ["unseen_words"]
    for fault in faults:
        assert fault.file.startswith(str(manifest.parent))
        assert (
            fault.line is None or json.loads(manifest.read_text().split("\n")[fault.line - 1])["id"] == fault.utterance
        )
    assert [fault.is_error for fault in faults] == sorted((fault.is_error for fault in faults), reverse=True)


def test_the_command_prints_the_same_as_a_table_and_as_json(planted):
    manifest, rules = planted
    table = CliRunner().invoke(app, ["corpus", "check", str(manifest.parent)])
    assert table.exit_code == 2
    for name, rule in rules.items():
        assert [line for line in table.stdout.splitlines() if f"({name})" in line and f"  {rule}" in line]
    listed = CliRunner().invoke(app, ["corpus", "check", str(manifest), "--json"])
    faults = json.loads(listed.stdout)
    assert {(f["utterance"], f["rule"]) for f in faults} >= set(rules.items())
    assert all(fault["remedy"] == RULES[fault["rule"]].remedy for fault in faults)
    assert listed.exit_code == 2


def test_a_rule_that_is_broken_often_is_cut_short_unless_all_is_asked_for(tmp_path):
    folder = Folder(tmp_path / "mine")
    for number in range(30):
        folder.add(f"clip-{number}", "train" if number else "test", text="one ’")
    folder.write()

    def lines(*options: str) -> list[str]:
        printed = CliRunner().invoke(app, ["corpus", "check", str(folder.path), *options]).stdout
        return [line for line in printed.splitlines() if line.startswith("warning  typographic")]

    assert len(lines()) == 21
    assert lines()[-1].endswith("and 10 more; --all prints them")
    assert len(lines("--all")) == 30


def test_clips_are_offered_to_be_left_out_only_where_a_fault_has_a_clip(tmp_path):
    corpus = corpus_of(tmp_path / "corpus")
    manifest = corpus.folder / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("one two", "two one", 1))
    table = CliRunner().invoke(app, ["corpus", "check", str(corpus.folder)]).stdout
    assert "changed (1)" in table
    assert "leave_out=[changed]" not in table
    (corpus.folder / corpus.utterances[0].audio).write_bytes(b"")
    table = CliRunner().invoke(app, ["corpus", "check", str(corpus.folder)]).stdout
    assert "leave_out=[missing]" in table


def test_a_recipe_without_its_preset_is_told_how_it_is_written():
    with pytest.raises(UserError, match=r"several presets \(smoke, .*\); write three_equations:PRESET, "):
        raise CliRunner().invoke(app, ["corpus", "check", "three_equations"]).exception


def corpus_of(path: Path, count: int = 4):
    """A good corpus: `count` clips to train on and two to test with."""
    folder = Folder(path)
    for number in range(count + 2):
        words = f"two {'one ' * (number % 2)}c d" if number >= count else "one two c d e f g h i j k b"
        folder.add(f"clip-{number}", "train" if number < count else "test", text=words)
    lines = [json.loads(line) for line in folder.lines]
    return write_corpus(path, [Utterance(**line) for line in lines], CARD)


def test_a_good_corpus_has_no_fault_and_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(known_files, "SETTLED_NS", -(10**12))
    corpus = corpus_of(tmp_path / "good")
    assert check_corpus(corpus, ["audio"], in_this_process)[0] == []
    monkeypatch.setattr("dmlm.files.digest", lambda path: pytest.fail(f"{path} was read again"))
    assert check_corpus(corpus, ["audio"], no_reading)[0] == []
    moved = tmp_path / "moved"
    monkeypatch.undo()
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    shutil.move(corpus.folder, moved)
    assert check_corpus(read_corpus(moved), ["audio"], no_reading)[0] == []  # known by content, wherever it lies


def test_what_a_kill_leaves_is_not_read_again(tmp_path, monkeypatch):
    """Findings are kept while files are read, so that a check that was interrupted goes on."""
    monkeypatch.setattr(known_files, "KEEP_EVERY_S", 0.0)
    corpus = corpus_of(tmp_path / "good", count=6)

    def killed(function, jobs):
        (some,) = jobs
        yield function(some[:5])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_corpus(corpus, ["audio"], killed)
    read = []

    def rest(function, jobs):
        read.extend(job for some in jobs for job in some)
        return map(function, jobs)

    assert check_corpus(corpus, ["audio"], rest)[0] == []
    assert len(read) == 3


def test_findings_of_a_file_that_changes_while_it_is_read_are_not_kept(tmp_path):
    corpus = corpus_of(tmp_path / "good")
    path = corpus.folder / "clip-0.wav"
    content = path.read_bytes()

    def spoiling(function, jobs):
        path.write_bytes(b"half of a copy")
        yield from map(function, jobs)
        path.write_bytes(b"half of a copy, and more")

    assert check_corpus(corpus, ["audio"], spoiling)[0]
    path.write_bytes(content)
    assert check_corpus(corpus, ["audio"], in_this_process)[0] == []


def test_media_that_cannot_be_opened_are_faults_among_the_others(tmp_path):
    """Each ended the whole check with a traceback, or a sentence about one file; a pipe was waited for."""
    folder = Folder(tmp_path / "corpus")
    for name in ("folder", "loop", "pipe"):
        folder.add(name, rule="unreadable").unlink()
    (folder.path / "folder.wav").mkdir()
    (folder.path / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(folder.path / "pipe.wav")
    folder.add("long", rule="unreadable", audio="x" * 300 + ".wav")
    for number, name in enumerate(("a\0b.wav", "a\rb.wav")):
        folder.add(f"name-{number}", rule="line", audio=name)
    folder.add("half", rule="duration", duration_s=1.0)
    faults = [fault for fault in check_manifest(folder.write(), in_this_process) if fault.is_error and fault.utterance]
    assert {fault.utterance: fault.rule for fault in faults} == folder.rules


def test_a_file_that_is_given_as_audio_and_as_lips_is_a_fault(tmp_path):
    """It was a KeyError."""
    folder = Folder(tmp_path / "corpus")
    folder.add("clip", audio="v.mp4", lips="v.mp4")
    write_film(folder.path / "v.mp4", "film")
    faults = check_manifest(folder.write(), in_this_process)
    assert ("unreadable", "it is given as audio here, elsewhere as video") in [(f.rule, f.what) for f in faults]


@pytest.mark.parametrize("how", ["replaced", "cut", "removed", "swapped", "emptied"])
def test_media_that_changed_behind_the_manifest_are_named(tmp_path, how):
    corpus = corpus_of(tmp_path / "corpus")
    first, second = (corpus.folder / u.audio for u in corpus.utterances[:2])
    if how == "replaced":
        soundfile.write(first, speech(99), RATE_HZ)
    elif how == "cut":
        first.write_bytes(first.read_bytes()[:-100])
    elif how == "removed":
        first.unlink()
    elif how == "emptied":
        first.write_bytes(b"")
    else:
        first.rename(tmp_path / "first")
        second.rename(first)
        (tmp_path / "first").rename(second)
    faults, _ = check_corpus(read_corpus(corpus.folder), ["audio"], in_this_process)
    names = {fault.utterance for fault in faults if fault.rule in ("changed", "missing") and fault.is_error}
    assert names == ({"clip-0", "clip-1"} if how == "swapped" else {"clip-0"})


def test_a_manifest_that_changed_is_a_fault_among_the_others(tmp_path):
    corpus = corpus_of(tmp_path / "corpus")
    manifest = corpus.folder / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("one two c d e f g h i j k b", " ", 1))
    rules = [fault.rule for fault in check_folder(corpus.folder, in_this_process)]
    assert {"changed", "empty_text"} <= set(rules)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_an_error(tmp_path, split):
    corpus = corpus_of(tmp_path / "corpus")
    rest = without(corpus, {u.id: "too_long" for u in corpus.split(split)})
    faults, _ = check_corpus(rest, ["audio"], in_this_process)
    assert (f"split {split} has no utterance", True) in [(fault.what, fault.is_error) for fault in faults]


def test_texts_and_speakers_that_training_shares_are_said(tmp_path):
    folder = Folder(tmp_path / "corpus")
    for number, split in enumerate(("train", "train", "test")):
        folder.add(f"clip-{number}", split, text="one  Two" if number else "one two", speaker=f"s{number % 2}")
    said = {f.rule: f.what for f in check_manifest(folder.write(), in_this_process)}
    assert said["same_text"] == "1 of 1 texts of split test are also in training"
    assert said["same_speaker"] == "1 speaker of split test also in training: s0"


@pytest.mark.parametrize("lacking", ["name", "version", "licence"])
def test_a_card_says_name_version_and_licence(tmp_path, lacking):
    with pytest.raises(UserError, match=f"has no {lacking}; give name, version, licence"):
        write_corpus(tmp_path, [], {key: value for key, value in CARD.items() if key != lacking})


def test_the_digests_of_the_media_are_those_of_sha256sum(tmp_path):
    corpus = corpus_of(tmp_path / "corpus")
    lines = (corpus.folder / "media.sha256").read_text().splitlines()
    assert lines[0] == f"{known_files.digests([corpus.folder / 'clip-0.wav']).popitem()[1]}  clip-0.wav"
    (corpus.folder / "media.sha256").write_text("")
    with pytest.raises(UserError, match=r"media\.sha256 is missing or was changed"):
        _ = read_corpus(corpus.folder).media_digests


def test_durations_may_be_off_by_a_frame_but_not_by_more(tmp_path):
    folder = Folder(tmp_path / "corpus")
    for number, off_s in enumerate((-0.05, 0.05, 0.07, -0.07)):
        folder.add(f"clip-{number}", duration_s=2 + off_s)
    named = [f.utterance for f in check_manifest(folder.write(), in_this_process) if f.rule == "duration"]
    assert named == ["clip-2", "clip-3"]


def test_a_constant_recording_is_silent(tmp_path):
    folder = Folder(tmp_path / "corpus")
    soundfile.write(folder.add("stuck"), np.full(32_000, 0.25, np.float32), RATE_HZ)
    assert "silent" in [f.rule for f in check_manifest(folder.write(), in_this_process) if f.utterance == "stuck"]


def test_the_page_of_the_rules_has_every_rule_as_it_is():
    page = (Path(__file__).parents[1] / "docs" / "checks.md").read_text("utf-8")
    rows = {cells[0].strip("` "): cells[1:] for line in page.splitlines() if (cells := line.split("|")[1:-1])}
    for rule in RULES.values():
        severity, _, remedy = (cell.strip() for cell in rows[rule.name])
        assert severity == rule.severity
        assert remedy == rule.remedy + ("" if rule.of_clips else " (clips cannot be left out by it)")
