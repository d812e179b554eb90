"""What the measures are computed from: which runs, which items, which of two texts, which of two systems."""

import numpy as np
import pytest
from fake_grid import sentences, write_grid

from dmlm.results.grid import read_grid
from dmlm.results.measures import System, benefit_point, perceptual_point
from dmlm.score.wer import Counts, count_errors, mean_over_runs

LIPS = System("opt-tiny", "A+L -> T", corpus="three_equations-abababab")


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a b c d", "a x c d e f", (1, 0, 2, 4)),
        ("a x c d e f", "a b c d", (1, 2, 0, 6)),
    ],
)
def test_what_is_written_and_not_said_is_an_insertion(reference, hypothesis, expected):
    found = count_errors(reference, hypothesis)
    assert (found.substitutions, found.deletions, found.insertions, found.reference_words) == expected


def test_a_mean_over_runs_is_one_of_each_utterance_in_whatever_order_they_were_read():
    first = Counts(("u", "v", "w"), np.array([1.0, 2.0, 6.0]), np.full(3, 10.0))
    second = Counts(("w", "u", "v"), np.array([8.0, 3.0, 4.0]), np.full(3, 10.0))
    mean = mean_over_runs([first, second])
    assert mean.ids == ("u", "v", "w")
    assert mean.errors.tolist() == [2.0, 3.0, 7.0]


LOST = {"A -> T": {0: 4, 1: 8, 2: 4}, "A+L -> T": {0: 2, 1: 1, 2: 6}}  # words of every sentence, by training seed


@pytest.mark.parametrize(
    ("unfinished", "expected"),
    [
        ({}, (16 - 9) / 16),
        ({"A+L": (1, 2)}, (4 - 2) / 4),
        ({"A": (1, 2)}, (4 - 2) / 4),
        ({"A": (0,), "A+L": (1,)}, (4 - 6) / 4),
    ],
)
def test_a_relative_benefit_is_over_the_seeds_that_both_systems_have(tmp_path, unfinished, expected):
    def speaker(reference, model, template, snr_db, permuted, draw):
        return " ".join(reference.split()[LOST[template][draw // 100] :])

    folder = write_grid(tmp_path, snrs_db=(0.0,), seeds=(0, 1, 2), utterances=6, speaker=speaker)
    for inputs, seeds in unfinished.items():
        for seed in seeds:
            (result,) = tmp_path.glob(f"trials/opt-tiny_{inputs}_seed{seed}-*/evals/*/result.json")
            result.unlink()
    assert benefit_point(read_grid(folder), LIPS, 0.0).estimate.value == pytest.approx(expected)


def test_a_perceptual_score_by_hand_from_the_stored_runs(tmp_path):
    """The audio alone loses 4 words of a sentence, with lips 2, with another's lips 4 or 6, by draw."""

    def speaker(reference, model, template, snr_db, permuted, draw):
        lost = 4 + 2 * draw if permuted else {"A -> T": 4, "A+L -> T": 2}[template]
        return " ".join(reference.split()[lost:])

    folder = write_grid(tmp_path, snrs_db=(0.0,), permuted_snrs_db=(0.0,), draws=2, utterances=6, speaker=speaker)
    point, found = perceptual_point(read_grid(folder), LIPS, "L", 0.0)
    words = sum(len(text.split()) for text in sentences(6))
    assert point.estimate.value == pytest.approx(6 * (5 - 2) / words)
    assert found.by_model.value == pytest.approx((5 - 2) / 2)
    assert found.by_task.value == pytest.approx((5 - 2) / 4)
    assert found.draws == 2
