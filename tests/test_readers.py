"""From a page to text: lines with boxes, which of them are kept, where they stand; EasyOCR against its own package."""

import math
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_text_encoders import ocr_easyocr

from dmlm import recipes
from dmlm.corpus.condition import CLEAN
from dmlm.corpus.manifest import Corpus, Utterance
from dmlm.errors import UserError
from dmlm.ocr import lines, spelling
from dmlm.ocr.lines import Line
from dmlm.synthesis.page import draw_page
from dmlm.synthesis.typeset import typeset
from dmlm.tokens.encoder import Reader
from dmlm.tokens.encoding import EncoderSpec
from dmlm.tokens.shards import TokenSource
from dmlm.weights import published

PAGE = (200, 450)
BOXES = {"12 + 45 = 38": (20, 30), "43 - 25 a = 18": (120, 230)}  # equation: top left corner


def made(name: str, **chosen: object) -> Reader:
    encoder = EncoderSpec(name, chosen).build()
    assert isinstance(encoder, Reader)
    return encoder


def page_at_known_places() -> tuple[np.ndarray, list[lines.Box]]:
    """A page, and the box of the ink of each equation."""
    page, boxes = np.full((*PAGE, 3), 255, np.uint8), []
    for equation, (top, left) in BOXES.items():
        ink = typeset(equation, 22)
        page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink[..., None]
        rows, columns = np.nonzero(ink < 128)
        boxes.append((top + rows.min(), top + rows.max() + 1, left + columns.min(), left + columns.max() + 1))
    return page, boxes


def line(text: str, width: int = 10, confidence: float = 1.0, top: int = 0) -> Line:
    return Line(text, (top, top + 10, 0, width), confidence)


# spelling


@given(st.lists(st.text(max_size=12), max_size=4), st.sampled_from(["equations/1", "words/1"]))
def test_lines_spelt_one_by_one_give_the_text_of_the_page(texts, normaliser) -> None:
    """As pages were spelt before lines had boxes: joined first, then normalised."""
    settings = lines.Settings(normaliser=normaliser)
    assert lines.page_text([line(t) for t in texts], PAGE, settings) == spelling.NORMALISERS[normaliser](
        " ".join(texts)
    )


@given(st.lists(st.text(alphabet="aZ09+-=/^() .³é~", max_size=12), max_size=5))
def test_the_authors_clean_up_is_theirs(texts) -> None:
    """`get_ocr` of 3-Equations (data_process/get_OCR.py), line by line; only its surplus spaces are not kept."""
    theirs = ""
    for text in texts:
        theirs += re.sub(r"[^a-zA-Z0-9\+\-=]", "", text.upper()) + " "
    ours = lines.page_text([line(text) for text in texts], PAGE, lines.Settings(normaliser="authors/1"))
    assert ours.split() == theirs.split()
    assert "  " not in ours
    assert ours == ours.strip()


def test_the_oracle_takes_each_run_for_a_box() -> None:
    assert made("ocr_oracle", normaliser="authors/1").read(["log(45y)+3=8 12/7x^3=1", ""]) == ["LOG45Y+3=8 127X3=1", ""]


# positions


def test_a_line_is_placed_by_the_middle_of_its_box() -> None:
    places = [
        lines.grid_position((y, y + 2, x, x + 2), (90, 300))
        for y in (0, 28, 29, 58, 59, 88)
        for x in (0, 98, 99, 198, 199, 298)
    ]
    rows = ["top", "top", "middle", "middle", "bottom", "bottom"]
    columns = ["left", "left", "centre", "centre", "right", "right"]
    assert places == [f"{row} {column}" for row in rows for column in columns]
    assert lines.grid_position((-8, 2, 290, 320), (90, 300)) == "top right", "a box may reach over the border"


def test_positions_stand_before_each_line_that_says_something() -> None:
    recognised = [
        Line("12 A", (0, 20, 0, 90), 0.9),
        Line("~", (90, 110, 0, 90), 0.9),
        Line("7=y", (170, 190, 400, 440), 0.4),
    ]
    assert lines.page_text(recognised, PAGE, lines.Settings()) == "12 a 7 = y"
    assert lines.page_text(recognised, PAGE, lines.Settings(positions="grid")) == "top left 12 a bottom right 7 = y"
    shout = lines.Settings(positions="grid", normaliser="authors/1")
    assert lines.page_text(recognised, PAGE, shout) == "top left 12A bottom right 7=Y"


