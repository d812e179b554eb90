"""Tux Paint's stamps, on a tiny tree as the package has it, and on the real ones where they are installed."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from dmlm import recipes
from dmlm.corpus import media
from dmlm.corpus.texts import signs
from dmlm.errors import UserError

RATE_HZ = 44_100
ANIMALS = ("rat", "hen", "cow", "owl", "ant", "bee", "cat", "dog", "eel", "fox", "gnu")
recipe = recipes.load("datasets", "tuxpaint_stamps")


def speak(path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.1, RATE_HZ)
    soundfile.write(path, noise, RATE_HZ, format="OGG" if path.suffix == ".ogg" else "WAV")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / recipe.STAMPS / "animals" / "birds"
    folder.mkdir(parents=True)
    for seed, name in enumerate(ANIMALS):
        Image.new("RGBA", (40, 20), (200, 0, 0, 255)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"A {name}.\nes.utf8=Es un {name}.\nfr.utf8=Voilà un {name}.\n", "utf-8")
        speak(folder / f"{name}_desc_fr.ogg", seed)
        if name != "gnu":
            speak(folder / f"{name}_desc_es.wav", 100 + seed)
    return tmp_path


def settings(root: Path, *languages: str, **more):
    return recipe.Settings(folder=root, languages=languages, **more)


def test_a_picture_its_sentence_and_the_translations_are_one_clip(root, tmp_path):
    corpus = recipe.prepare(settings(root, "fr"), tmp_path / "corpus", 1)
    hen = next(u for u in corpus.utterances if u.id == "fr/animals/birds/hen")
    assert (hen.text, hen.category) == ("Voilà un hen.", "animals")
    assert hen.translations == {"en": "A hen.", "es": "Es un hen."}
    pixels = media.read_image(corpus.folder / hen.image)
    assert pixels.shape == (224, 224, 3)
    assert (pixels[112, 112] == (200, 0, 0)).all()  # 224 x 112 of it, in the middle of the white square
    assert (pixels[40, 112] == 255).all()
    assert corpus.card["licence"] == "GPL-2.0"


def test_a_picture_is_in_the_same_split_in_every_language(root):
    of = {c.id: c.split for c in recipe.describe(settings(root, "fr", "es")).clips}
    assert len(of) == 21
    assert all(of[f"fr/{clip_id[3:]}"] == split for clip_id, split in of.items())
    assert len(set(of.values())) == 3
    alone = {c.id: c.split for c in recipe.describe(settings(root, "es")).clips}
    assert alone.items() <= of.items()


def test_two_pictures_of_the_same_thing_are_in_one_split(root):
    folder = root / recipe.STAMPS / "animals" / "birds"
    for name in ANIMALS:
        for suffix in (".png", ".txt", "_desc_fr.ogg"):
            (folder / f"{name}2{suffix}").write_bytes((folder / f"{name}{suffix}").read_bytes())
    of = {c.id: c.split for c in recipe.describe(settings(root, "fr")).clips}
    assert all(of[f"fr/animals/birds/{name}"] == of[f"fr/animals/birds/{name}2"] for name in ANIMALS)


def test_odd_files_are_counted(root, tmp_path):
    folder = root / recipe.STAMPS / "animals" / "birds"
    speak(folder / "stray_desc_fr.ogg", 50)  # neither text nor picture
    (folder / "gone_desc_fr.ogg").write_bytes((folder / "hen_desc_fr.ogg").read_bytes())  # no picture
    (folder / "gone.txt").write_text("Gone.\nfr.utf8=Parti.\n", "utf-8")
    (folder / "hen.ogg").write_bytes((folder / "hen_desc_fr.ogg").read_bytes())  # the sound that a hen makes
    (folder / "cow.txt").write_text("A cow.\nfr.utf8=Une vache (5 $).\n", "utf-8")
    corpus = recipe.prepare(settings(root, "fr"), tmp_path / "corpus", 1)
    assert corpus.card["not_imported"] == {"no_text": 1, "lacking": 1, "not_spelled_out": 1}
    assert len(corpus.utterances) == len(ANIMALS) - 1


def test_an_svg_is_rendered_where_there_is_no_png(root, tmp_path):
    pytest.importorskip("resvg_py")
    folder = root / recipe.STAMPS / "animals" / "birds"
    (folder / "hen.png").unlink()
    square = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="40pt" height="20pt"><path d="M0 0h54v27H0z" fill="#0a0"/></svg>'
    )
    (folder / "hen.svg").write_text(square)
    corpus = recipe.prepare(settings(root, "fr", image_px=64), tmp_path / "corpus", 1)
    hen = next(u for u in corpus.utterances if u.id == "fr/animals/birds/hen")
    pixels = media.read_image(corpus.folder / hen.image)
    assert pixels.shape == (64, 64, 3)
    assert (pixels[32, 32] == (0, 170, 0)).all()
    assert (pixels[8, 32] == 255).all()


def test_signs_that_are_spoken_as_words():
    assert signs("Une pièce de 5 cents (0,05 $)") == ["5", "0", "$"]
    assert not signs("C'est un « hibou » (femelle) : deux demi-œufs, n'est-ce pas ?")


def test_what_is_missing_is_said_with_how_to_get_it(root, tmp_path):
    with pytest.raises(UserError, match=r"GPL-2.0; 161 MB, no account; run: apt-get install tuxpaint-stamps-default"):
        recipe.require(settings(tmp_path / "nowhere", "fr"))
    with pytest.raises(UserError, match=r"languages: the stamps are not spoken in 'ft'; known: es, fr"):
        recipe.require(settings(root, "ft"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no folder usr/share/tuxpaint/stamps"):
        recipe.require(settings(tmp_path / "empty", "fr"))


def test_the_real_stamps():
    try:
        clips = recipe.describe(recipe.PRESETS["fr"]).clips
    except UserError as error:
        pytest.skip(str(error))
    assert len(clips) > 800
    assert sum(bool(clip.translations) for clip in clips) == len(clips)
    assert {clip.split for clip in clips} == {"train", "val", "test"}
