"""Mistakes in what is imported: each is one sentence that says what, where and what to do, and nothing is lost."""

import json
import os
import re
import shutil
import subprocess
import sys

import films
import numpy as np
import own_recordings as own
import pytest
import soundfile
from own_recordings import imported
from typer.testing import CliRunner

from dmlm import processes
from dmlm.cli.main import app
from dmlm.corpus import face_points
from dmlm.corpus.imported import corpus_named
from dmlm.errors import UserError


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home é"))
    monkeypatch.setattr(processes, "run", lambda function, jobs, *_, **__: map(function, jobs))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media") / "mine"
    own.write_folder(folder)
    return folder


HEADER = "id,text,audio\n"
ROWS = "".join(f"a{number},hello {number},clip-{number:02}.wav\n" for number in range(12))
TABLES = {  # a file, its text, and the complaint; None: there is none
    "more columns": ("x.csv", f"{HEADER}{ROWS}q,one, two,clip-00.wav\n", r"line 14 has more columns than the header"),
    "fewer columns": (
        "x.csv",
        f"{HEADER}{ROWS}q,one\n",
        r"line 14 \(q\): its audio is empty; .* --leave-out 'no_audio'",
    ),
    "no text": (
        "x.csv",
        f"{HEADER}{ROWS}q,,clip-00.wav\n",
        r"line 14 \(q\): its text is empty; .* --leave-out 'no_text'",
    ),
    "an open quotation mark": ("x.csv", f'{HEADER}{ROWS}q,"one,clip-00.wav\n', "line 13: unexpected end of data"),
    "no header": (
        "x.csv",
        ROWS,
        r"has no audio and no text; name the column: --column audio=NAME --column text=NAME \(there are: a0",
    ),
    "header only": ("x.csv", HEADER, "describes no clip"),
    "nothing": ("x.csv", "", "describes no clip"),
    "two columns of one name": ("x.csv", f"id,text,audio,text\n{ROWS}", "has two columns 'text'"),
    "a repeated id": ("x.csv", f"{HEADER}{ROWS}a3,x,clip-01.wav\n", r"\(a3\): the id is already used by .*line 5"),
    "a file that is not there": (
        "x.csv",
        f"{HEADER}{ROWS}q,x,y.wav\n",
        r"no_file 1.*y.wav \(q\): there is no such file",
    ),
    "columns exchanged": ("x.csv", f"id,audio,text\n{ROWS.replace('hello', 'hello ' * 90)}", "there is no such file"),
    "no form": ("x.xlsx", "PK", "is no table that is read"),
    "no object": ("x.jsonl", "[1]\n", "line 1 is no JSON object"),
    "no JSON": ("x.jsonl", '{"id":\n', "line 1 is not JSON"),
    "a list": ("x.json", "[\n{}\n]\n", "line 1 is not JSON .* write one clip a line"),
    "a time in words": ("x.jsonl", '{"start_s": [1], "text": "a", "audio": "b"}', r"start_s is \[1\], and no number"),
    "a text that is none": ("x.jsonl", '{"text": ["a"], "audio": "b"}', "text is .*, and must be text"),
    "no time": ("x.jsonl", '{"start_s": NaN, "text": "a", "audio": "b"}', "start_s: Input should be a finite number"),
    "a time before": ("x.jsonl", '{"start_s": -1, "text": "a", "audio": "b"}', "greater than or equal to 0"),
    "an end before its start": ("x.jsonl", '{"start": 3, "end": 2, "text": "a", "audio": "b"}', "must be later than"),
    "a split of no name": ("x.jsonl", '{"split": "tran", "text": "a", "audio": "b"}', r"\(got 'tran'\)"),
    "spans that are none": ("x.csv", 'text,audio,spans\na,b,"[[1, 2, 3]]"\n', "spans.0: Tuple should have at most 2"),
}


@pytest.mark.parametrize("mistake", TABLES)
def test_a_mistake_in_a_table_is_named_with_its_line(mistake, media, tmp_path):
    name, text, complaint = TABLES[mistake]
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=complaint):
        imported(tmp_path / name, "--media", str(media))
    assert not (corpus_named("mine") / "corpus.json").exists()


