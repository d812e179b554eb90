"""Recordings give the same corpus in whatever form they come: folder, JSONL, CSV, TSV, Kaldi, lhotse, Hugging Face."""

import sys
from dataclasses import replace
from types import ModuleType

import films
import numpy as np
import own_recordings as own
import pytest
import soundfile
from own_recordings import FORMS, NEEDS, imported

from dmlm import processes
from dmlm.corpus import face_points
from dmlm.corpus.media import read_video
from dmlm.errors import UserError
from dmlm.importing.kaldi import decoded_file
from dmlm.importing.source import Reading, open_source


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home é"))
    monkeypatch.setattr(processes, "run", lambda function, jobs, *_, **__: map(function, jobs))


def installed(form):
    """Whether the package that a form needs is there; our own folder `datasets` is none."""
    if form in NEEDS and not hasattr(pytest.importorskip(NEEDS[form]), "__version__"):
        pytest.skip(f"{NEEDS[form]} is not installed")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "mine"
    return folder, own.write_folder(folder)


@pytest.fixture(scope="module")
def rich_recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "rich"
    return folder, own.with_more(folder, own.write_folder(folder))


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_and_each_form_of_it_give_the_same_digest(form, recordings, tmp_path):
    installed(form)
    folder, rows = recordings
    of_folder = imported(folder, to="folder")
    written = FORMS[form](tmp_path / "written", rows, folder)
    corpus = imported(written, to="written")
    assert corpus.digest == of_folder.digest
    assert corpus.card["form"] == {"jsonl": "table", "csv": "table", "tsv": "table", "parquet": "hugging_face"}.get(
        form, form
    )
    assert not (corpus.folder / "source").exists()


@pytest.mark.parametrize("form", [form for form in FORMS if form != "jsonl"])
def test_videos_pictures_splits_and_speakers_are_the_same_in_each_form(form, rich_recordings, tmp_path):
    installed(form)
    folder, rows = rich_recordings
    of_table = imported(own.write_jsonl(tmp_path / "table.jsonl", rows, folder), to="table")
    corpus = imported(FORMS[form](tmp_path / "written", rows, folder), to="written")
    assert corpus.utterances == of_table.utterances
    assert corpus.digest == of_table.digest
    assert corpus.counts == {"train": 6, "val": 3, "test": 3}
    assert corpus.utterances[1].speaker == "s1"
    assert corpus.utterances[1].lips == "lips/clip-01.mp4"


PIPES = {  # of wav.scp, each with the file that it decodes; None: it may do more
    "flac -c -d -s /a/b.flac |": "/a/b.flac",
    "/usr/bin/flac -cds '/a/my file.flac' |": "/a/my file.flac",
    "sph2pipe -f wav -p /a/b.sph |": "/a/b.sph",
    "sox /a/b.mp3 -t wav -r 16000 -c 1 -b 16 - |": "/a/b.mp3",
    "ffmpeg -v 8 -i /a/b.m4a -f wav -ar 16000 -ac 1 - |": "/a/b.m4a",
    "cat /a/b.wav |": "/a/b.wav",
    "/a/b c.wav": "/a/b c.wav",
    "sph2pipe -f wav -c 2 /a/b.sph |": None,
    "sox /a/b.wav -t wav - trim 0 1 |": None,
    "sox /a/b.wav -t wav - remix 1 |": None,
    "sox -v 0.5 /a/b.wav -t wav - |": None,
    "sox /a/b.wav -r 8000 -t wav - |": None,
    "sox -t raw -r 16000 /a/b.raw -t wav - |": None,
    "ffmpeg -ss 1 -i /a/b.wav -f wav - |": None,
    "sph2pipe -f wav /a/b.sph | sox - -t wav - |": None,
    "cat /a/b.wav /a/c.wav |": None,
    "cat $(touch /a/b) |": None,
    "touch /a/b; cat /a/b.wav |": None,
    "rm -rf /a |": None,
    "cat 'open |": None,
    "|": None,
    "/a/raw.ark:1234": None,
}


@pytest.mark.parametrize("pipe", PIPES)
def test_of_a_pipe_of_kaldi_the_file_is_read_or_it_is_refused(pipe):
    if PIPES[pipe] is None:
        with pytest.raises(UserError, match=r"^wav.scp, line 3"):
            decoded_file(pipe, "wav.scp, line 3")
    else:
        assert decoded_file(pipe, "wav.scp, line 3") == PIPES[pipe]


def kaldi(tmp_path, recordings, **files):
    folder, rows = recordings
    data = own.write_kaldi(tmp_path / "data", rows, folder)
    for name, lines in files.items():
        (data / name.replace("_", ".")).write_text("".join(f"{line}\n" for line in lines))
    return data


