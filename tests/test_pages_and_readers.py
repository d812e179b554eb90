"""Drawn pages, the engines that read them, the one spelling of what was read, and the patches of a page."""

import string
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlm import recipes
from dmlm.errors import UserError
from dmlm.ocr import spelling
from dmlm.synthesis.page import GAP_PX, MARGIN_PX, draw_page, place_boxes
from dmlm.synthesis.typeset import typeset
from dmlm.tokens.encoder import Reader, Tokenizer
from dmlm.tokens.quantize import Codebook

EQUATIONS = ["12 a^{3} + 45 = 8", r"\log(17 k) - 30 = 9 h", r"\frac{12}{7} b + 26 = 41"]


def page_of(equations: list[str], seed: int = 0) -> np.ndarray:
    return np.repeat(draw_page(equations, np.random.default_rng(seed))[..., None], 3, axis=2)


def made(name: str, base: type, **chosen: object) -> Reader | Tokenizer:
    recipe = recipes.load_class("tokenizers", name, base)
    return recipe(recipe.Settings(**chosen))


@pytest.fixture(scope="module")
def rapid() -> Reader:
    return made("ocr_rapidocr", Reader)


# pages


def test_a_page_is_decided_by_its_generator() -> None:
    assert np.array_equal(page_of(EQUATIONS, 3), page_of(EQUATIONS, 3))
    assert not np.array_equal(page_of(EQUATIONS, 3), page_of(EQUATIONS, 4))
    page = draw_page(EQUATIONS, np.random.default_rng(0))
    assert page.shape == (200, 450)
    assert page.dtype == np.uint8
    assert page.max() == 255
    assert page.min() == 0
    assert len(np.unique(page)) > 20, "strokes are anti-aliased"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(EQUATIONS), min_size=1, max_size=7))
def test_no_ink_is_lost_or_touches_the_border(seed: int, equations: list[str]) -> None:
    page = draw_page(equations, np.random.default_rng(seed))
    inner = page[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    assert (255 - page.astype(int)).sum() == (255 - inner.astype(int)).sum()
    if len(equations) <= 3:  # at full size: every equation's ink, once, is on the page
        ink = sum((255 - typeset(equation, 22).astype(int)).sum() for equation in equations)
        assert (255 - page.astype(int)).sum() == ink


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(5, 60), st.integers(5, 440)), max_size=6))
def test_boxes_keep_their_distance(seed: int, sizes: list[tuple[int, int]]) -> None:
    corners = place_boxes(sizes, np.random.default_rng(seed), 450, 200)
    if corners is None:
        assert sum(h for h, _ in sizes) + (len(sizes) - 1) * GAP_PX[0] > 200 - 2 * MARGIN_PX
        return
    taken = np.zeros((200 + GAP_PX[0], 450 + GAP_PX[1]), int)
    for (top, left), (h, w) in zip(corners, sizes, strict=True):
        assert top >= MARGIN_PX
        assert left >= MARGIN_PX
        assert top + h <= 200 - MARGIN_PX
        assert left + w <= 450 - MARGIN_PX
        taken[top : top + h + GAP_PX[0], left : left + w + GAP_PX[1]] += 1  # each box with the gap that it needs
    assert taken.max(initial=0) <= 1


def test_what_cannot_be_drawn_is_a_sentence() -> None:
    for wrong in (r"\sqrt{3}", "x^", "x^{2", "x}", "3 $ 4", ""):
        with pytest.raises(UserError, match="cannot be typeset"):
            draw_page([wrong], np.random.default_rng(0))
    with pytest.raises(UserError, match="do not fit"):
        draw_page(["1 + 1 = 2"] * 60, np.random.default_rng(0))


# spelling


@pytest.mark.parametrize(
    ("read", "spelt"),
    [
        ("12x³ + log (45y) = 8", "12 x ^ 3 + log ( 45 y ) = 8"),
        ("−3X¹⁰", "- 3 x ^ 10"),
        ("LOGarithm", "log a r i t h m"),
        ("½ × 3", "1 / 2 x 3"),
        ("（ａ＋１）", "( a + 1 )"),
        ("é~|√§", "e"),
        ("", ""),
    ],
)
def test_equations_are_spelt_one_way(read: str, spelt: str) -> None:
    assert spelling.equations(read) == spelt
    assert spelling.equations(spelt) == spelt, "normalising twice changes nothing"


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_normalised_text_holds_plain_characters_only(text: str) -> None:
    for name, normalise in spelling.NORMALISERS.items():
        letters = string.ascii_uppercase if name == "authors/1" else string.ascii_lowercase + "/()^., "
        assert set(normalise(text)) <= set(letters + string.digits + "-+=")
        assert normalise(normalise(text)) == normalise(text)


# readers


def test_rapidocr_reads_a_line_and_loses_the_fraction(rapid: Reader) -> None:
    assert rapid.read([page_of(["12 + 45 a = 38"])]) == ["12 + 45 a = 38"]
    assert "log ( 17 k ) - 30 = 9 h" in rapid.read([page_of(EQUATIONS)])[0]
    (fraction,) = rapid.read([page_of([r"\frac{12}{7} + 26 = 41"])])
    assert fraction.endswith("+ 26 = 41")
    assert "12 / 7" not in fraction, "an engine that reads lines has no fractions; say so in the docs if that changes"