OPTIONS = {
    ("--column", "text=words"): "there is no column 'words'; known: audio, id, text",
    ("--column", "txt=text"): "there is no field 'txt'; did you mean 'text'",
    ("--column", "text"): "must read FIELD=NAME",
    ("--leave-out", "no_txt"): "did you mean 'no_text'",
    ("--split", "speakers"): r"split: Input should be 'given', 'speaker' or 'id' \(got 'speakers'\)",
    ("--split", "speaker"): "line 2 names no speaker, and --split speaker needs one",
    ("--split", "given"): "line 2 has no split; give every clip one",
    ("--folds", "2"): "greater than or equal to 3",
    ("--folds", "13"): "12 different ids cannot be dealt to 13 parts",
    (
        "--folds",
        "3",
        "--split",
        "given",
    ): r"^dmlm corpus import: folds \(3\) and split \(given\) contradict each other\.$",
    ("--test", "0.8", "--val", "0.3"): "leave nothing to train on",
    ("--form", "kaldy"): "did you mean 'kaldi'",
    ("--form", "kaldi"): "has no wav.scp",
    ("--media", "no/such"): "there is no such folder",
    ("--crop", "mouths"): "--crop mouths: did you mean 'mouth'",
}


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_a_wrong_option_is_named(options, media, tmp_path):
    (tmp_path / "x.csv").write_text(HEADER + ROWS)
    given = options if "--media" in options else (*options, "--media", str(media))
    with pytest.raises(UserError, match=OPTIONS[options]):
        imported(tmp_path / "x.csv", *given)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
@pytest.mark.parametrize("change", [("\n", "\r\n"), (",", ";")])
def test_tables_of_spreadsheets_are_read(encoding, change, media, tmp_path):
    (tmp_path / "x.csv").write_bytes(
        f'{HEADER}q,"é ""a""\n\u2028b",clip-11.wav\n{ROWS}'.replace(*change).encode(encoding)
    )
    corpus = imported(tmp_path / "x.csv", "--media", str(media))
    assert len(corpus.utterances) == 13
    assert corpus.utterances[-1].text == 'é "a" b'