# which lines


def test_the_most_prominent_lines_are_kept_in_their_order() -> None:
    recognised = [line("a", 10, 0.9), line("b", 100, 0.2), line("c", 30, 0.5), line("d", 15, 0.6), line("e", 10, 0.9)]
    for keep, expected in {1: "b", 2: "b c", 3: "a b c", 4: "a b c d", 5: "a b c d e", 9: "a b c d e"}.items():
        assert lines.page_text(recognised, PAGE, lines.Settings(keep=keep)) == expected, keep


def test_lines_of_rare_words_are_kept(tmp_path) -> None:
    """The ranking of FQ Ranker: ascending count, 1 for a word that is not listed; here by the mean of the logarithms."""
    table = tmp_path / "counts.txt"
    counts = {"the": 100_000, "model": 500, "of": 60_000, "wasserstein": 3, "results": 900}
    table.write_text("".join(f"{word} {count}\n" for word, count in counts.items()))
    texts = ["The results of", "12 + 3", "Wasserstein model", "the the", "quxly"]
    rank = {
        text: np.mean([math.log(counts.get(word, 1)) for word in re.findall("[a-z]+", text.lower())] or [math.inf])
        for text in texts
    }
    for keep in range(1, 6):
        settings = lines.Settings(keep=keep, frequencies=table, normaliser="words/1")
        best = sorted(texts, key=rank.__getitem__)[:keep]
        expected = " ".join(spelling.words(text) for text in texts if text in best)
        assert lines.page_text([line(text, 10 * n) for n, text in enumerate(texts)], PAGE, settings) == expected


def test_a_wrong_table_of_counts_is_a_sentence(tmp_path) -> None:
    with pytest.raises(UserError, match="set keep, or drop"):
        EncoderSpec("ocr_rapidocr", {"frequencies": tmp_path / "counts.txt"}).build()
    for content in (None, "the many\n", "the\n"):
        table = tmp_path / f"{len(content or '')}.txt"
        if content is not None:
            table.write_text(content)
        with pytest.raises(UserError, match="lines `word count`"):
            _ = made("ocr_rapidocr", keep=2, frequencies=table).fingerprint


