"""What a model is trained on and tested with: whose tokens, under which condition, and where its transcripts go."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from grids import ONE, Direct

from dmlm.corpus.condition import Condition
from dmlm.corpus.manifest import Corpus, Utterance
from dmlm.errors import UserError
from dmlm.plan.cell import ALL_SNRS_DB, Cell
from dmlm.plan.grid import read_grid_file
from dmlm.recognition.transcribe import Transcript
from dmlm.sequence.template import Template, unpack
from dmlm.sweep.evaluate_trial import evaluate_trial
from dmlm.sweep.materials import Materials, prepare
from dmlm.sweep.schedule import run_trials
from dmlm.sweep.train_trial import packed_draws
from dmlm.sweep.trial import Evaluation, Trial, trial_of
from dmlm.tokens.encoder import Encoder, Tokenizer
from dmlm.tokens.shards import Encoded
from dmlm.tokens.vocabulary import TextVocabulary
from dmlm.training.objectives.next_token import modality_loss

ITEMS = 12
TEXT = "a b c d"
TEMPLATE = "A+L -> T"


class Audio(Tokenizer):
    modality, media, vocab_size, rate_hz = "A", "audio", 32, 50.0


class Lips(Tokenizer):
    modality, media, vocab_size, rate_hz = "L", "lips", 32, 25.0


@dataclass
class Source:
    """Tokens that say whose they are, at which level and in which noise draw they were heard; lips hear nothing."""

    encoder: Encoder
    corpus: Corpus
    off_db: float = 0.0  # how far the last utterance is from the level that was asked for
    fingerprint: str = "0" * 64

    def load(self, split: str, condition: Condition) -> Encoded:
        names = [utterance.id for utterance in self.corpus.split(split)]
        asked = math.inf if condition.snr_db is None else condition.snr_db
        heard = (ALL_SNRS_DB.index(asked), condition.draw) if self.encoder.depends_on_noise else (0, 0)
        tokens = {name: np.array([place, *heard], np.int32) for place, name in enumerate(names)}
        return Encoded(tokens, {name: asked + (self.off_db if name == names[-1] else 0.0) for name in names})


def materials_of(folder: Path, off_db: float = 0.0) -> Materials:
    """Two noise draws of a training set, and every test level."""
    corpus = Corpus(
        folder,
        tuple(
            Utterance(id=f"{split}-{place}", split=split, text=TEXT, audio="none.flac", duration_s=1.0)
            for split in ("train", "test")
            for place in range(ITEMS)
        ),
        {"name": "made_up", "digest": "0" * 64},
    )
    sources = {k.modality: Source(k(k.Settings()), corpus, off_db) for k in (Audio, Lips)}
    training = [Condition(None, (math.inf, 0.0), draw) for draw in range(2)]
    testing = {level: Condition(level) for level in ALL_SNRS_DB}
    return Materials(corpus, sources, TextVocabulary.learn([TEXT], 260), training, testing)


def cell_of(**changes) -> Cell:
    choices = {"A": "audio_mfcc", "L": "lips_dct"}
    plain = {"corpus": {"recipe": "made_up", "preset": "small"}, "tokenizers": choices, "backbone": "opt-nano"}
    return Cell(**plain, template=TEMPLATE, execution={"loggers": ()}, **changes)


def say_what_was_read(model, streams, reading) -> list[Transcript]:
    """A transcript that names the owner of the audio, the number of its level, and the owner of the lips."""
    return [Transcript(f"{item['A'][0]} {item['A'][1]} {item['L'][0]}", False, False) for item in streams]


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Records of each evaluation of a cell, whose model writes what `recogniser` does."""

    def run(cell, evaluations, recogniser=say_what_was_read, off_db=0.0) -> list[list[dict]]:
        monkeypatch.setattr("dmlm.model.backbones.load", lambda folder: None)
        monkeypatch.setattr("dmlm.sweep.evaluate_trial.transcribe", recogniser)
        monkeypatch.setattr("dmlm.sweep.evaluate_trial.write_card", lambda *facts: None)
        trial = Trial(cell, {}, tmp_path / "trial", tuple(evaluations))
        evaluate_trial(trial, evaluations, materials_of(tmp_path, off_db))
        files = [trial.folder_of(evaluation).path / "utterances.jsonl" for evaluation in evaluations]
        return [[json.loads(line) for line in file.read_text("utf-8").splitlines()] for file in files]

    return run


