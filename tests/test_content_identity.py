"""Tokens, models and evaluations are named by content: what changes is made again, and nothing else."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from faulty_corpus import RATE_HZ, speech
from faulty_recipe import cells_on, prepared

from dmlm.sweep.materials import clips_to_encode
from dmlm.sweep.parts import corpus_folder
from dmlm.sweep.preparation import find_ready
from dmlm.sweep.trial import trial_of


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """A function that returns a cell on a corpus with a change."""
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    return cells_on(tmp_path)


def test_what_is_left_out_changes_what_is_trained_only_where_it_is_trained_on(cell):
    def ids(cells):
        (trial,) = (trial_of(c, m, "A -> T") for c, m in zip(cells, prepared(*cells), strict=True))
        return trial.id, trial.name_of(trial.evaluations[0])

    plain, of_test = ids([cell("")]), ids([cell("long", "too_long")])
    of_training = ids([cell("long training", "too_long")])
    assert plain[0] == of_test[0] != of_training[0]
    assert plain[1] != of_test[1]
    assert plain[1] == of_training[1]


def test_nothing_is_encoded_again_for_what_was_found_too_long(cell, tmp_path):
    """Also if its tokens were removed meanwhile: those of the codebook that was learned on the long clips too."""
    asked = cell("long training", "too_long")
    prepared(asked)
    tokens = tmp_path / "home" / "tokens"
    (used,) = {materials.sources["A"].name for materials in prepared(asked)}
    others = [folder for folder in tokens.glob("audio_mfcc-*") if folder.name != used]
    assert others
    for folder in others:
        shutil.rmtree(folder)
    written = tokens_written(tmp_path)
    prepared(asked)
    assert tokens_written(tmp_path) == written
    assert clips_to_encode([asked], find_ready([asked])) == 0


def test_another_id_is_another_test_but_the_same_model(cell):
    asked = cell("")
    (materials,) = prepared(asked)
    first = trial_of(asked, materials, "A -> T")
    rewritten(corpus_folder(asked.corpus)[0], 9, id="renamed")
    (materials,) = prepared(asked)
    again = trial_of(asked, materials, "A -> T")
    assert again.id == first.id
    assert again.name_of(again.evaluations[0]) != first.name_of(first.evaluations[0])


def tokens_written(tmp_path):
    return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "home" / "tokens").rglob("*.safetensors")}


def rewritten(folder, utterance: int, **changes: object) -> None:
    """Change a line of the manifest of a corpus, and make its card again."""
    from dmlm.corpus.manifest import Utterance, read_corpus, write_corpus

    corpus = read_corpus(folder)
    lines = [u.model_dump() for u in corpus.utterances]
    lines[utterance] |= changes
    write_corpus(folder, [Utterance(**line) for line in lines], corpus.card)


def test_another_transcript_encodes_nothing_and_another_recording_one_clip(cell, tmp_path, monkeypatch):
    asked = cell("")
    folder = corpus_folder(asked.corpus)[0]
    (before,) = prepared(asked)
    written, first = tokens_written(tmp_path), trial_of(asked, before, "A -> T")
    rewritten(folder, 9, text="two two")
    (materials,) = prepared(asked)
    assert tokens_written(tmp_path) == written
    second = trial_of(asked, materials, "A -> T")
    assert second.id == first.id  # the same model
    assert second.name_of(second.evaluations[0]) != first.name_of(first.evaluations[0])  # read on other references
    soundfile.write(folder / "clip-9.wav", speech(99), RATE_HZ)
    rewritten(folder, 9)
    (materials,) = prepared(asked)
    (new,) = [path for path in (tmp_path / "home" / "tokens").rglob("*.safetensors") if path.name not in written]
    condition = materials.test_conditions[0.0]
    items, _ = materials.streams(("A",), "test", condition)
    old, _ = before.streams(("A",), "test", condition)
    assert [np.array_equal(a["A"], b["A"]) for a, b in zip(items, old, strict=True)] == [True, True, True, False]
    assert len(json.loads(_metadata(new)["keys"])) == 1


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return file.metadata()


def test_a_transcript_of_training_is_another_model_but_the_same_tokens(cell, tmp_path):
    asked = cell("")
    (materials,) = prepared(asked)
    first, written = trial_of(asked, materials, "A -> T"), tokens_written(tmp_path)
    rewritten(corpus_folder(asked.corpus)[0], 0, text="six six six")
    (materials,) = prepared(asked)
    assert trial_of(asked, materials, "A -> T").id != first.id
    assert tokens_written(tmp_path) == written


def test_two_corpora_share_the_tokens_of_equal_recordings(cell, tmp_path):
    prepared(cell(""))
    written = tokens_written(tmp_path)
    prepared(cell("wordy", "long_reference"))  # the same recordings in another corpus
    assert tokens_written(tmp_path) == written