def test_the_counts_enter_the_fingerprint(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DMLM_HOME", str(tmp_path))
    table = tmp_path / "counts.txt"
    seen = set()
    for content in ("the 5\n", "the 50\n"):
        table.write_text(content)
        seen.add(made("ocr_rapidocr", keep=2, frequencies=table).fingerprint)
    seen.add(made("ocr_rapidocr", keep=2).fingerprint)
    seen.add(made("ocr_rapidocr").fingerprint)
    seen.add(made("ocr_rapidocr", positions="grid").fingerprint)
    assert len(seen) == 5


@pytest.mark.parametrize("settings", [{"keep": 1}, {"keep": 1, "frequencies": "counts.txt"}, {"positions": "grid"}])
def test_nothing_of_the_reference_reaches_a_reader(settings, tmp_path, monkeypatch) -> None:
    """One picture under manifests that say different things gives the same text, whichever line they speak of."""
    monkeypatch.chdir(tmp_path)
    Path("counts.txt").write_text("a 7\n")
    page, _ = page_at_known_places()
    Image.fromarray(page).save("page.png")
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    references = [
        ("eleven plus twenty", "12+45=38"),
        ("forty three minus twenty five a", "43-25a=18"),
        ("quite other", None),
    ]
    read = []
    for number, (text, ocr) in enumerate(references):
        fields = {"id": "u", "split": "test", "text": text, "audio": "none.flac", "duration_s": 1.0, "ocr": ocr}
        card = {"name": "pictures", "digest": f"{number}" * 64}
        corpus = Corpus(tmp_path, (Utterance(**fields, image="page.png"),), card)
        source = TokenSource(corpus, "ocr_rapidocr", settings, CLEAN, run=map)
        read.append(source.load("test", CLEAN).tokens["u"])
    assert len(set(read)) == 1
    assert "43 - 25 a = 18" in read[0], "the larger box, and the one with a word"


# engines


@pytest.mark.parametrize(
    ("recipe", "settings", "slack_px"),
    [("ocr_rapidocr", {}, 1), ("ocr_rapidocr", {"layout": "detector"}, 8), ("ocr_tesseract", {}, 2)],
)
def test_lines_have_the_boxes_of_their_ink(recipe, settings, slack_px) -> None:
    engine = made(recipe, **settings)
    try:
        engine.require()
    except UserError as missing:
        pytest.skip(str(missing))
    page, boxes = page_at_known_places()
    recognised = engine.lines_of(page)
    assert [spelling.equations(one.text) for one in recognised] == list(BOXES)
    for one, box in zip(recognised, boxes, strict=True):
        assert np.abs(np.subtract(one.box, box)).max() <= slack_px, (one.box, box)
        assert 0 < one.confidence <= 1
    placed = [f"{lines.grid_position(box, PAGE)} {equation}" for equation, box in zip(BOXES, boxes, strict=True)]
    assert made(recipe, **settings, positions="grid").read([page]) == [" ".join(placed)]
    assert engine.lines_of(np.full((*PAGE, 3), 255, np.uint8)) == []


def test_lines_of_tesseract_hold_what_it_says_of_the_page() -> None:
    """Its table of words, put together, against its plain text."""
    pytesseract = pytest.importorskip("pytesseract")
    import cv2

    tesseract = made("ocr_tesseract")
    try:
        tesseract.require()
    except UserError as missing:
        pytest.skip(str(missing))
    for seed in range(3):
        grey = draw_page([r"\frac{12}{7} b + 26 = 41", "12 a^{3} + 45 = 8"], np.random.default_rng(seed))
        page = np.repeat(grey[..., None], 3, axis=2)
        large = cv2.resize(page, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        plain = pytesseract.image_to_string(large, lang="eng", config="--psm 11")
        assert tesseract.read([page]) == [spelling.equations(plain)]


# EasyOCR


@pytest.fixture(scope="module")
def easy(tmp_path_factory) -> Iterator[Reader]:
    """The recipe with random weights of the true architecture."""
    pytest.importorskip("easyocr")
    patch = pytest.MonkeyPatch()
    patch.setenv("DMLM_HOME", str(tmp_path_factory.mktemp("home")))
    yield made("ocr_easyocr", **ocr_easyocr())
    patch.undo()


def pages() -> list[np.ndarray]:
    """Black on white, in colours, slanted, and empty."""
    grey = draw_page(["12 a + 45 = 8", r"\log(17 k) - 30 = 9 h", "7 + r = 50 v"], np.random.default_rng(1))
    plain = np.repeat(grey[..., None], 3, axis=2)
    shades = np.linspace(0.3, 1, 450)[None, :, None] * np.array([1.0, 0.6, 0.2])
    slanted = np.asarray(Image.fromarray(plain).rotate(12, expand=True, fillcolor=(255, 255, 255)))
    return [plain, (plain * shades).astype(np.uint8), slanted, np.full((*PAGE, 3), 255, np.uint8)]


def test_easyocr_gives_the_lines_of_its_own_package(easy, tmp_path, monkeypatch) -> None:
    """`Reader.readtext` of the package on files, its weights from the same checkpoints in its own layout."""
    import easyocr
    from easyocr.config import detection_models, recognition_models
    from easyocr.utils import calculate_md5

    folder, before = published.folder("ocr_easyocr"), list(sys.path)
    monkeypatch.setitem(detection_models["craft"], "md5sum", calculate_md5(folder / "craft_mlt_25k.pth"))
    monkeypatch.setitem(recognition_models["gen2"]["english_g2"], "md5sum", calculate_md5(folder / "english_g2.pth"))
    state = torch.get_rng_state()
    assert easy.engine
    assert torch.equal(torch.get_rng_state(), state), "building networks draws no random numbers"
    assert sys.path == before
    theirs = easyocr.Reader(
        ["en"], gpu=False, model_storage_directory=str(folder), user_network_directory=str(tmp_path),
        download_enabled=False, verbose=False, quantize=False,
    )  # fmt: skip
    sys.path[:] = before
    texts = []
    for number, page in enumerate(pages()):
        Image.fromarray(page).save(tmp_path / f"{number}.png")
        expected = theirs.readtext(str(tmp_path / f"{number}.png"))
        recognised = easy.lines_of(page)
        assert [one.text for one in recognised] == [text for _, text, _ in expected]
        slack = {"rel": 0.1} if page.std(axis=2).any() else {"rel": 0, "abs": 0}  # greys of a file differ by one level
        assert [one.confidence for one in recognised] == pytest.approx(
            [confidence for *_, confidence in expected], **slack
        )
        for one, (corners, _, _) in zip(recognised, expected, strict=True):
            x, y = zip(*corners, strict=True)
            assert one.box == (math.floor(min(y)), math.ceil(max(y)), math.floor(min(x)), math.ceil(max(x)))
        texts += [one.text for one in recognised]
    assert len(texts) > 6, "random as they are, the networks find boxes"
    assert len(set("".join(texts))) >= 3, "and read characters"


def test_easyocr_is_not_trained_and_reads_a_page_alike_in_any_company(easy) -> None:
    given = pages()[::3]
    assert easy.read(given[::-1])[::-1] == [easy.read([page])[0] for page in given]
    for network in (easy.engine.detector, easy.engine.recognizer):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


class Evil:
    """What must not be run."""

    def __reduce__(self):
        return print, ("executed",)


def test_easyocr_loads_nothing_but_fitting_tensors(easy, capsys) -> None:
    detector, _ = easy.checkpoints
    kept = detector.read_bytes()
    try:
        torch.save({"module.conv_cls.0.weight": torch.zeros(3)}, detector)
        with pytest.raises(UserError, match="is missing; these are the weights of another architecture"):
            assert made("ocr_easyocr").engine
        torch.save({"module.conv_cls.0.weight": Evil()}, detector)
        with pytest.raises(UserError, match="holds more than tensors"):
            assert made("ocr_easyocr").engine
        detector.write_bytes(kept[:1000])
        with pytest.raises(UserError, match="damaged"):
            assert made("ocr_easyocr").engine
    finally:
        detector.write_bytes(kept)
    assert "executed" not in capsys.readouterr().out
    before = made("ocr_easyocr").fingerprint
    detector.write_bytes(kept + b"\0")
    assert made("ocr_easyocr").fingerprint != before
    detector.write_bytes(kept)


def test_archives_of_easyocr_are_checked_when_they_are_opened(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DMLM_HOME", str(tmp_path))
    easyocr = made("ocr_easyocr")
    archives = [tmp_path / file.name for file in easyocr.card.files]
    for archive, held in zip(archives, (b"detector", b"recogniser"), strict=True):
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr(f"{archive.stem}.pth", held)
    assert [path.read_bytes() for path in easyocr.convert(archives)] == [b"detector", b"recogniser"]
    assert {path.parent for path in easyocr.checkpoints} == {tmp_path / "weights" / "ocr_easyocr"}
    with zipfile.ZipFile(archives[1], "w") as packed:
        packed.writestr("another.pth", b"")
    with pytest.raises(UserError, match=r"holds no english_g2\.pth"):
        easyocr.convert(archives)
    archives[0].write_bytes(b"PK but no archive")
    with pytest.raises(UserError, match=r"holds no craft_mlt_25k\.pth"):
        easyocr.convert(archives)


def test_what_easyocr_lacks_is_a_sentence(tmp_path, monkeypatch) -> None:
    """First the weights, then a torchvision that fits; packages of the same names stand in, so that none is needed."""
    monkeypatch.setenv("DMLM_HOME", str(tmp_path))
    for package, source in {"easyocr": "", "torchvision": "raise RuntimeError('operator nms does not exist')"}.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(source)
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    easyocr = made("ocr_easyocr")
    with pytest.raises(UserError, match=r"its weights \(91 MB\) are not here; run: dmlm fetch ocr_easyocr"):
        easyocr.require()
    for file in easyocr.card.files:
        archive = published.folder("ocr_easyocr") / file.name
        archive.parent.mkdir(parents=True, exist_ok=True)
        archive.write_bytes(b"")
    with pytest.raises(UserError, match="dmlm fetch ocr_easyocr"):
        easyocr.require()  # fetched, but not taken out
    for path in easyocr.checkpoints:
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"does not fit this torch .*pip install torchvision"):
        easyocr.require()


def test_the_card_is_what_the_package_would_download() -> None:
    pytest.importorskip("easyocr")
    from easyocr.config import detection_models, recognition_models

    card = made("ocr_easyocr").card
    theirs = [detection_models["craft"], recognition_models["gen2"]["english_g2"]]
    assert [file.url for file in card.files] == [entry["url"] for entry in theirs]
    assert [path.name for path in made("ocr_easyocr").checkpoints] == [entry["filename"] for entry in theirs]


def test_every_engine_takes_the_same_choices() -> None:
    for name in recipes.names("tokenizers"):
        if name.startswith("ocr_") and name != "ocr_oracle":
            assert issubclass(recipes.load_class("tokenizers", name, Reader).Settings, lines.Settings)
