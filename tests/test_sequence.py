"""Vocabulary, template and batches: disjoint ranges, packing without loss, batches without loss."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlm.errors import UserError
from dmlm.sequence.batches import check_context, collate, epoch_order, mask_prompt, micro_batches, stream
from dmlm.sequence.template import ROLES, UNSCORED, Packed, Template, merge_by_time, pack, unpack
from dmlm.tokens.vocabulary import SPECIALS, TextVocabulary, Vocabulary

SIZES = {"A": 40, "L": 30, "I": 20}
VOCABULARY = Vocabulary(300, SIZES)
RATES = {"A": 50.0, "L": 25.0, "I": None}


def tokens(size):
    return st.lists(st.integers(0, size - 1), max_size=30).map(lambda values: np.array(values, dtype=np.int32))


@st.composite
def notations(draw):
    letters = draw(st.permutations(["A", "L", "I", "O"]))[: draw(st.integers(1, 4))]
    if "A" in letters and "L" in letters and draw(st.booleans()):
        letters = ["interleave(A,L)", *(letter for letter in letters if letter not in "AL")]
    return "+".join(letters) + " -> T"


STREAMS = st.fixed_dictionaries({"A": tokens(40), "L": tokens(30), "I": tokens(20), "O": tokens(300), "T": tokens(300)})


@given(notations(), STREAMS)
@settings(max_examples=150, deadline=None)
def test_unpack_is_the_inverse_of_pack(notation, streams):
    template = Template.parse(notation)
    packed = pack(template, streams, VOCABULARY, RATES)
    assert packed.ids.min() >= 0
    assert packed.ids.max() < VOCABULARY.size
    for letter, values in unpack(packed, template, VOCABULARY).items():
        assert np.array_equal(values, streams[letter]), letter


@given(st.integers(256, 60_000), st.dictionaries(st.sampled_from("ALI"), st.integers(1, 10_000)))
def test_ranges_are_disjoint_and_fill_the_space(text_size, sizes):
    vocabulary = Vocabulary(text_size, sizes)
    ranges = [vocabulary.range("T"), *(vocabulary.range(letter) for letter in sizes)]
    ids = sorted((r.start, r.stop) for r in ranges) + [(vocabulary.special(s),) * 2 for s in SPECIALS]
    assert ids[0][0] == 0
    assert all(left[1] <= right[0] for left, right in pairwise(ids))
    assert vocabulary.size == text_size + sum(sizes.values()) + len(SPECIALS)
    assert vocabulary.range("O") == vocabulary.range("T")


def test_the_layout_is_the_written_one():
    streams = {"A": np.array([1, 2]), "L": np.array([3]), "T": np.array([7])}
    packed = pack(Template.parse("L+A -> T"), streams, VOCABULARY, RATES)
    s = VOCABULARY.special
    audio, lips = VOCABULARY.offset("A"), VOCABULARY.offset("L")
    assert packed.ids.tolist() == [
        s("<bos>"),
        s("<L>"),
        lips + 3,
        s("<A>"),
        audio + 1,
        audio + 2,
        s("<T>"),
        7,
        s("<eos>"),
    ]
    assert "".join(ROLES[r] if r != UNSCORED else "." for r in packed.roles) == "..L.AA.TT"


def test_the_prompt_is_the_sequence_without_its_answer():
    streams = {"A": np.array([1, 2]), "T": np.array([7, 8])}
    sequence = pack(Template.parse("A -> T"), streams, VOCABULARY, RATES)
    prompt = pack(Template.parse("A -> T"), streams, VOCABULARY, RATES, with_target=False)
    assert sequence.ids[: len(prompt)].tolist() == prompt.ids.tolist()
    assert prompt.ids[-1] == VOCABULARY.special("<T>")


def test_interleaving_follows_time():
    order = merge_by_time((4, 2), (50.0, 25.0))  # audio at 10, 30, 50, 70 ms; lips at 20, 60 ms
    assert order.tolist() == [0, 4, 1, 2, 5, 3]


@pytest.mark.parametrize(
    ("notation", "complaint"),
    [
        ("A+L", "must read like"),
        ("A+X -> T", "'X'"),
        ("A+A -> T", "twice"),
        ("-> T", "neither"),
        ("A -> L", "must read"),
        ("A+T -> T", "'T'"),
    ],
)
def test_a_wrong_template_is_one_sentence(notation, complaint):
    with pytest.raises(UserError, match=complaint):
        Template.parse(notation)


@pytest.mark.parametrize("clockless", ["I", "O"])
def test_interleaving_needs_clocks(clockless):
    with pytest.raises(UserError, match="without a clock"):
        pack(
            Template.parse(f"interleave(A,{clockless}) -> T"),
            {"A": np.zeros(2, int), clockless: np.zeros(2, int), "T": np.zeros(1, int)},
            VOCABULARY,
            RATES,
        )


def test_an_id_beyond_the_declared_size_is_refused():
    with pytest.raises(ValueError, match="modality A"):
        VOCABULARY.shift("A", np.array([40]))


@given(st.text(max_size=60).filter(lambda text: text == text.strip()))
@settings(max_examples=60, deadline=None)
def test_any_text_survives_the_vocabulary(text):
    vocabulary = TextVocabulary.learn(["3 over 7 x equals 12", "log of 5 y"], 300)
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_a_word_is_one_token_wherever_it_stands():
    vocabulary = TextVocabulary.learn(["plus 17 equals 4"] * 50, 400)
    assert vocabulary.encode("17 plus 17").tolist() == [vocabulary.encode(w).item() for w in ("17", "plus", "17")]


@given(st.lists(st.integers(1, 80), min_size=1, max_size=200), st.integers(1, 17), st.integers(0, 5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_visits_everybody_once(lengths, batch_size, seed, epoch):
    batches = epoch_order(np.array(lengths), batch_size, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size


def test_the_stream_starts_anywhere_as_if_never_interrupted():
    lengths = np.random.default_rng(0).integers(5, 50, 103)
    uninterrupted = stream(lengths, 8, seed=3)
    batches = [next(uninterrupted) for _ in range(40)]
    later = stream(lengths, 8, seed=3, start=25)
    for epoch, indices in batches[25:]:
        again = next(later)
        assert again[0] == epoch
        assert np.array_equal(again[1], indices)


def test_batches_hold_little_padding():
    lengths = np.random.default_rng(0).integers(40, 160, 2_000)
    padded = sum(len(batch) * lengths[batch].max() for batch in epoch_order(lengths, 32, 0, 0))
    assert lengths.sum() / padded > 0.9


def test_a_batch_is_its_sequences_end_to_end():
    sequences = [
        Packed(np.array([5, 6, 7]), np.array([0, 0, 4], np.int8)),
        Packed(np.array([8]), np.array([4], np.int8)),
    ]
    batch = collate(sequences)
    assert batch.ids.tolist() == [5, 6, 7, 8]
    assert batch.roles.tolist() == [0, 0, 4, 4]
    assert batch.lengths.tolist() == [3, 1]
    assert len(collate([]).ids) == 0


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(1, 60))
def test_micro_batches_hold_every_item_and_few_tokens(lengths, max_tokens):
    parts = micro_batches(np.array(lengths, dtype=np.int64), max_tokens)
    assert [index for part in parts for index in range(part.start, part.stop)] == list(range(len(lengths)))
    for part in parts:
        assert sum(lengths[part]) <= max_tokens or part.stop - part.start == 1


def test_a_sequence_beyond_the_context_is_refused_by_name():
    sequences = [Packed(np.zeros(n, np.int64), np.zeros(n, np.int8)) for n in (10, 30, 20)]
    with pytest.raises(UserError, match=r"2 of 3 sequences.*context of 15.*'c'.*30"):
        check_context(sequences, ["a", "c", "b"], 15, "A -> T")


def test_masking_hides_the_asked_share_of_the_prompt_only():
    roles = np.array([-1] + [0] * 300 + [1] * 300 + [-1] + [4] * 50, np.int8)
    batch = collate([Packed(np.arange(len(roles)), roles)] * 20)
    masked = mask_prompt(batch, 0.15, 999, np.random.default_rng(0))
    hidden = masked != batch.ids
    prompt = (batch.roles == 0) | (batch.roles == 1)
    assert hidden[prompt].mean() == pytest.approx(0.14, abs=0.02)
    assert not hidden[~prompt].any()
    assert np.array_equal(mask_prompt(batch, 0.0, 999, np.random.default_rng(0)), batch.ids)