def owners(records: list[dict]) -> tuple[list[int], list[int], list[int]]:
    """Of each utterance: owner of the audio, number of the level, owner of the lips."""
    assert [record["id"] for record in records] == [f"test-{place}" for place in range(ITEMS)]
    audio, levels, lips = zip(*(map(int, record["hypothesis"].split()) for record in records), strict=True)
    return list(audio), list(levels), list(lips)


OWN = list(range(ITEMS))


def exchanged(found: list[int]) -> bool:
    """Whether every utterance has what belongs to another one, and everything is used once."""
    return sorted(found) == OWN and not any(a == b for a, b in zip(found, OWN, strict=True))


def test_every_condition_gets_the_transcripts_of_what_was_heard_under_it(evaluate):
    """More conditions than are decoded together."""
    evaluations = [Evaluation(Condition(level)) for level in ALL_SNRS_DB]
    evaluations += [Evaluation(Condition(-10.0), "L", draw) for draw in range(2)]
    for evaluation, records in zip(evaluations, evaluate(cell_of(), evaluations), strict=True):
        audio, levels, lips = owners(records)
        assert audio == OWN
        assert levels == [ALL_SNRS_DB.index(evaluation.condition.snr_db)] * ITEMS
        assert exchanged(lips) if evaluation.permuted else lips == OWN


@pytest.mark.parametrize("letter", ["A", "L"])
def test_draws_of_a_permutation_have_donors_of_their_own_the_same_at_every_level(evaluate, letter):
    evaluations = [Evaluation(Condition(level), letter, draw) for level in (0.0, -20.0) for draw in range(3)]
    found = evaluate(cell_of(), evaluations)
    donors = [audio if letter == "A" else lips for audio, _, lips in map(owners, found)]
    others = [lips if letter == "A" else audio for audio, _, lips in map(owners, found)]
    assert all(map(exchanged, donors))
    assert others == [OWN] * 6
    assert donors[:3] == donors[3:]
    assert len({tuple(order) for order in donors}) == 3


@pytest.mark.parametrize("letter", ["A", "L"])
def test_a_control_is_tested_with_its_modality_exchanged(evaluate, letter):
    (records,) = evaluate(cell_of(permute=letter), [Evaluation(Condition(0.0))])
    audio, _, lips = owners(records)
    assert exchanged(audio if letter == "A" else lips)
    assert (lips if letter == "A" else audio) == OWN


def training_sets(folder: Path, cell: Cell) -> list[list[dict[str, np.ndarray]]]:
    """Token streams of the training sequences, one list per noise draw."""
    materials = materials_of(folder)
    vocabulary, template = materials.vocabulary(cell.letters), Template.parse(cell.template)
    draws = packed_draws(Trial(cell, {}, folder, ()), materials)
    return [[unpack(item, template, vocabulary) for item in items] for items in draws]


@pytest.mark.parametrize("letter", ["A", "L"])
def test_a_control_is_trained_with_its_modality_exchanged_otherwise_in_each_draw(tmp_path, letter):
    other = "L" if letter == "A" else "A"
    draws = training_sets(tmp_path, cell_of(permute=letter, train={"draws": 2}))
    donors = [[int(item[letter][0]) for item in items] for items in draws]
    assert all(map(exchanged, donors))
    assert donors[0] != donors[1]
    assert [[int(item[other][0]) for item in items] for items in draws] == [OWN, OWN]


@pytest.mark.parametrize("count", [1, 2])
def test_a_training_has_as_many_noise_draws_as_it_asks_for(tmp_path, count):
    draws = training_sets(tmp_path, cell_of(train={"draws": count}))
    assert [[item["A"].tolist() for item in items] for items in draws] == [
        [[place, 0, draw] for place in OWN] for draw in range(count)
    ]
    assert all(int(item["L"][0]) == place for items in draws for place, item in enumerate(items))


