"""Scores against jiwer, against hand computation, and against what an interval must do."""

import math
import sys
import unicodedata

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlm.errors import UserError
from dmlm.score import normalisers
from dmlm.score.benefit import benefit_of_pooled, mean_of_benefits, relative_benefit
from dmlm.score.intervals import Estimate, bootstrap, wer_difference, wer_interval
from dmlm.score.normalisers import BASIC, ENGLISH, NONE
from dmlm.score.perceptual import derangements, matched_derangement, perceptual_score
from dmlm.score.wer import (
    Counts,
    align,
    count_character_errors,
    count_errors,
    mean_over_runs,
    pool,
    pool_characters,
)

WORD = st.sampled_from(["a", "b", "c", "16", "minus", "Equals"])
TEXT = st.lists(WORD, max_size=12).map(" ".join)
REFERENCE = st.lists(WORD, min_size=1, max_size=12).map(" ".join)


def counts(errors, words=None, prefix="u"):
    """Counts of utterances u0, u1, ... of ten words each, unless `words` are given."""
    words = [10] * len(errors) if words is None else words
    return Counts(tuple(f"{prefix}{i}" for i in range(len(errors))), np.array(errors, float), np.array(words, float))


# ---- word error rate


@given(st.lists(st.tuples(REFERENCE, TEXT), min_size=1, max_size=8))
def test_pooled_wer_equals_jiwer(pairs):
    references, hypotheses = zip(*((BASIC(a), BASIC(b)) for a, b in pairs), strict=True)
    ours = pool(count_errors(reference, hypothesis) for reference, hypothesis in pairs)
    assert ours.wer == pytest.approx(jiwer.wer(list(references), list(hypotheses)))


@given(REFERENCE, TEXT)
def test_errors_are_the_edit_distance(reference, hypothesis):
    """By the textbook recurrence, without jiwer."""
    left, right = BASIC(reference).split(), BASIC(hypothesis).split()
    row = list(range(len(right) + 1))
    for i, word in enumerate(left, start=1):
        corner, row[0] = row[0], i
        for j, other in enumerate(right, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (word != other))
    assert count_errors(reference, hypothesis).errors == row[-1]


@given(REFERENCE, TEXT)
def test_counts_are_an_edit_path(reference, hypothesis):
    counted = count_errors(reference, hypothesis)
    assert counted.reference_words == len(reference.split())
    assert counted.reference_words - counted.deletions + counted.insertions == len(hypothesis.split())


def test_wer_is_pooled_and_not_averaged():
    assert counts([1, 0], words=[1, 9]).wer == 0.1  # the mean of the two rates is 0.5


def test_empty_hypothesis_is_all_deletions():
    assert vars(count_errors("a b", " ")) == {"substitutions": 0, "deletions": 2, "insertions": 0, "reference_words": 2}


def test_empty_reference_is_refused():
    with pytest.raises(UserError, match="no word left after normaliser basic/2"):
        count_errors(" ", "a")


@pytest.mark.parametrize("normaliser", [NONE, BASIC])
def test_one_text_typed_in_two_ways_is_one_text(normaliser):
    """A letter and its accent are one code point (NFC) or two (NFD)."""
    reference, hypothesis = (unicodedata.normalize(form, "Ångström déjà") for form in ("NFD", "NFC"))
    assert reference != hypothesis
    assert count_errors(reference, hypothesis, normaliser).errors == 0
    assert count_character_errors(reference, hypothesis, normaliser).errors == 0
    assert count_character_errors(reference, hypothesis, normaliser).reference_characters == len("Ångström déjà")
    assert align(reference, hypothesis, normaliser).operations == ""


@given(st.text())
@pytest.mark.parametrize("normaliser", [NONE, BASIC])
def test_normalising_twice_changes_nothing(normaliser, text):
    assert normaliser(normaliser(text)) == normaliser(text)
    assert unicodedata.is_normalized("NFC", normaliser(text))


def test_without_a_normaliser_only_spaces_are_alike():
    assert count_errors("The  cat", "the cat", NONE).errors == 1
    assert NONE(" The\tcat. ") == "The cat."


def test_the_english_normaliser_is_whispers():
    """Lines of the paper's appendix C (arXiv 2212.04356): contractions, titles, numbers, spellings, fillers, brackets."""
    pytest.importorskip("whisper_normalizer")
    assert ENGLISH("Mr. Park's colour-coded  [laughter] plan, um, won't cost $20 million!") == (
        "mister park is color coded plan will not cost $20000000"
    )
    assert count_errors("It's twenty-one.", "it is 21", ENGLISH).errors == 0
    with pytest.raises(UserError, match="no word left after normaliser english/1"):
        count_errors("hmm", "a", ENGLISH)