def test_segments_of_kaldi_are_stretches(recordings, tmp_path):
    segments = [f"u{n:02} clip-{n:02} 0.1 {-1 if n % 2 else 0.3}" for n in range(12)]
    spoken = {"text": [f"u{n:02}\tone  two\r" for n in range(12)], "utt2spk": [f"u{n:02} s{n % 3}" for n in range(12)]}
    corpus = imported(kaldi(tmp_path, recordings, segments=segments, **spoken), "--split", "speaker")
    assert [utterance.duration_s for utterance in corpus.utterances[:2]] == [0.2, 0.3]
    assert corpus.utterances[0].text == "one two"
    assert len({(u.speaker, u.split) for u in corpus.utterances}) == 3


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"segments": ["u1 clip-01 a b"]}, "segments, line 1 must read UTTERANCE RECORDING START_S END_S"),
        ({"segments": ["u1 clip-01 1"]}, "segments, line 1 must read"),
        ({"segments": ["u1 clip-99 0 1"]}, "wav.scp has no recording clip-99"),
        ({"text": ["clip-01 a", "clip-01 b"]}, "text, line 2: clip-01 is already on line 1"),
        ({"text": [f"clip-{n:02} one" for n in range(13)]}, "no recording or segment is called so"),
        ({"text": [f"clip-{n:02} one" for n in range(11)]}, "text has no line of it"),
        ({"utt2split": ["clip-00 tran"]}, "split: Input should be 'train', 'val' or 'test'"),
    ],
)
def test_what_is_wrong_in_a_kaldi_folder_is_named(files, complaint, recordings, tmp_path):
    with pytest.raises(UserError, match=complaint):
        imported(kaldi(tmp_path, recordings, **files))


@pytest.mark.parametrize("form", ["kaldi", "lhotse"])
def test_a_folder_of_one_for_each_split_gives_the_splits(form, recordings, tmp_path):
    installed(form)
    folder, rows = recordings
    (tmp_path / "data").mkdir()
    for name, some in (("train", rows[:7]), ("dev", rows[7:9]), ("test", rows[9:])):
        FORMS[form](tmp_path / "data" / f"cuts_{name}", some, folder)
    assert imported(tmp_path / "data").counts == {"train": 7, "val": 2, "test": 3}
    next((tmp_path / "data").glob("*test*")).rename(tmp_path / "data" / "more.jsonl.gz")
    with pytest.raises(UserError, match="says no split"):
        imported(tmp_path / "data", to="more")


def cuts(tmp_path, recordings, change):
    installed("lhotse")
    from lhotse import CutSet

    folder, rows = recordings
    written = list(CutSet.from_jsonl_lazy(own.write_cuts(tmp_path / "all.jsonl", rows, folder)))
    CutSet.from_cuts([change(written[0]), *written[1:]]).to_file(tmp_path / "cuts.jsonl")
    return tmp_path / "cuts.jsonl"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda cut: cut.pad(duration=2), "is a MixedCut; only cuts of one recording"),
        (lambda cut: cut.perturb_speed(1.1), "is changed by Speed"),
        (lambda cut: cut.resample(8_000), "is changed by Resample"),
        (lambda cut: cut.drop_supervisions(), "no supervision of it has a text"),
    ],
)
def test_what_is_more_than_a_stretch_of_one_file_is_refused(change, complaint, recordings, tmp_path):
    with pytest.raises(UserError, match=complaint):
        imported(cuts(tmp_path, recordings, change))


def test_supervisions_of_a_cut_are_joined_and_are_its_spans(recordings, tmp_path):
    def two(cut):
        first, later = replace(cut.supervisions[0], start=0.05, duration=0.1), replace(cut.supervisions[0], start=0.2)
        cut.supervisions = [replace(later, text="later words"), replace(first, text="first words", speaker="x")]
        return cut.resample(44_100).truncate(offset=0.0, duration=0.35, preserve_id=True)

    utterance = imported(cuts(tmp_path, recordings, two)).utterances[0]
    assert utterance.text == "first words later words"
    assert utterance.spans == ((0.05, 0.15), (0.2, 0.35))
    assert utterance.duration_s == 0.35
    assert utterance.speaker is None  # it has two


def test_one_channel_of_several_is_no_cut_that_is_read(recordings, tmp_path):
    installed("lhotse")
    from lhotse import CutSet, MonoCut, MultiCut, Recording, SupervisionSegment

    soundfile.write(tmp_path / "two.wav", np.stack([own.tone(1), own.tone(2)], axis=1), own.RATE_HZ)
    recording = Recording.from_file(tmp_path / "two.wav")
    said = [SupervisionSegment("x", "two", 0.0, 0.4, text="one two")]
    for number, cut in enumerate(
        (
            MonoCut("x", 0.0, 0.4, 0, said, recording=recording),
            MultiCut("x", 0.0, 0.4, [0, 1], said, recording=recording),
        )
    ):
        CutSet.from_cuts([cut]).to_file(tmp_path / f"{number}.jsonl")
    with pytest.raises(UserError, match="is a channel of several"):
        open_source(str(tmp_path / "0.jsonl"), Reading())
    assert len(open_source(str(tmp_path / "1.jsonl"), Reading()).clips) == 1


