"""Sweep files, trial identity, and the user's mistakes: each one sentence."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm import recipes
from dmlm.corpus.condition import CLEAN, Condition
from dmlm.errors import UserError
from dmlm.sweep.grid import Grid, override, read_grid_file
from dmlm.sweep.identity import canonical, identity
from dmlm.sweep.preview import describe
from dmlm.sweep.trial import evaluations_of, training_spec, trial_folder

FINGERPRINTS = {"A": "a", "L": "l", "O": "o"}


def spec(grid: Grid, number: int = 0):
    return training_spec(grid.cells[number], grid, "corpus", "text", FINGERPRINTS, [CLEAN])


@pytest.mark.parametrize("name", recipes.names("sweeps"))
def test_every_shipped_grid_resolves(name):
    grid = read_grid_file(name)
    assert grid.cells
    assert grid.baseline in {cell.template.notation for cell in grid.cells}
    for letter, choice in grid.tokenizers.items():
        assert recipes.find("tokenizers", choice.recipe), letter


def test_cells_are_the_product_of_each_row_and_each_once():
    grid = read_grid_file(
        "quickstart", ["cells=[{backbone: [opt-nano, mamba-nano], template: [A -> T, A+L->T, A -> T], seed: [0, 1]}]"]
    )
    assert len(grid.cells) == 8
    assert [cell.label for cell in grid.cells[:4]] == ["OPT A", "OPT A seed 1", "OPT A+L", "OPT A+L seed 1"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("train.stepz=5", "'train.stepz'; did you mean 'steps'"),
        ("tokenizer.A=x", "did you mean 'tokenizers'"),
        ("train.steps=many", "train.steps"),
        ("noise.placement=third_half", "noise.placement"),
        ("cells.0.backbone=opt-huge", "no backbone 'opt-huge'"),
        ("cells.0.template=A+X -> T", "'X'"),
        ("cells.0.template=A+I -> T", "names none for I"),
        ("train.lambdas.Q=1", "known: A, I, L, O, T"),
        ("cells.9.seed=1", "no place 'cells.9.seed'"),
        ("train.steps.x=1", "no place"),
        ("train.steps=[", "not a YAML value"),
        ("steps", "key=value"),
        ("snr_db.test=[]", "snr_db.test"),
        ("snr_db.test=[clean, 0]", "perceptual.snr_db has -10, which snr_db.test lacks"),
    ],
)
def test_a_mistake_is_one_sentence(change, complaint):
    with pytest.raises(UserError) as error:
        read_grid_file("quickstart", [change])
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["tokenizers.A=audio_mfc", "noise.set=/no/such/folder", "corpus.preset=tinny"])
def test_a_dry_run_finds_the_mistakes_of_a_run(change):
    with pytest.raises(UserError):
        describe(read_grid_file("quickstart", [change]))


def test_an_unknown_grid_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        read_grid_file("quikstart")


def test_a_file_that_is_not_yaml_is_named(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("cells: [")
    with pytest.raises(UserError, match=r"broken\.yaml is not YAML"):
        read_grid_file(str(path))


def test_overrides_leave_the_original_alone():
    values = {"train": {"steps": 5}, "snr_db": {"test": [0]}}
    assert override(values, ["train.steps=7", "snr_db.test=[clean, -5]"]) == {
        "train": {"steps": 7},
        "snr_db": {"test": ["clean", -5]},
    }
    assert values["train"]["steps"] == 5


def test_a_single_value_needs_no_list():
    grid = read_grid_file("quickstart", ["noise.kinds=noise", "perceptual.snr_db=0"])
    assert grid.noise.kinds == ("noise",)
    assert grid.perceptual.snr_db == (0.0,)


def test_clean_is_infinite():
    assert read_grid_file("quickstart", ["snr_db.test=[clean, -10]"]).snr_db.test == (math.inf, -10.0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(allow_nan=False, width=32) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=6))
def test_identity_ignores_the_order_of_keys(values):
    assert identity(values) == identity(dict(reversed(values.items())))


def test_identity_ignores_how_a_number_is_written():
    assert canonical({"a": 0, "b": 2}) == canonical({"b": 2.0, "a": -0.0})
    assert canonical({"a": 0.5}) != canonical({"a": 0.25})


@pytest.mark.parametrize(
    "change",
    [
        "train.lr=0.5",
        "train.lambdas.A=0",
        "train.dropout=0.3",
        "cells.0.seed=7",
        "model.context=600",
        "model.start=random",
    ],
)
def test_what_changes_a_result_changes_the_trial(change):
    assert identity(spec(read_grid_file("quickstart"))) != identity(spec(read_grid_file("quickstart", [change])))


def test_new_test_levels_train_nothing():
    before, after = read_grid_file("quickstart"), read_grid_file("quickstart", ["snr_db.test=[clean, -10, -15]"])
    assert identity(spec(before)) == identity(spec(after))


def test_the_trial_folder_is_readable(tmp_path):
    grid = read_grid_file("quickstart")
    folder = trial_folder(tmp_path, grid.cells[1], spec(grid, 1))
    assert folder.name.startswith("opt-tiny_A+L_seed0-")


def test_only_added_modalities_are_permuted():
    grid = read_grid_file("quickstart", ["perceptual={snr_db: [0], draws: 3}"])
    conditions = {
        level: CLEAN if level == math.inf else Condition((level,), bank_digest="b") for level in grid.snr_db.test
    }
    plain, lips = (evaluations_of(grid.cells[n], grid, conditions) for n in (0, 1))
    assert {e.permuted for e in plain} == {None}
    assert [(e.permuted, e.draw) for e in lips if e.permuted] == [("L", 0), ("L", 1), ("L", 2)]
    names = [e.folder_name(grid) for e in lips]
    assert len(set(names)) == len(names)