def test_a_normaliser_that_lacks_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "whisper_normalizer", None)
    normalisers._english_normaliser.cache_clear()
    normalisers._english.cache_clear()
    with pytest.raises(UserError, match=r'pip install -e "\.\[english\]"'):
        ENGLISH.require()


def test_a_stored_result_names_its_normaliser():
    assert normalisers.of_stored("english/1") is ENGLISH
    with pytest.raises(UserError, match="normaliser 'basic/99'; this version has"):
        normalisers.of_stored("basic/99")


@given(st.lists(st.tuples(REFERENCE, TEXT), min_size=1, max_size=8))
def test_cer_equals_jiwer_on_the_normalised_texts(pairs):
    ours = pool_characters(count_character_errors(reference, hypothesis) for reference, hypothesis in pairs)
    references, hypotheses = zip(*((BASIC(a), BASIC(b)) for a, b in pairs), strict=True)
    assert ours.cer == pytest.approx(jiwer.cer(list(references), list(hypotheses)))
    assert ours.reference_characters == sum(map(len, references)), "spaces between words are characters"


def test_systems_of_different_normalisers_are_not_compared():
    first = Counts(("u1",), np.array([1.0]), np.array([3.0]), "basic/2")
    second = Counts(("u1",), np.array([1.0]), np.array([3.0]), "english/1")
    for compare in (relative_benefit, wer_difference):
        with pytest.raises(UserError, match="one was scored with normaliser basic/2, the other with english/1"):
            compare(first, second)
    assert mean_over_runs([second, second]).normaliser == "english/1"


@given(REFERENCE, TEXT)
def test_alignment_shows_the_texts_and_the_errors(reference, hypothesis):
    alignment = align(reference, hypothesis)
    assert [w for w in alignment.reference.lower().split() if set(w) != {"*"}] == BASIC(reference).split()
    assert [w for w in alignment.hypothesis.lower().split() if set(w) != {"*"}] == BASIC(hypothesis).split()
    assert len(alignment.operations.split()) == count_errors(reference, hypothesis).errors


# ---- intervals


def test_interval_equals_the_normal_one_where_that_is_right():
    """Rate of 400 one-word utterances: binomial, so the standard error is known."""
    errors = np.zeros(400)
    errors[:100] = 1
    interval = wer_interval(counts(errors, words=[1] * 400))
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert interval.value == 0.25
    assert interval.low == pytest.approx(0.25 - half, abs=0.006)
    assert interval.high == pytest.approx(0.25 + half, abs=0.006)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        interval = wer_interval(counts(rng.binomial(10, 0.2, size=80)), resamples=300)
        hits += interval.low <= 0.2 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_pairing_makes_a_difference_sharper_than_its_parts():
    rng = np.random.default_rng(2)
    hard = rng.integers(0, 9, size=100)
    first, second = counts(hard + 1), counts(hard)
    paired, alone = wer_difference(first, second), wer_interval(first)
    assert (paired.value, paired.low, paired.high) == pytest.approx((0.1, 0.1, 0.1))
    assert alone.high - alone.low > 0.05


@given(st.lists(st.integers(0, 12), min_size=2, max_size=30))
@settings(max_examples=30)
def test_interval_is_reproducible_and_ordered(errors):
    first, again = wer_interval(counts(errors)), wer_interval(counts(errors))
    assert first == again
    assert 0 <= first.low <= first.high <= max(errors) / 10 + 1e-6


def test_another_seed_gives_another_interval():
    test_set = counts(np.random.default_rng(3).integers(0, 9, 50))
    assert wer_interval(test_set, seed=1) != wer_interval(test_set, seed=2)


@pytest.mark.parametrize("errors", [[], [3]])
def test_no_interval_for_fewer_than_two_items(errors):
    interval = wer_interval(counts(errors))
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert interval.value == 0.3 if errors else math.isnan(interval.value)


def test_systems_with_other_utterances_are_refused():
    with pytest.raises(UserError, match="'u2'"):
        wer_difference(counts([1, 2, 3]), counts([1, 2]))
    with pytest.raises(UserError, match=r"'u1'.*another number of words"):
        relative_benefit(counts([1, 2]), counts([1, 2], words=[10, 11]))


def test_order_of_utterances_does_not_matter():
    first, second = counts([1, 5, 2]), counts([3, 0, 4])
    turned = Counts(second.ids[::-1], second.errors[::-1], second.words[::-1])
    assert wer_difference(first, second) == wer_difference(first, turned)


