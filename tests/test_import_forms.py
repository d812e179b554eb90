"""Recordings give the same corpus in whatever form they come: folder, JSONL, CSV, TSV, Kaldi, lhotse, Hugging Face."""

import own_recordings as own
import pytest
from own_recordings import FORMS, NEEDS, imported

from dmlm import processes


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
