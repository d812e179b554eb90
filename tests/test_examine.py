"""What a corpus gets wrong is refused before anything is encoded, or left out, counted, and shown with each result."""

import json

import pytest
import soundfile
from faulty_corpus import RATE_HZ, speech
from faulty_recipe import RECIPE, cells_on, prepared
from grids import run_here
from small_corpus import in_this_process

from dmlm.errors import UserError
from dmlm.plan.cell import Cell
from dmlm.plan.grid import read_grid_file
from dmlm.score import normalisers
from dmlm.score.normalisers import Normaliser
from dmlm.sweep import preparation
from dmlm.sweep.examine import leaving_out
from dmlm.sweep.grid_faults import long_sequences
from dmlm.sweep.materials import fold_key, prepare
from dmlm.sweep.parts import corpus_folder
from dmlm.sweep.preparation import _key, find_ready, prepare_under_lease
from dmlm.sweep.trial import trial_of


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """A function that returns a cell on a corpus with a change."""
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    return cells_on(tmp_path)


@pytest.mark.parametrize(
    ("change", "rule", "ids"),
    [
        ("silent", "silent_span", ["clip-6", "clip-8"]),
        ("long", "too_long", ["clip-7"]),
        ("long training", "too_long", ["clip-1"]),
        ("wordy", "long_reference", ["clip-9"]),
    ],
)
def test_all_such_clips_are_named_at_once_and_can_be_left_out(cell, change, rule, ids):
    with pytest.raises(UserError, match=rule) as error:
        prepared(cell(change))
    assert [name for name in (f"clip-{n}" for n in range(10)) if f"({name})" in error.value.details] == ids
    assert f"({ids[0]})" in str(error.value)
    assert all(f", line {int(name[-1]) + 1} ({name}): " in error.value.details for name in ids)
    assert f"corpus.leave_out=[{rule}]" in str(error.value)
    said: list[str] = []
    (materials,) = prepared(cell(change, rule), say=said.append)
    assert materials.corpus.left_out == dict.fromkeys(ids, rule)
    assert not {u.id for u in materials.corpus.utterances} & set(ids)
    split = "train" if change == "long training" else "test"
    assert any(f"left out {split} {len(ids)} ({rule} {len(ids)})" in line for line in said)


def test_what_one_cell_leaves_out_all_leave_out(cell):
    """Otherwise their WER would be of different test sets."""
    short, long = cell("long", "too_long", model={"context": 130}), cell("long", "too_long", model={"context": 2000})
    one, other = prepared(short, long)
    assert one.corpus.utterances == other.corpus.utterances
    assert one.corpus.left_out == {"clip-7": "too_long"}


def test_a_worker_leaves_out_the_same(cell):
    from dmlm.sweep.tasks import opened, task_of

    (materials,) = prepared(cell("long", "too_long"))
    trial = trial_of(cell("long", "too_long"), materials, "A -> T")
    again, of_worker = opened(task_of(trial, (), 30.0))
    assert again.id == trial.id
    assert of_worker.corpus.left_out == materials.corpus.left_out


def test_a_dry_run_finds_what_a_run_prepared_and_reads_nothing(cell):
    asked = cell("long", "too_long")
    assert find_ready([asked]) == {}
    (materials,) = prepared(asked)
    ready = find_ready([asked])
    assert {n: m.corpus.left_out for n, m in ready.items()} == {0: materials.corpus.left_out}


def test_a_transcript_of_which_the_normaliser_leaves_nothing_is_named(cell, monkeypatch):
    nothing = Normaliser("basic", 2, lambda text: text.replace("six", ""))
    monkeypatch.setitem(normalisers.NORMALISERS, "basic", nothing)
    with pytest.raises(UserError, match=r"empty_text .*\(clip-8\): nothing of 'six' is left by normaliser basic/2"):
        prepared(cell(""))


def test_media_that_were_replaced_after_a_run_stop_the_next(cell):
    asked = cell("")
    prepared(asked)
    soundfile.write(corpus_folder(asked.corpus)[0] / "clip-2.wav", speech(77), RATE_HZ)
    with pytest.raises(UserError, match=r"changed .*clip-2\.wav, line 3 \(clip-2\)"):
        prepared(asked)
    prepared(cell("", "changed"))