def test_undefined_resamples_are_counted_and_too_many_leave_no_interval():
    columns = np.array([[1.0, 1.0], *[[0.0, 0.0]] * 9])  # 35 % of resamples miss the only item with a value
    interval = bootstrap(lambda s: np.where(s[..., 1] > 0, s[..., 0], np.nan), columns)
    assert interval.value == 1
    assert math.isnan(interval.low)
    assert 500 < interval.undefined < 900


# ---- relative benefit


def test_relative_benefit_by_hand():
    """The paper's example: 20 % to 16 % is +20 %."""
    benefit = relative_benefit(counts([2] * 50), counts([2, 2, 2, 2, 0] * 10))
    assert benefit.value == pytest.approx(0.20)
    assert 0 < benefit.low < 0.20 < benefit.high
    assert benefit.excludes_zero


def test_relative_benefit_without_an_error_is_undefined():
    benefit = relative_benefit(counts([0, 0, 0]), counts([1, 0, 0]))
    assert math.isnan(benefit.value)
    assert not benefit.excludes_zero


def test_mean_of_benefits_is_not_the_benefit_of_the_pooled_wer():
    easy, hard = (counts([1] * 20), counts([0.5] * 20)), (counts([4] * 20), counts([4] * 20))
    assert mean_of_benefits([easy, hard]).value == pytest.approx((0.5 + 0) / 2)
    assert benefit_of_pooled([easy, hard]).value == pytest.approx((5 - 4.5) / 5)


# ---- perceptual score


@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_derangements_have_no_fixed_point(utterances, draws, seed):
    orders = derangements(utterances, draws, np.random.default_rng(seed))
    assert orders.shape == (draws, utterances)
    assert not (orders == np.arange(utterances)).any()
    assert (np.sort(orders, axis=1) == np.arange(utterances)).all()


def test_derangements_are_uniform():
    orders = derangements(4, 9000, np.random.default_rng(0))
    kinds, numbers = np.unique(orders, axis=0, return_counts=True)
    assert len(kinds) == 9  # all derangements of four
    assert numbers.min() > 850
    assert numbers.max() < 1150


@given(st.lists(st.integers(1, 300), min_size=2, max_size=60), st.integers(2, 9), st.integers(0, 99))
def test_matched_derangement_stays_near_in_length(lengths, block, seed):
    donors = matched_derangement(lengths, np.random.default_rng(seed), block)
    assert sorted(donors) == list(range(len(lengths)))
    assert not (donors == np.arange(len(lengths))).any()
    ranks = np.empty(len(lengths), dtype=int)
    ordered = np.sort(lengths)
    for index, donor in enumerate(donors):
        ranks[index] = abs(np.searchsorted(ordered, lengths[donor]) - np.searchsorted(ordered, lengths[index]))
    spread = max(lengths.count(length) for length in lengths)
    assert ranks.max() <= block + spread  # a single remaining utterance widens the last block by one


@pytest.mark.parametrize("utterances", [0, 1])
def test_nothing_to_permute_is_refused(utterances):
    with pytest.raises(UserError, match="cannot be permuted"):
        derangements(utterances, 1, np.random.default_rng(0))
    with pytest.raises(UserError, match="cannot be permuted"):
        matched_derangement([5] * utterances, np.random.default_rng(0))


def test_perceptual_score_by_hand():
    intact, draws = counts([1] * 20), [counts([3] * 20), counts([4] * 20)]
    measured = perceptual_score(intact, draws, baseline=counts([2] * 20))
    assert measured.score.value == pytest.approx(0.35 - 0.10)
    assert measured.by_model.value == pytest.approx(0.25 / 0.10)
    assert measured.by_task.value == pytest.approx(0.25 / 0.20)
    assert measured.draws == 2
    assert measured.draw_sd == pytest.approx(np.std([0.3, 0.4], ddof=1))


def test_perceptual_score_without_baseline_or_errors_is_undefined_not_zero():
    measured = perceptual_score(counts([0] * 5), [counts([1] * 5)])
    assert math.isnan(measured.by_model.value)
    assert math.isnan(measured.by_task.value)
    assert math.isnan(measured.draw_sd)


def test_perceptual_score_needs_a_draw():
    with pytest.raises(UserError, match="at least one"):
        perceptual_score(counts([1]), [])


def test_mean_over_runs_keeps_the_rate():
    runs = [counts([1, 2]), counts([3, 4])]
    assert mean_over_runs(runs).wer == pytest.approx(np.mean([run.wer for run in runs]))


def test_an_estimate_at_zero_does_not_exclude_it():
    assert not Estimate(0.1, 0.0, 0.2).excludes_zero
    assert Estimate(-0.1, -0.2, -0.01).excludes_zero
