"""Which split, or which fold, a clip is for: by a rule that depends on ids and speakers alone."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from dmlm.corpus.manifest import SPLITS, Split
from dmlm.errors import UserError
from dmlm.importing.clip import Clip
from dmlm.importing.settings import ImportSettings


def assign(clips: Sequence[Clip], settings: ImportSettings) -> tuple[list[Clip], str]:
    """Return the clips with their splits, or folds, and the rule in words.

    Raises:
        UserError: a clip has no speaker, split or fold, where that decides; folds are not numbered from 0; or there are
            too few clips or speakers.
    """
    by = settings.split or ("id" if settings.folds else _given(clips))
    if by == "fold":
        return [_in_fold(clip, clip.fold or 0) for clip in clips], "folds as given"
    if by == "given":
        if lacking := next((clip for clip in clips if clip.split is None), None):
            raise UserError(
                f"{lacking.source or lacking.id} has no split; give every clip one, or choose --split speaker or id."
            )
        return list(clips), "as given"
    if by == "speaker" and (silent := next((clip for clip in clips if not clip.speaker), None)):
        raise UserError(
            f"{silent.source or silent.id} names no speaker, and --split speaker needs one; or choose --split id."
        )
    keys = [str(clip.speaker) if by == "speaker" else clip.id for clip in clips]
    if settings.folds:
        fold_of = deal(keys, [1 / settings.folds] * settings.folds, by)
        folded = [_in_fold(clip, fold_of[key]) for clip, key in zip(clips, keys, strict=True)]
        return folded, f"{settings.folds} folds by {by}"
    parts: list[Split] = ["test", *(["val"] if settings.val else []), "train"]  # type: ignore[list-item]
    shares = {"test": settings.test, "val": settings.val, "train": 1 - settings.test - settings.val}
    part_of = deal(keys, [shares[part] for part in parts], by)
    split = [
        clip.model_copy(update={"split": parts[part_of[key]], "fold": None})
        for clip, key in zip(clips, keys, strict=True)
    ]
    return split, f"by {by}: test {settings.test:.0%}, val {settings.val:.0%}"


def _given(clips: Sequence[Clip]) -> str:
    """Return what decides where a user chose nothing: `given` splits, else the `fold` given, else the `id`.

    Raises:
        UserError: some clips have a split or a fold, and others do not; or folds are not numbered from 0.
    """
    for what in ("split", "fold"):
        has = [getattr(clip, what) is not None for clip in clips]
        if any(has) and not all(has):
            without = clips[has.index(False)]
            raise UserError(
                f"{without.source or without.id} has no {what}, and other clips have one; give every clip one, or choose"
                " --split speaker or id."
            )
    folds = {clip.fold for clip in clips} - {None}
    if folds and (len(folds) < 3 or folds != {*range(len(folds))}):
        numbers = ", ".join(map(str, sorted(fold for fold in folds if fold is not None)))
        raise UserError(f"The folds given are {numbers}; number them 0, 1, 2 and so on, three at least.")
    return "given" if clips[0].split else "fold" if folds else "id"


def _in_fold(clip: Clip, fold: int) -> Clip:
    """Return a clip of a fold; its split is that of fold 0 as test, see `dmlm.corpus.manifest.in_fold`."""
    split = {0: SPLITS[2], 1: SPLITS[1]}.get(fold, SPLITS[0])
    return clip.model_copy(update={"split": split, "fold": fold})


def split_of(key: str, test: float = 0.2, val: float = 0.1) -> Split:
    """Return the split of everything that has this key: the SHA-256 of the key, read as a fraction, lies below a share.

    It depends on nothing but the key, so corpora that share keys, such as languages, share the splits.

    >>> split_of("a cat"), split_of("a hen")
    ('train', 'val')
    """
    at = int(hashlib.sha256(key.encode()).hexdigest(), 16) / 2**256
    return "test" if at < test else "val" if at < test + val else "train"


def deal(keys: Sequence[str], shares: Sequence[float], what: str = "id") -> dict[str, int]:
    """Return the number of the part that each key is for; parts get these shares of the items, about.

    Keys stand in the order of the SHA-256 of their names. Each part takes the next ones until it has its share of the
    items (several items may have one key, as those of a speaker), but leaves one key at least for each part after it. So
    the result depends on the names alone, and a clip that is added moves few others.

    Raises:
        UserError: there are fewer keys than parts.

    >>> sorted(deal(["a", "b", "c", "d"], [0.25, 0.25, 0.5]).values())
    [0, 1, 2, 2]
    """
    sizes = Counter(keys)
    order = sorted(sizes, key=lambda key: hashlib.sha256(key.encode()).digest())
    if len(order) < len(shares):
        raise UserError(
            f"{len(order)} different {what}s cannot be dealt to {len(shares)} parts; add some, or split otherwise."
        )
    part_of: dict[str, int] = {}
    part, members, held, due = 0, 0, 0, shares[0] * len(keys)
    for number, key in enumerate(order):
        left, later_parts = len(order) - number, len(shares) - part - 1
        if members and later_parts and (held + sizes[key] / 2 > due or left <= later_parts):
            part, members, due = part + 1, 0, due + shares[part + 1] * len(keys)
        part_of[key] = part
        members, held = members + 1, held + sizes[key]
    return part_of