@pytest.mark.parametrize("off_db", [0.2, -0.2, math.inf, math.nan])
def test_a_clip_at_another_level_than_asked_for_is_named_and_nothing_is_scored(evaluate, tmp_path, off_db):
    evaluation = Evaluation(Condition(-10.0))
    with pytest.raises(UserError, match=rf"'test-{ITEMS - 1}' was asked for -10 dB but has"):
        evaluate(cell_of(), [evaluation], off_db=off_db)
    assert not list(tmp_path.rglob("utterances.jsonl"))
    assert evaluate(cell_of(), [evaluation], off_db=math.copysign(0.09, off_db))


def test_a_word_too_many_is_stored_as_an_insertion_and_a_missing_one_as_a_deletion(evaluate):
    """Said was `a b c d`."""
    longer = lambda model, streams, reading: [Transcript("A  x c d e f", True, False)] * len(streams)  # noqa: E731
    (records,) = evaluate(cell_of(), [Evaluation(Condition(0.0))], longer)
    counts = {"substitutions": 1, "deletions": 0, "insertions": 2, "reference_words": 4}
    assert {(r["reference"], r["hypothesis"]) for r in records} == {(TEXT, "A  x c d e f")}, "as it was written"
    assert all({key: record[key] for key in counts} == counts for record in records)
    characters = {"substitutions": 1, "deletions": 0, "insertions": 4, "reference_characters": 7}
    assert all(record["characters"] == characters for record in records)


def test_cut_and_stopped_hypotheses_are_marked_and_counted(evaluate, tmp_path):
    def some(model, streams, reading):
        return [Transcript("a b", place % 3 == 0, place % 3 == 1) for place in range(len(streams))]

    evaluation = Evaluation(Condition(0.0))
    (records,) = evaluate(cell_of(), [evaluation], some)
    assert [record["cut"] for record in records] == [place % 3 == 0 for place in range(ITEMS)]
    result = json.loads(next(tmp_path.rglob("result.json")).read_text("utf-8"))
    assert result["cut_hypotheses"] == sum(record["cut"] for record in records)
    assert result["looped_hypotheses"] == sum(record["looped"] for record in records) > 0


def test_a_cell_is_scored_with_the_normaliser_of_its_corpus(evaluate, tmp_path):
    shout = lambda model, streams, reading: [Transcript("A B C D", False, False)] * len(streams)  # noqa: E731
    evaluation, corpus = Evaluation(Condition(0.0)), {"recipe": "made_up", "preset": "small"}
    cells = {
        name: Cell(**cell_of().model_dump() | {"corpus": corpus | {"normaliser": name}}) for name in ("none", "basic")
    }
    errors = {name: evaluate(cell, [evaluation], shout)[0][0]["substitutions"] for name, cell in cells.items()}
    assert errors == {"none": 4, "basic": 0}
    results = {json.loads(path.read_text("utf-8"))["normaliser"] for path in tmp_path.rglob("result.json")}
    assert results == {"none/1", "basic/2"}, "another normaliser is another evaluation of the same model"


def test_a_grid_with_two_noise_draws_trains_on_them_in_turn(finished, home, monkeypatch):
    """Two epochs of the smoke grid's audio: the sequences that the model meets are those of one draw, then the other."""
    monkeypatch.setenv("DMLM_HOME", str(home))
    grid = read_grid_file("smoke", (*ONE, "train.steps=16", "train.draws=2", "snr_db.test=[clean]"))
    (materials,) = prepare(grid.cells)
    trial = trial_of(grid.cells[0], materials, grid.baseline)
    assert len(set(trial.spec["noise"])) == 2
    first, second = ([item.ids.tolist() for item in items] for items in packed_draws(trial, materials))
    assert sum(a != b for a, b in zip(first, second, strict=True)) > len(first) / 2  # some are clean in both

    shutil.rmtree(trial.folder, ignore_errors=True)
    met: list[list[int]] = []
    begin = materials.vocabulary(("A",)).special("<bos>")

    def spy(model, ids, *rest):
        for token in ids.tolist():
            met.extend([[]] if token == begin else [])
            met[-1].append(token)
        return modality_loss(model, ids, *rest)

    monkeypatch.setattr("dmlm.training.objectives.next_token.modality_loss", spy)
    assert not run_trials([trial], Direct(), print, 30.0, None)
    assert trial.trained
    assert sorted(met[: len(first)]) == sorted(first)
    assert sorted(met[len(first) :]) == sorted(second)
