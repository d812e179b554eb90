"""The recipe of digit strings, on a small tree as its owners lay it out, and on the real one if it is here."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_corpus import in_this_process

from dmlm import recipes
from dmlm.corpus.check import check_folder
from dmlm.corpus.manifest import in_fold
from dmlm.errors import UserError

recipe = recipes.load("datasets", "fsdd")
SPEAKERS = ("george", "lucas", "theo")
SMALL = {"train": 6, "val": 3, "test": 4}


@pytest.fixture(autouse=True)
def home_of_recordings(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_RECORDINGS", str(tmp_path))


@pytest.fixture
def tree(tmp_path):
    """Two digits of three speakers, 12 times each, at 8 kHz."""
    folder = tmp_path / "fsdd" / "recordings"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, speaker in enumerate(SPEAKERS):
        for digit in (3, 7):
            for index in range(12):
                noise = random.normal(0, 0.1, 1600 + 100 * number + digit)
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", noise, 8000)
    return tmp_path / "fsdd"


def clips(**settings):
    chosen = recipe.Settings(**SMALL, **settings)
    return [clip for part in recipe.parts(chosen, recipe.scan(chosen)) for clip in recipe.strings(chosen, part)]


def recordings(some):
    return {stretch.path for clip in some for stretch in clip.audio}


def test_a_corpus_of_strings_is_made_and_has_no_error(tree, tmp_path):
    corpus = recipe.prepare(recipe.Settings(**SMALL), tmp_path / "corpus")
    assert corpus.counts == SMALL
    described = {clip.id: clip for clip in clips()}
    for utterance in corpus.utterances:
        clip = described[utterance.id]
        assert utterance.text.split() == [{"3": "three", "7": "seven"}[s.path.name[0]] for s in clip.audio]
        assert 3 <= len(clip.audio) <= 6
        silence_s = [stretch.silence_s for stretch in clip.audio]
        assert silence_s[0] == 0
        assert all(0.05 <= gap_s <= 0.3 for gap_s in silence_s[1:])
        length_s = sum(silence_s) + sum(soundfile.info(stretch.path).duration for stretch in clip.audio)
        assert utterance.duration_s == pytest.approx(length_s, abs=1e-4)
        assert utterance.spans == ((0.0, utterance.duration_s),)
    assert not [fault for fault in check_folder(corpus.folder, in_this_process) if fault.is_error]


@pytest.mark.parametrize("unseen", [True, False])
def test_a_recording_serves_one_split_and_a_string_one_speaker(tree, unseen):
    made = clips(unseen=unseen)
    by_split = {split: [clip for clip in made if clip.split == split] for split in ("train", "val", "test")}
    assert not recordings(by_split["train"]) & recordings(by_split["test"])
    assert not recordings(by_split["train"] + by_split["test"]) & recordings(by_split["val"])
    assert all({stretch.path.name.split("_")[1] for stretch in clip.audio} == {clip.speaker} for clip in made)
    speakers = {split: {clip.speaker for clip in some} for split, some in by_split.items()}
    if unseen:
        assert speakers == {"train": {"george"}, "val": {"lucas"}, "test": {"theo"}}
    else:
        assert all(len(some) == 3 for some in speakers.values())
        assert {int(path.stem.split("_")[2]) for path in recordings(by_split["test"])} <= set(range(5))


def test_equal_settings_draw_equal_strings_and_a_longer_split_begins_alike(tree):
    assert clips(seed=1) == clips(seed=1)
    assert [clip.audio for clip in clips(seed=1)] != [clip.audio for clip in clips(seed=2)]
    longer = recipe.Settings(train=9, val=3, test=4)
    part = recipe.parts(longer, recipe.scan(longer))[0]
    assert list(recipe.strings(longer, part))[:6] == clips()[:6]


def test_single_digits_use_every_recording_once(tree):
    single = recipe.Settings(least=1, most=1, train=24, val=24, test=24)
    for part in recipe.parts(single, recipe.scan(single)):
        used = Counter(stretch.path for clip in recipe.strings(single, part) for stretch in clip.audio)
        assert set(used.values()) == {1}
        assert len(used) == 24


def test_folds_test_each_speaker_once(tree, tmp_path):
    corpus = recipe.prepare(recipe.Settings(**SMALL, folds=True), tmp_path / "corpus")
    assert corpus.card["folds"] == 3
    for fold, speaker in enumerate(SPEAKERS):
        tested = in_fold(corpus, fold).split("test")
        assert {utterance.speaker for utterance in tested} == {speaker}
        assert len(tested) == SMALL["test"]


def test_what_is_missing_is_said_with_licence_cost_and_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*fsdd .*CC BY-SA 4.0; .*25 MB; git clone"):
        recipe.require(recipe.Settings())
    (tmp_path / "fsdd").mkdir()
    with pytest.raises(UserError, match=r"holds no recordings .*git clone"):
        recipe.require(recipe.Settings())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"test_speakers": ("thea",)}, "no speaker thea; did you mean 'theo'"),
        ({"test_speakers": ("theo", "george")}, "No recording is left for the train split"),
    ],
)
def test_speakers_that_do_not_fit_are_named(tree, settings, complaint):
    with pytest.raises(UserError, match=complaint):
        recipe.require(recipe.Settings(**settings))


@pytest.mark.parametrize("wrong", [{"least": 4, "most": 3}, {"gap_ms": (9, 3)}, {"val_speakers": ("theo",)}])
def test_settings_that_contradict_each_other_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must not exceed|must be a range|share theo"):
        recipe.Settings(**wrong)


REAL = Path(os.environ.get("DMLM_RECORDINGS", "")) / "fsdd"


@pytest.mark.skipif(not (REAL / "recordings").is_dir(), reason="DMLM_RECORDINGS has no fsdd")
def test_real_recordings_are_all_found(monkeypatch):
    monkeypatch.setenv("DMLM_RECORDINGS", str(REAL.parent))
    for name, settings in recipe.PRESETS.items():
        dealt = recipe.parts(settings, recipe.scan(settings))
        assert sum(len(part.recordings) for part in dealt) >= 3000, name
        assert all({r.digit for r in part.recordings} == set(range(10)) for part in dealt), name
