"""Files that lost their end, or all they held: they are made again, or one sentence names them and says what to do."""

import json
import math
import shutil

import numpy as np
import pytest
from fake_grid import write_grid
from grids import ONE, Direct

from dmlm import files, recipes
from dmlm.corpus.check import check_folder
from dmlm.corpus.condition import CLEAN
from dmlm.corpus.faults import RULES
from dmlm.corpus.manifest import read_corpus
from dmlm.errors import UserError
from dmlm.plan.grid import read_grid_file
from dmlm.results.grid import read_grid
from dmlm.sweep import status, tasks
from dmlm.sweep.materials import prepare
from dmlm.sweep.schedule import run_trials
from dmlm.sweep.trial import Evaluation, Trial, trial_of
from dmlm.tokens.quantize import Codebook
from dmlm.tokens.vocabulary import TextVocabulary

DAMAGED = [b"", b'{"wer": 0.1, "steps', b"{}", b"[]", b"\xff\xfe\x00", b'{"wer": 0.1, "steps": 3}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_result_is_none(tmp_path, content):
    trial = Trial(read_grid_file("smoke").cells[0], {}, tmp_path, (Evaluation(CLEAN),))
    for folder in (tmp_path, trial.folder_of(trial.evaluations[0]).path):
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "result.json").write_bytes(content)
    assert not trial.trained
    assert trial.pending == list(trial.evaluations)


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_result_is_missing_in_status_and_tables(tmp_path, content):
    folder = write_grid(tmp_path, templates=["A -> T"], snrs_db=["clean", 0.0], utterances=4)
    index = json.loads((folder / "grid.json").read_text())
    index["cells"][0]["steps"] = 400
    (folder / "grid.json").write_text(json.dumps(index))
    (cell,) = read_grid(folder).cells
    (cell.evaluations[0].folder.path / "result.json").write_bytes(content)
    (cell,) = read_grid(folder).cells
    assert [(e.snr_db, e.done) for e in cell.evaluations] == [(math.inf, False), (0.0, True)]
    assert "1 of 2 evaluations" in status.table(folder)[0]
    (cell.trial.path / "result.json").write_bytes(content)
    assert read_grid(folder).cells[0].training is None
    assert "waiting" in status.table(folder)[0]


def test_a_damaged_trial_is_made_again_with_the_same_transcripts(finished, home, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(home))
    tasks._last_materials.clear()
    grid = read_grid_file("smoke", (*ONE, "train.steps=4", "snr_db.test=[clean]", "seed=70"))
    (trial,) = (trial_of(c, m, grid.baseline) for c, m in zip(grid.cells, prepare(grid.cells), strict=True))
    scores = trial.folder_of(trial.evaluations[0]).path
    model = trial.folder / "model" / "model.safetensors"

    def run() -> list[str]:
        engine = Direct()
        assert not run_trials([trial], engine, [].append, 30.0)
        return [name for name, _ in engine.done]

    assert run() == ["train", "evaluate"]
    transcripts = (scores / "utterances.jsonl").read_text()
    shutil.copytree(trial.folder, home / "kept")

    for damage, done in (
        (lambda: (trial.folder / "result.json").write_text(""), ["train"]),
        (lambda: (scores / "result.json").write_text("{"), ["evaluate"]),
        (lambda: shutil.rmtree(model.parent), []),  # nothing needs it any more
        (lambda: shutil.rmtree(scores), ["train", "evaluate"]),  # something does
        (lambda: (shutil.rmtree(scores), model.write_bytes(model.read_bytes()[:-8])), ["train", "evaluate"]),
        (lambda: (shutil.rmtree(scores), model.write_bytes(b"")), ["train", "evaluate"]),
        (lambda: (shutil.rmtree(scores), (model.parent / "config.json").write_text("{")), ["train", "evaluate"]),
    ):
        damage()
        assert run() == done
        assert run() == []
        assert (scores / "utterances.jsonl").read_text() == transcripts


def test_a_damaged_codebook_is_named(tmp_path):
    path = tmp_path / "audio_mfcc-01234567.safetensors"
    book = Codebook.plain(np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    book.save(path)
    assert files.sealed(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:40], whole[:-4], whole[:-4] + b"\0\0\0\0"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"audio_mfcc-01234567\.safetensors is damaged; remove it"):
            Codebook.load(path)
    path.write_bytes(whole)
    assert Codebook.load(path).digest == book.digest
    path.with_suffix(".sha256").unlink()  # as an earlier version left it
    assert Codebook.load(path).digest == book.digest
    path.write_bytes(whole[:-4])
    with pytest.raises(UserError, match="is damaged"):
        Codebook.load(path)


def test_a_damaged_text_vocabulary_is_named(tmp_path):
    path = tmp_path / "text-bpe300.json"
    TextVocabulary.learn(["x plus y"], 300).save(path)
    whole = path.read_text()
    for damaged in ("", whole[:100], "{}"):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"text-bpe300\.json cannot be read .* remove it"):
            TextVocabulary.load(path)


@pytest.mark.parametrize("seal", [b"", b"\xff\xfe", b"0" * 64])
def test_a_damaged_seal_seals_nothing(tmp_path, seal):
    path = tmp_path / "shard.safetensors"
    path.write_bytes(b"tokens")
    files.seal(path)
    assert files.sealed(path)
    path.with_suffix(".sha256").write_bytes(seal)
    assert not files.sealed(path)


@pytest.mark.parametrize("lose", ["missing", "empty"])
def test_what_a_lost_media_file_asks_for_brings_the_same_corpus_back(tmp_path, lose):
    recipe = recipes.load("datasets", "three_equations")
    settings = recipe.Settings(train=2, val=1, test=1)
    digest = recipe.prepare(settings, tmp_path, workers=1).digest
    (lost, *_) = (tmp_path / "audio").iterdir()
    lost.write_bytes(b"")
    if lose == "missing":
        lost.unlink()
    (fault,) = (f for f in check_folder(tmp_path, lambda function, jobs: map(function, jobs)) if f.is_error)
    assert (fault.rule, fault.file) == ("missing", str(lost))
    assert "remove it and corpus.json (or the whole folder) and run the same command" in RULES[fault.rule].remedy
    lost.unlink(missing_ok=True)
    (tmp_path / "corpus.json").unlink()
    assert recipe.prepare(settings, tmp_path, workers=1).digest == digest
    assert read_corpus(tmp_path).digest == digest