def test_a_table_in_another_encoding_is_refused(media, tmp_path):
    (tmp_path / "x.csv").write_bytes(f"{HEADER}é,é,clip-00.wav\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"x.csv is not UTF-8 text .* at byte 14"):
        imported(tmp_path / "x.csv", "--media", str(media))


def test_a_stretch_may_be_given_by_its_duration(media, tmp_path):
    rows = [{"audio_filepath": f"clip-{n:02}.wav", "offset": 0.1, "duration": 0.2, "text": f"a {n}"} for n in range(12)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = imported(tmp_path / "x.jsonl", "--media", str(media))
    assert {utterance.duration_s for utterance in corpus.utterances} == {0.2}
    assert corpus.utterances[0].id == "clip-00-0.10"


IDS = [
    "a/b",
    "a b",
    "ü",
    "日本" * 40,
    "x" * 300,
    "A",
    "a",
    "..",
    "../../x",
    ".hidden",
    "a%2Fb",
    "a=b",
    "-rf",
    "a\nb",
    "a\tb",
]


def test_every_id_gets_files_of_its_own_inside_the_corpus(media, tmp_path):
    rows = [{"id": name, "text": "x", "audio": f"clip-{n % 12:02}.wav"} for n, name in enumerate(IDS)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = imported(tmp_path / "x.jsonl", "--media", str(media))
    assert [utterance.id for utterance in corpus.utterances] == sorted(IDS)
    names = {path.name.casefold() for path in (corpus.folder / "audio").iterdir()}
    assert names == {utterance.audio.removeprefix("audio/").casefold() for utterance in corpus.utterances}
    assert len(names) == len(IDS)


def spoil(folder, mistake):
    wav, text = folder / "clip-03.wav", folder / "clip-03.txt"
    match mistake:
        case "no audio":
            wav.unlink()
        case "no text":
            text.unlink()
        case "empty text":
            text.write_text(" \n")
        case "two recordings":
            shutil.copy(wav, folder / "clip-03.flac")
        case "a text as recording":
            wav.write_text("hello")
        case "a cut recording":
            wav.write_bytes(wav.read_bytes()[:-3_000])
        case "NaN":
            soundfile.write(wav, np.array([0.0, np.nan] * 4_000), own.RATE_HZ, "FLOAT")
        case "another encoding":
            text.write_bytes("é".encode("latin-1"))
        case "a folder":
            wav.unlink()
            wav.mkdir()
        case "a name of bytes":
            for suffix in (".wav", ".txt"):
                (folder / f"clip-03{suffix}").rename(os.fsdecode(os.fsencode(folder) + b"/\xff" + suffix.encode()))
        case "nothing":
            shutil.rmtree(folder)
            folder.mkdir()


FOLDERS = {
    "no audio": r"clip-03.txt \(clip-03\): it has no recording beside it; .* --leave-out 'no_audio'",
    "no text": r"clip-03.wav \(clip-03\): it has no transcript beside it, clip-03.txt; .* --leave-out 'no_text'",
    "empty text": r"clip-03.txt \(clip-03\): the text is empty; .* --leave-out 'empty_text'",
    "two recordings": r"\(clip-03\): clip-03.flac and clip-03.wav are both its audio; .* --leave-out 'clash'",
    "a text as recording": r"clip-03.wav \(clip-03\): cannot be read as audio \(Invalid data .*\); replace the file; or",
    "a cut recording": r"truncated 1.*clip-03.wav \(clip-03\): ends before its header says",
    "NaN": r"holds NaN or infinite samples",
    "another encoding": r"clip-03.txt is not UTF-8 text",
    "a folder": r"clip-03.txt \(clip-03\): it has no recording beside it",
    "a name of bytes": r"id: Input should be a valid string",
    "nothing": "describes no clip",
}


@pytest.mark.parametrize("mistake", FOLDERS)
def test_a_mistake_in_a_folder_is_named_with_its_file(mistake, media, tmp_path):
    shutil.copytree(media, tmp_path / "mine")
    spoil(tmp_path / "mine", mistake)
    with pytest.raises(UserError, match=FOLDERS[mistake]) as error:
        imported(tmp_path / "mine")
    if rule := re.search("--leave-out '(.*)'", str(error.value)):
        corpus = imported(tmp_path / "mine", "--leave-out", rule[1])
        assert corpus.card["not_imported"] == {rule[1]: 1}
        assert len(corpus.utterances) == 11


def test_several_rules_are_left_out_as_the_error_writes_them(media, tmp_path):
    shutil.copytree(media, tmp_path / "mine [1]")
    (tmp_path / "mine [1]" / "clip-03.wav").unlink()
    (tmp_path / "mine [1]" / "clip-04.txt").unlink()
    with pytest.raises(UserError, match=r"mine \[1\]/clip-03.txt .*: --leave-out 'no_audio, no_text'\."):
        imported(tmp_path / "mine [1]")
    assert imported(tmp_path / "mine [1]", "--leave-out", "no_audio, no_text").card["not_imported"] == {
        "no_audio": 1,
        "no_text": 1,
    }


def test_a_video_without_a_face_is_named(media, tmp_path, monkeypatch):
    shutil.copytree(media, tmp_path / "mine")
    films.write(tmp_path / "mine" / "clip-03.mp4", 10, 25)
    monkeypatch.setitem(face_points.DETECTORS, "dlib", lambda: lambda frames: (None for _ in frames))
    options = ("--crop", "mouth", "--landmarks", "dlib")
    with pytest.raises(UserError, match=r"no_face 1.*clip-03.mp4 \(clip-03\): shows no face in any of its 10 frames"):
        imported(tmp_path / "mine", *options)
    assert imported(tmp_path / "mine", *options, "--leave-out", "no_face").card["not_imported"] == {"no_face": 1}


def test_the_command_prints_one_sentence_and_ends_with_2(media, tmp_path):
    shutil.copytree(media, tmp_path / "mine")
    (tmp_path / "mine" / "clip-03.wav").unlink()
    command = [sys.executable, "-c", own.DMLM, "corpus", "import", str(tmp_path / "mine"), "--to", "mine"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: mine: the source has 1 error (no_audio 1)")
    assert "Traceback" not in ended.stderr


def test_every_mistake_of_a_table_is_told_at_once(media, tmp_path):
    """Each once ended the import, so a table with three of them took three runs."""
    rows = f"{HEADER.strip()},start_s,end_s\na,one,clip-00.wav,9,3\nb,two,clip-01.wav,1;5,\nc,,clip-02.wav,,\n{ROWS}"
    (tmp_path / "x.csv").write_text(
        "\n".join(line if line.count(",") == 4 or not line else f"{line},," for line in rows.split("\n"))
    )
    with pytest.raises(UserError, match=r"3 errors \(line 2, no_text 1\)") as error:
        imported(tmp_path / "x.csv", "--media", str(media))
    assert "audio: end_s (3.0) must be later than start_s (9.0)" in error.value.details
    assert "start_s is '1;5', and no number of seconds" in error.value.details


def test_columns_that_are_not_read_are_named(media, tmp_path):
    """Stretches under other names once gave an id for the same recording many times, and no hint."""
    (tmp_path / "x.csv").write_text("audio,text,from,to\nclip-00.wav,one,0,0.2\n")
    words = ["corpus", "import", str(tmp_path / "x.csv"), "--to", "mine", "--media", str(media)]
    shown = CliRunner().invoke(app, words).output
    assert "columns that are not read: from, to (--column FIELD=NAME says what one holds)" in shown


def test_a_rule_that_an_import_does_not_look_for_is_refused(media):
    with pytest.raises(UserError, match=r"--leave-out repeated_recording: .* corpus.leave_out=\[repeated_recording\]"):
        imported(media, "--leave-out", "no_text,repeated_recording")