def test_rules_are_given_and_ids_are_found():
    grid = read_grid_file("smoke", ["corpus.leave_out=silent"])
    assert {one.corpus.leave_out for one in grid.cells} == {("silent",)}
    with pytest.raises(UserError, match=r"corpus\.left_out=.*: a run writes this; name rules in corpus\.leave_out"):
        read_grid_file("smoke", ["corpus.left_out={a: silent}"])


SEARCH = """
base:
  corpus: {{recipe: {recipe}, preset: p, settings: {{change: long}}, leave_out: too_long}}
  tokenizers: {{A: {{recipe: audio_mfcc, settings: {{clusters: 8}}}}}}
  text: {{vocab_size: 280}}
  noise: {{set: {tones}, kinds: [noise]}}
  snr_db: {{train: [clean], test: [clean]}}
  perceptual: {{snr_db: [clean]}}
  model: {{context: 512}}
  train: {{steps: 1, batch_size: 4}}
  execution: {{loggers: []}}
  backbone: opt-nano
  template: A -> T
search: {{sampler: grid, snr_db: [clean], parallel: 1, space: {{model.context: {{choices: {choices}}}}}}}
"""


@pytest.mark.parametrize("choices", [[130, 512], [512, 130]])
def test_the_points_of_a_search_are_scored_on_the_same_clips(cell, tmp_path, choices):
    """Or it is refused: the one with the longer context would read the long clips too."""
    cell("")
    recipe = tmp_path / "faulty.py"
    recipe.write_text(
        RECIPE.replace(
            '"train" if number < 6 else "test"', '"train" if number < 5 else "val" if number < 8 else "test"'
        )
    )
    grid = tmp_path / "search.yaml"
    grid.write_text(SEARCH.format(recipe=recipe, tones=tmp_path / "tones", choices=choices))
    result = run_here(tmp_path / "home", "--grid", str(grid))
    if choices[0] == 512:
        assert result.returncode == 2
        assert "a point of the search leaves out more than those before it (val 1 (too_long 1))" in result.stderr
    else:
        assert result.returncode == 0, result.stderr[-2000:]
        (trials,) = [list((tmp_path / "home" / "runs" / "trials").iterdir())]
        scored = [path for trial in trials for path in trial.glob("evals/val_*/result.json")]
        assert [json.loads(path.read_text())["utterances"] for path in scored] == [2, 2]


def test_what_was_left_out_before_stays_out_this_time_only(cell):
    """Of a search; what is asked later, in the same home, is not decided by it."""
    asked = cell("long", "too_long", model={"context": 2000})
    before = {fold_key(asked.corpus): {"clip-7": "too_long"}}
    (materials,) = prepare_under_lease([asked], print, in_this_process, left_out=before)
    assert materials.corpus.left_out == {"clip-7": "too_long"}
    (materials,) = prepared(asked)
    assert materials.corpus.left_out == {}


def test_a_clip_that_lacks_what_the_grid_reads_is_named(cell):
    lips = {"A": "audio_mfcc", "L": {"recipe": "lips_dct", "settings": {"clusters": 8}}}
    with pytest.raises(UserError, match=r"10 errors \(lacking 10\), .*it has no lips, which the grid reads"):
        prepared(cell("", tokenizers=lips, template="A+L -> T"))


def test_a_split_that_leaving_out_empties_is_an_error_that_says_so(cell):
    with pytest.raises(
        UserError, match=r"split test has no utterance left, after leaving out test 4 \(long_reference 4\)"
    ):
        prepared(cell("", "long_reference", decode={"max_new_tokens": 1}, text={"vocab_size": 256}))
    with pytest.raises(UserError, match=r"split train has no utterance left, after leaving out train 6 \(too_long 6\)"):
        prepared(cell("", "too_long", model={"context": 20}))


def test_a_wrong_span_is_a_fault_among_others_and_can_be_left_out(cell):
    with pytest.raises(UserError, match=r"2 errors \(span 1, milliseconds 1\)"):
        prepared(cell("spans"))
    (materials,) = prepared(cell("spans", "span", "milliseconds"))
    assert materials.corpus.left_out == {"clip-6": "span", "clip-8": "milliseconds"}


def test_silence_where_no_noise_goes_is_no_fault(cell):
    """The second half of two test clips is silent; the test is clean."""
    (materials,) = prepared(cell("silent", snr_db={"train": [0], "test": ["clean"]}, perceptual={"snr_db": ["clean"]}))
    assert materials.corpus.left_out == {}


