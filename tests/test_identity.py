"""Identity of trials: of settings that change a result, however they are written."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm.corpus.condition import CLEAN, Condition
from dmlm.plan.grid import Grid, read_grid_file
from dmlm.plan.identity import canonical, identity
from dmlm.sweep.trial import evaluations_of, training_spec, trial_name

FINGERPRINTS = {"A": "a", "L": "l", "O": "o"}


def spec(grid: Grid, number: int = 0):
    return training_spec(grid.cells[number], {"A": "a", "T": "t"}, "text", FINGERPRINTS, [CLEAN])


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
    assert canonical({"a": np.int64(3), "b": np.float32(0.5)}) == canonical({"a": 3, "b": 0.5})
    assert canonical({"a": math.nan}) == canonical({"a": float("nan")})
    assert canonical({"a": 0.5}) != canonical({"a": 0.25})


@pytest.mark.parametrize(
    "change",
    [
        "train.lr=0.5",
        "train.lambdas.A=0",
        "train.dropout=0.3",
        "seed=7",
        "permute=A",
        "model.context=600",
        "model.start=random",
    ],
)
def test_what_changes_a_result_changes_the_trial(change):
    assert identity(spec(read_grid_file("quickstart"))) != identity(spec(read_grid_file("quickstart", [change])))


def test_new_test_levels_train_nothing():
    before, after = read_grid_file("quickstart"), read_grid_file("quickstart", ["snr_db.test=[clean, -10, -15]"])
    assert identity(spec(before)) == identity(spec(after))


def test_the_name_of_a_trial_is_readable():
    grid = read_grid_file("quickstart")
    assert trial_name(grid.cells[1], spec(grid, 1)).startswith("opt-tiny_A+L_seed0-")


def test_only_added_modalities_are_permuted():
    grid = read_grid_file("quickstart", ["perceptual={snr_db: [0], draws: 3}"])
    snrs_db = grid.cells[0].snr_db.test
    conditions = {snr_db: CLEAN if snr_db == math.inf else Condition(snr_db, bank_digest="b") for snr_db in snrs_db}
    plain, lips = (evaluations_of(grid.cells[n], grid.baseline, conditions, {}) for n in (0, 1))
    assert {e.permuted for e in plain} == {None}
    assert [(e.permuted, e.draw) for e in lips if e.permuted] == [("L", 0), ("L", 1), ("L", 2)]
    names = [e.name(grid.cells[1]) for e in lips]
    assert len(set(names)) == len(names)