def test_rapidocr_reads_from_top_to_bottom(rapid: Reader) -> None:
    top, bottom = (np.full((60, 450, 3), 255, np.uint8) for _ in range(2))
    for part, equation in ((top, "11 + 20 = 31"), (bottom, "43 - 25 = 18")):
        ink = typeset(equation, 22)
        part[20 : 20 + ink.shape[0], 30 : 30 + ink.shape[1]] = ink[..., None]
    assert rapid.read([np.concatenate([top, bottom])]) == ["11 + 20 = 31 43 - 25 = 18"]
    assert rapid.read([np.concatenate([top, bottom], axis=1)]) == ["11 + 20 = 31 43 - 25 = 18"]
    assert rapid.read([255 - np.concatenate([top, bottom])]) == ["11 + 20 = 31 43 - 25 = 18"], "white on black"


def test_rapidocr_reads_nothing_on_an_empty_page(rapid: Reader, capfd: pytest.CaptureFixture[str]) -> None:
    empty = np.full((200, 450, 3), 255, np.uint8)
    assert rapid.read([empty]) == [""]
    assert made("ocr_rapidocr", Reader, layout="detector").read([empty]) == [""]
    assert capfd.readouterr() == ("", "")


def test_rapidocr_reads_a_page_alike_in_any_company(rapid: Reader) -> None:
    pages = [page_of(EQUATIONS, 1), np.full((200, 450, 3), 255, np.uint8), page_of(["7 + r = 50 v^{2}"], 2)]
    alone = [rapid.read([page])[0] for page in pages]
    assert rapid.read(pages) == alone
    assert rapid.read(pages[::-1]) == alone[::-1]


def test_the_detector_layout_reads_too() -> None:
    detector = made("ocr_rapidocr", Reader, layout="detector")
    assert detector.read([page_of(["12 + 45 a = 38"])]) == ["12 + 45 a = 38"]


def test_what_decides_the_text_decides_the_fingerprint(rapid: Reader) -> None:
    assert rapid.fingerprint == made("ocr_rapidocr", Reader).fingerprint
    assert rapid.fingerprint != made("ocr_rapidocr", Reader, line_px=32).fingerprint
    assert rapid.fingerprint != made("ocr_rapidocr", Reader, normaliser="words/1").fingerprint
    assert any(fact.startswith("rapidocr 3.") for fact in rapid.facts())


@pytest.mark.parametrize(("recipe", "package"), [("ocr_rapidocr", "rapidocr"), ("ocr_tesseract", "pytesseract")])
def test_a_missing_engine_is_a_sentence(recipe: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UserError, match="pip install"):
        made(recipe, Reader).require()


def test_tesseract_reads_a_line_where_it_is_installed() -> None:
    try:
        tesseract = made("ocr_tesseract", Reader)
        tesseract.require()
    except UserError as error:
        pytest.skip(str(error))
    assert tesseract.read([page_of(["12 + 45 a = 38"])]) == ["12 + 45 a = 38"]
    assert tesseract.read([np.full((200, 450, 3), 255, np.uint8)]) == [""]


def test_the_oracle_hands_over_what_is_known() -> None:
    oracle = made("ocr_oracle", Reader)
    assert oracle.media == "ocr"
    assert oracle.read(["12/7 x^3 = 8", ""]) == ["12 / 7 x ^ 3 = 8", ""]


# patches


def test_patches_of_a_page_are_its_units() -> None:
    patches = made("image_patches", Tokenizer, clusters=16)
    pages = [page_of(EQUATIONS, seed) for seed in range(6)]
    features = [patches.features(page) for page in pages]
    assert features[0].shape == (171, 144)
    assert features[0].dtype == np.float32
    distinct = np.unique(np.concatenate(features), axis=0)
    patches.codebook = Codebook(
        distinct[:: len(distinct) // 15][:16], np.zeros(144, np.float32), np.ones(144, np.float32)
    )
    units = patches.encode(pages)
    assert patches.vocab_size == 16
    assert patches.rate_hz is None
    assert all(line.shape == (171,) and line.min() >= 0 and line.max() < 16 for line in units)
    assert len(np.unique(np.concatenate(units))) > 8, "the pages differ in more than a unit or two"
    assert all(np.array_equal(patches.encode([page])[0], line) for page, line in zip(pages, units, strict=True))
    (blank,) = patches.encode([np.full((200, 450, 3), 255, np.uint8)])
    assert len(np.unique(blank)) == 1


def test_patches_are_in_raster_order() -> None:
    page = np.full((48, 72, 3), 255, np.uint8)
    page[24:, 48:] = 0  # the last of six
    assert made("image_patches", Tokenizer).features(page).mean(axis=1).tolist() == [0, 0, 0, 0, 0, 1]