def test_a_damaged_cutset_is_named(recordings, tmp_path):
    installed("lhotse")
    folder, rows = recordings
    path = own.write_cuts(tmp_path / "cuts.jsonl.gz", rows, folder)
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "no.jsonl").write_text('{"type": "MonoCut", "id": 3}\n')
    for damaged in (path, tmp_path / "no.jsonl"):
        with pytest.raises(UserError, match="cannot be read as cuts"):
            imported(damaged)


def test_a_dataset_says_its_licence_and_needs_no_embedded_files(recordings, tmp_path):
    installed("hugging_face")
    folder, rows = recordings
    named = [{"words": row["text"], "audio": row["audio"]} for row in rows]
    written = own.write_dataset(tmp_path / "data", named, folder, embedded=False)
    with pytest.raises(UserError, match="has no text; name the column: --column text=NAME"):
        imported(written)
    corpus = imported(written, "--column", "text=words")
    assert corpus.card["licence"] == "CC-BY-4.0"
    assert [utterance.id for utterance in corpus.utterances[:2]] == ["clip-00", "clip-01"]


def test_splits_of_a_dataset_that_are_not_ours_can_be_left_out(recordings, tmp_path):
    installed("hugging_face")
    folder, rows = recordings
    splits = ("train", "dev", "test", "other")
    written = own.write_dataset(
        tmp_path / "data", [row | {"split": splits[number % 4]} for number, row in enumerate(rows)], folder
    )
    with pytest.raises(UserError, match="its split 'other' is none of train, validation and test"):
        imported(written)
    corpus = imported(written, "--leave-out", "no_split")
    assert corpus.counts == {"train": 3, "val": 3, "test": 3}
    assert corpus.card["not_imported"] == {"no_split": 3}


def test_a_damaged_dataset_is_named_and_a_folder_that_is_none(recordings, tmp_path):
    installed("hugging_face")
    folder, rows = recordings
    for form, pattern in (("disk", "*.arrow"), ("parquet", "*.parquet")):
        path = next(own.write_dataset(tmp_path / form, rows, folder, form).glob(pattern))
        path.write_bytes(path.read_bytes()[:2_000])
        with pytest.raises(UserError, match="cannot be opened as a dataset"):
            imported(path.parent)
    path = next(own.write_dataset(tmp_path / "inside", rows, folder, "parquet").glob("*.parquet"))
    content = path.read_bytes()
    path.write_bytes(content[:1_000] + b"\xff" * 50_000 + content[51_000:])  # and not its index
    with pytest.raises(UserError, match=r"(all|train) is damaged"):
        imported(path.parent)
    with pytest.raises(UserError, match="holds no dataset"):
        imported(folder, "--form", "hugging_face")


def test_without_its_package_a_form_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "cuts.jsonl").write_text('{"type": "MonoCut"}\n')
    (tmp_path / "data.parquet").touch()
    monkeypatch.setitem(sys.modules, "lhotse", None)
    monkeypatch.setitem(sys.modules, "datasets", ModuleType("datasets"))  # as our folder of recipes is found
    for source, extra in ((tmp_path / "cuts.jsonl", "lhotse"), (tmp_path, "hf")):
        with pytest.raises(UserError, match=rf'run: pip install -e "\.\[{extra}\]"'):
            imported(source, "--form", "lhotse" if extra == "lhotse" else "hugging_face")


def test_a_stretch_cuts_the_video_with_it_and_crops_the_face_if_asked(tmp_path, monkeypatch):
    own.write_folder(tmp_path / "mine", 12)
    soundfile.write(tmp_path / "mine" / "long.wav", own.tone(1, 3.0), own.RATE_HZ)
    films.write(tmp_path / "mine" / "long.mp4", 74, 25)  # a frame shorter than its recording, as phones write them
    rows = [
        {"id": f"{n}", "text": "a", "audio": "long.wav", "lips": "long.mp4", "start": n / 5, "end": n / 5 + 0.8}
        for n in range(12)
    ]
    table = own.write_csv(tmp_path / "mine" / "x.csv", rows, tmp_path / "mine")
    corpus = imported(table)
    for utterance in corpus.utterances:
        first = round(float(utterance.id) / 5 * 25)
        grey = read_video(corpus.media(utterance, "lips")).mean(axis=(1, 2))
        assert len(grey) == min(20, 74 - first)
        np.testing.assert_allclose(grey[:3], 5 * (first + np.arange(3)) % 256, atol=3)
    points = np.array([[40, 30], [30, 20], [37, 20], [43, 20], [50, 20], [40, 40]], float)
    monkeypatch.setitem(face_points.DETECTORS, "dlib", lambda: lambda frames: (points for _ in frames))
    faces = imported(table, "--crop", "face", "--landmarks", "dlib", to="faces")
    assert read_video(faces.media(faces.utterances[0], "lips")).shape == (20, 224, 224)
