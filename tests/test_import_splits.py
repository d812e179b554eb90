"""How clips are dealt to splits and folds, and what their files are called: properties, for any ids and speakers."""

import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm.errors import UserError
from dmlm.importing.build import LONGEST_NAME, file_names
from dmlm.importing.clip import Clip
from dmlm.importing.settings import ImportSettings
from dmlm.importing.splits import assign, deal

names = st.text(min_size=1, max_size=8)
shares = st.lists(st.floats(0.2, 1), min_size=2, max_size=6).map(lambda some: [share / sum(some) for share in some])


def items(sizes):
    return [key for key, size in sizes.items() for _ in range(size)]


@given(st.dictionaries(names, st.integers(1, 20), min_size=6, max_size=40), shares)
def test_every_key_has_a_part_and_every_part_a_key(sizes, parts):
    part_of = deal(items(sizes), parts)
    assert set(part_of) == set(sizes)
    assert set(part_of.values()) == set(range(len(parts)))


@given(st.dictionaries(names, st.integers(1, 3), min_size=60, max_size=80), shares)
def test_every_part_has_its_share_within_one_key(sizes, parts):
    part_of = deal(items(sizes), parts)
    held = Counter(part_of[key] for key in items(sizes))
    for part in range(len(parts)):
        reached, wanted = (sum(some[: part + 1]) for some in ([held[n] for n in range(len(parts))], parts))
        assert abs(reached - wanted * len(items(sizes))) <= max(sizes.values())


@given(st.sets(names, min_size=10, max_size=60), names, shares)
def test_a_clip_that_is_added_moves_at_most_one_other_between_each_two_parts(ids, added, parts):
    before, after = deal(sorted(ids), parts), deal(sorted({*ids, added}), parts)
    assert sum(before[key] != after[key] for key in ids if key != added) <= len(parts) - 1


@given(st.permutations([f"clip-{number}" for number in range(12)]), st.integers(3, 6))
def test_folds_do_not_depend_on_the_order_and_are_of_equal_size(ids, folds):
    clips = [Clip(id=name, text="a", audio=[{"path": "x"}]) for name in ids]
    assigned, rule = assign(clips, ImportSettings(folds=folds))
    sizes = Counter(clip.fold for clip in assigned)
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert {clip.id: clip.fold for clip in assigned} == deal(sorted(ids), [1 / folds] * folds)
    assert rule == f"{folds} folds by id"


@given(st.lists(st.sampled_from("abcd"), min_size=12, max_size=40))
def test_no_speaker_is_in_two_splits(speakers):
    clips = [
        Clip(id=f"{number}", text="a", speaker=speaker, audio=[{"path": "x"}])
        for number, speaker in enumerate(speakers)
    ]
    if len(set(speakers)) < 3:
        with pytest.raises(UserError, match="cannot be dealt to 3 parts"):
            assign(clips, ImportSettings(split="speaker"))
    else:
        assigned, _ = assign(clips, ImportSettings(split="speaker"))
        assert len({(clip.speaker, clip.split) for clip in assigned}) == len(set(speakers))
        assert {clip.split for clip in assigned} == {"train", "val", "test"}


def clips_with(*given):
    return [Clip(id=f"{number}", text="a", audio=[{"path": "x"}], **one) for number, one in enumerate(given)]


def test_a_clip_without_a_split_does_not_undo_the_splits_of_the_others():
    """Once all clips were split anew then, so that the test clips of a published split were trained on."""
    clips = clips_with({"split": "train"}, {"split": "test"}, {})
    with pytest.raises(UserError, match=r"^2 has no split, and other clips have one; give every clip one"):
        assign(clips, ImportSettings())
    assert assign(clips, ImportSettings(split="id"))[1] == "by id: test 20%, val 10%"


def test_folds_that_are_given_without_splits_are_kept():
    assigned, rule = assign(clips_with({"fold": 2}, {"fold": 0}, {"fold": 1}), ImportSettings())
    assert [(clip.fold, clip.split) for clip in assigned] == [(2, "train"), (0, "test"), (1, "val")]
    assert rule == "folds as given"
    for folds in ((1, 2, 3), (0, 1), (0, 1, 3)):
        with pytest.raises(UserError, match=f"The folds given are {', '.join(map(str, folds))}; number them 0, 1, 2"):
            assign(clips_with(*({"fold": fold} for fold in folds)), ImportSettings())
    with pytest.raises(UserError, match="3 has no fold, and other clips have one"):
        assign(clips_with({"fold": 2}, {"fold": 0}, {"fold": 1}, {}), ImportSettings())


tricky = st.text(st.sampled_from("aAbB01=%./\\~ é日-")) | st.text() | st.text("xX", min_size=140, max_size=170)
safe = set(string.ascii_letters + string.digits + "_.-%= !#$&'()+,;@[]^{}~")


@given(st.lists(tricky.filter(bool), unique=True, max_size=30))
def test_files_of_two_ids_never_have_one_name_and_every_name_can_be_one(ids):
    named = file_names(ids)
    # as if an id were made to look like the name of another one
    named = file_names([*ids, *(name for name in named.values() if name not in ids)])
    assert len({name.casefold() for name in named.values()}) == len(named)
    for name in named.values():
        assert set(name) <= safe
        assert not name.startswith(".")
        assert 0 < len(name) <= LONGEST_NAME + 17


@given(st.lists(tricky.filter(bool), unique=True, min_size=1, max_size=30))
def test_the_name_of_a_file_does_not_depend_on_the_order(ids):
    assert file_names(ids) == file_names(ids[::-1])