def test_a_split_that_is_scored_may_not_be_empty(cell):
    with pytest.raises(UserError, match="split val has no utterance"):
        prepared(cell("", split="val"))


def test_what_is_too_long_does_not_depend_on_what_was_asked_before(cell):
    """An answer is remembered for all that decides it: units without a clock are as many as the noise lets them be."""
    asked = cell("long", "too_long")
    other = cell("long", "too_long", noise={**asked.noise.model_dump(), "placement": "whole"})
    keys = {_key([one]) for one in (asked, other, leaving_out(asked, {"clip-1": "silent"}))}
    assert len(keys) == 3
    assert _key([asked]) == _key([leaving_out(asked, {"clip-7": "too_long"})])


def test_a_test_with_a_modality_of_another_utterance_has_to_fit_too(cell, tmp_path):
    """The known text of one clip is long; permuted, it stands beside the audio of the longest."""
    ocr = '"ocr": "six " * (60 if number == 6 else 1), "text": " ".join(words)'
    (tmp_path / "faulty.py").write_text(RECIPE.replace('"text": " ".join(words)', ocr))
    tokenizers = {"A": {"recipe": "audio_mfcc", "settings": {"clusters": 8}}, "O": "ocr_oracle"}

    def with_context(context: int) -> Cell:
        perceptual = {"snr_db": [0], "draws": 5}
        model = {"context": context}
        return cell("long", tokenizers=tokenizers, template="A+O -> T", model=model, perceptual=perceptual)

    (materials,) = prepared(with_context(2000))
    items, _ = materials.streams(("A", "O"), "test", materials.test_conditions[0.0])
    longest = max(len(item["A"]) + len(item["O"]) for item in items)
    with pytest.raises(UserError, match="too_long"):
        prepared(with_context(longest + 10 + 64))


def test_a_control_is_measured_apart_from_its_twin(cell, monkeypatch):
    """Both read the same materials by the same template, but the control beside a modality of other utterances."""
    measured = []
    spy = lambda one, materials: measured.append(one.permute) or long_sequences(one, materials)  # noqa: E731
    monkeypatch.setattr(preparation, "long_sequences", spy)
    prepared(cell(""), cell("", permute="A"), cell("", seed=1))
    assert measured == [None, "A"]


def test_a_mistake_in_a_recipe_is_a_sentence_with_its_line(cell, tmp_path):
    asked = cell("")
    (tmp_path / "faulty.py").write_text(RECIPE.replace("    utterances = []", "    utterances = []\n    1 / 0"))
    with pytest.raises(UserError, match=r"faulty\.py, line \d+: ZeroDivisionError: division by zero"):
        prepared(asked)


def test_media_of_a_split_that_is_not_used_are_not_opened(cell, tmp_path):
    """A search reads `train` and `val`: what is wrong with the test is found when the test is opened."""
    (tmp_path / "faulty.py").write_text(
        RECIPE.replace('"train" if number < 6', '"train" if number < 5 else "val" if number < 6')
    )
    asked, searching = cell(""), cell("", split="val")
    prepared(searching)
    (corpus_folder(asked.corpus)[0] / "clip-8.wav").write_bytes(b"not audio")
    prepared(searching)
    with pytest.raises(UserError, match=r"1 error \(changed 1\), .*clip-8\.wav"):
        prepared(asked)


def test_an_unknown_rule_is_named(cell):
    with pytest.raises(UserError, match="no rule about clips is called 'silnt'; did you mean 'silent'"):
        cell("", "silnt")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("dev", r"faulty\.py, line \d+, utterance 'clip-3': split: .*'dev'"),
        ("no text", "utterance 'clip-3': text: the text"),
    ],
)
def test_a_mistake_of_a_recipe_is_a_sentence_with_the_utterance(cell, change, complaint):
    with pytest.raises(UserError, match=complaint):
        prepared(cell(change))


def test_the_order_of_cells_does_not_matter_to_prepare(cell):
    one, other = cell("long", "too_long", model={"context": 130}), cell("")
    assert [m.corpus.left_out for m in prepared(one, other)] == [m.corpus.left_out for m in prepared(other, one)][::-1]
    assert prepare([other], run=in_this_process)[0].corpus.left_out == {}
