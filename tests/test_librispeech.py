"""LibriSpeech, on a tiny tree in the layout of its archives."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmlm import recipes
from dmlm.errors import UserError

RATE_HZ = 16_000
recipe = recipes.load("datasets", "librispeech")
TEXTS = {
    ("train-clean-100", "103", "1240"): ["CHAPTER ONE", "MISSUS RACHEL LYNDE LIVED"],
    ("train-clean-100", "1034", "121119"): ["THE TEAM"],
    ("dev-clean", "1272", "128104"): ["MISTER QUILTER IS THE APOSTLE"],
    ("test-clean", "1089", "134686"): ["HE HOPED THERE WOULD BE STEW", "STUFF IT INTO YOU HIS BELLY COUNSELLED HIM"],
    ("test-other", "1688", "142285"): ["THERE'S IRON THEY SAY"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "LibriSpeech"
    root.mkdir()
    (root / "SPEAKERS.TXT").write_text(
        "; ID | SEX | SUBSET | MINUTES | NAME\n103  | F | train-clean-100 | 24.07 | Karen\n"
    )
    for seed, ((part, speaker, chapter), texts) in enumerate(TEXTS.items()):
        at = root / part / speaker / chapter
        at.mkdir(parents=True)
        names = [f"{speaker}-{chapter}-{number:04}" for number in range(len(texts))]
        lines = [f"{name} {text}\n" for name, text in zip(names, texts, strict=True)]
        (at / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
        for number, name in enumerate(names):
            noise = np.random.default_rng((seed, number)).normal(0, 0.1, RATE_HZ)
            soundfile.write(at / f"{name}.flac", noise, RATE_HZ)
    return root


def test_parts_are_splits_and_texts_lower_case(folder, tmp_path):
    corpus = recipe.prepare(recipe.PRESETS["clean100"].model_copy(update={"folder": folder}), tmp_path / "corpus", 1)
    assert corpus.counts == {"train": 3, "val": 1, "test": 2}
    first = corpus.utterances[0]
    assert (first.id, first.text, first.speaker) == ("103-1240-0000", "chapter one", "103")
    assert (first.category, first.spans) == ("train-clean-100", ((0.0, 1.0),))
    assert not any(u.text == "there's iron they say" for u in corpus.utterances)


def test_any_parts_may_be_chosen(folder):
    chosen = recipe.Settings(folder=folder, val=(), test=("test-clean", "test-other"))
    assert [c.category for c in recipe.describe(chosen).clips if c.split == "test"] == ["test-clean"] * 2 + [
        "test-other"
    ]
    with pytest.raises(ValueError, match="part test-clean is chosen twice"):
        recipe.Settings(train=("test-clean",))
    with pytest.raises(ValueError, match="there is no part 'clean'; the parts are train-clean-100"):
        recipe.Settings(train=("clean",))


def test_what_lacks_text_or_sound_is_counted(folder, tmp_path):
    chapter = folder / "test-clean/1089/134686"
    (chapter / "1089-134686-0000.flac").rename(chapter / "1089-134686-0007.flac")
    corpus = recipe.prepare(recipe.Settings(folder=folder), tmp_path / "corpus", 1)
    assert corpus.card["not_imported"] == {"no_audio": 1, "no_text": 1}
    assert corpus.counts["test"] == 1


def test_a_part_that_is_missing_is_said_with_how_to_get_it(folder, tmp_path):
    with pytest.raises(
        UserError, match=r"LibriSpeech has no train-clean-360. LibriSpeech; licence: CC BY 4.0; no account"
    ):
        recipe.require(recipe.PRESETS["clean460"].model_copy(update={"folder": folder}))
    with pytest.raises(UserError, match=r"download the parts from https://www.openslr.org/12"):
        recipe.require(recipe.Settings(folder=tmp_path / "nowhere"))
