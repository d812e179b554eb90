"""The Three Equations recipe: its grammar, its files, and that nothing but settings and id decides an utterance."""

import json
import shutil
from math import gcd

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dmlm import recipes
from dmlm.corpus.manifest import Corpus, read_corpus
from dmlm.corpus.media import SAMPLE_RATE_HZ, read_audio, read_image, read_video
from dmlm.synthesis import blocks
from dmlm.synthesis.page import FONT_PX
from dmlm.synthesis.typeset import typeset

recipe = recipes.load("datasets", "three_equations")
PAPER = recipe.PRESETS["paper"]
LITTLE = recipe.Settings(train=5, val=1, test=2, letters="xyw", largest=12, equations_read=2)


@pytest.fixture(scope="module")
def terms() -> list:
    rng = np.random.default_rng(0)
    return [recipe.draw_term(PAPER, rng) for _ in range(20_000)]


def share(values) -> float:
    return float(np.mean(list(values)))


def test_terms_follow_the_published_probabilities(terms):
    lettered = [t for t in terms if t.letter]
    assert share(not t.letter for t in terms) == pytest.approx(0.33, abs=0.015)
    assert share(t.lower is not None for t in terms) == pytest.approx(0.30, abs=0.015)
    assert share(t.upper is None for t in lettered if t.lower is None) == pytest.approx(0.30, abs=0.02)
    assert share(t.exponent is not None for t in lettered) == pytest.approx(0.20, abs=0.015)
    assert share(bool(t.log) for t in lettered) == pytest.approx(0.10, abs=0.01)
    assert share(t.log == "all" for t in lettered if t.log) == pytest.approx(0.5, abs=0.06)
    assert {t.exponent for t in lettered} == {None, *range(2, 11)}
    assert {t.letter for t in lettered} == set("abcdefghijklmnopqrstuvwxyz")


def test_fractions_are_reduced_and_in_range(terms):
    fractions = [(t.upper, t.lower) for t in terms if t.lower is not None]
    assert all(gcd(upper, lower) == 1 for upper, lower in fractions)
    assert all(1 <= upper <= 50 and 1 <= lower <= 50 for upper, lower in fractions)
    assert {t.upper for t in terms if t.lower is None} == {None, *range(2, 51)}


def test_transcripts_have_the_published_length_and_vocabulary():
    rng = np.random.default_rng(1)
    texts = [" ".join(recipe.draw_equation(PAPER, rng).spoken for _ in range(2)) for _ in range(5000)]
    lengths = [len(text.split()) for text in texts]
    words = [word for text in texts for word in text.split()]
    assert np.mean(lengths) == pytest.approx(21.7, abs=0.3)
    assert np.percentile(lengths, [5, 95]) == pytest.approx([14, 31], abs=1)
    assert len(set(words)) == 85
    assert words.count("equals") / len(words) == pytest.approx(0.092, abs=0.003)
    assert words.count("over") / len(words) == pytest.approx(0.081, abs=0.004)
    assert words.count("of") / len(words) == pytest.approx(0.060, abs=0.004)


def test_the_three_forms_of_an_equation():
    term = recipe.Term
    equation = recipe.Equation(
        term(16, None, "", None, ""), "-", term(17, 35, "w", 3, "letter"), term(15, None, "m", None, "all")
    )
    assert equation.spoken == "16 minus 17 over 35 log of w to the power of 3 equals log of 15 m"
    assert equation.latex == "16 - \\frac{17}{35}\\log(w^{3}) = \\log(15m)"
    assert equation.line == "16 - 17/35log(w^3) = log(15m)"


@given(st.integers(0, 2**32 - 1))
def test_page_and_speech_say_the_same(seed):
    equation = recipe.draw_equation(PAPER, np.random.default_rng(seed))
    spoken = equation.spoken.replace("to the power of ", "").replace("log of", "log").replace("over ", "")
    spoken = spoken.replace("plus", "+").replace("minus", "-").replace("equals", "=")
    read = equation.line.replace("^", " ").replace("/", " ").replace("(", " ").replace(")", " ").replace("log", " log ")
    read = "".join(c if c.isdigit() or c.isspace() else f" {c} " for c in read).replace("l  o  g", "log")
    assert "".join(spoken.split()) == "".join(read.split())
    assert typeset(equation.latex, FONT_PX).min() < 128


@pytest.mark.parametrize("name", ["smoke", "tiny"])
def test_no_transcript_occurs_twice_so_none_of_the_test_set_was_trained_on(name):
    settings = recipe.PRESETS[name]
    items = recipe.plan(settings)
    texts = [" ".join(item["spoken"]) for item in items]
    assert len(set(texts)) == len(texts) == settings.train + settings.val + settings.test
    assert [item["id"] for item in items][:2] == ["train-00000", "train-00001"]


def test_a_larger_training_set_keeps_the_test_set():
    larger = recipe.PRESETS["smoke"].model_copy(update={"train": 200})
    small, large = recipe.plan(recipe.PRESETS["smoke"]), {item["id"]: item for item in recipe.plan(larger)}
    assert all(large[item["id"]] == item for item in small)


def test_presets_have_their_sizes():
    sizes = {name: (s.train, s.val, s.test, s.equations_read) for name, s in recipe.PRESETS.items()}
    assert sizes == {"smoke": (64, 8, 16, 1), "tiny": (3000, 100, 300, 1), "paper": (8000, 1000, 1000, 2)}


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValidationError, match="equations_read"):
        recipe.Settings(equations_read=3, equations_on_page=2)
    with pytest.raises(ValidationError, match="nois"):
        recipe.Settings(mouth={"nois": 3})
    with pytest.raises(ValidationError, match="silence_s"):
        recipe.Settings(silence_s=(0.3, 0.1))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    patch = pytest.MonkeyPatch()
    patch.setattr(blocks, "BLOCK_SIZE", 3)
    yield recipe.prepare(LITTLE, tmp_path_factory.mktemp("two"), workers=2)
    patch.undo()


def test_one_worker_and_an_interruption_change_nothing(corpus, tmp_path):
    """Two of three blocks are gone, one of them torn: the rest is kept, and the digest is that of an unbroken run."""
    other = tmp_path / "one"
    shutil.copytree(corpus.folder, other)
    (other / "blocks" / "block-0000.json").write_text('{"key": "torn')
    (other / "blocks" / "block-0002.json").unlink()
    (other / "audio" / "train-00000.flac").unlink()
    (other / "corpus.json").unlink()
    kept = (other / "audio" / "train-00003.flac").stat().st_mtime_ns
    again = recipe.prepare(LITTLE, other, workers=1)
    assert again.digest == corpus.digest
    assert (other / "audio" / "train-00003.flac").stat().st_mtime_ns == kept


def test_a_lost_file_or_another_setting_makes_a_block_unfinished(corpus, tmp_path):
    path = corpus.folder / "blocks" / "block-0000.json"
    key = json.loads(path.read_text())["key"]
    assert blocks._read(path, key, corpus.folder)
    assert blocks._read(path, "another key", corpus.folder) is None
    assert blocks._read(path, key, tmp_path) is None


def test_the_corpus_is_whole(corpus):
    assert read_corpus(corpus.folder).digest == corpus.digest
    assert corpus.card["utterances"] == {"train": 5, "val": 1, "test": 2}
    assert {"name", "version", "licence", "settings", "digest"} <= set(corpus.card)
    assert recipe.Settings.model_validate(corpus.card["settings"]) == LITTLE
    for utterance in corpus.utterances:
        audio = read_audio(corpus.media(utterance, "audio"))
        assert len(audio) == round(utterance.duration_s * SAMPLE_RATE_HZ)
        assert read_video(corpus.media(utterance, "lips")).shape == (round(utterance.duration_s * 25), 96, 96)
        assert read_image(corpus.media(utterance, "image")).shape == (200, 450, 3)


def test_spans_hold_the_speech_and_nothing_else(corpus):
    for utterance in corpus.utterances:
        audio = read_audio(corpus.media(utterance, "audio"))
        inside = np.zeros(len(audio), bool)
        for start_s, end_s in utterance.spans:
            inside[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)] = True
        assert np.sum(audio[inside] ** 2) > 0.999 * np.sum(audio**2)
        (start_s, first_end_s), (second_start_s, end_s) = utterance.spans
        assert 0.1 <= start_s < 0.4
        assert second_start_s - first_end_s == pytest.approx(LITTLE.pause_s, abs=0.15)  # some voices echo
        assert 0.1 <= utterance.duration_s - end_s < 0.4


def test_phones_are_kept_in_order_and_inside_the_clip(corpus):
    lines = [json.loads(line) for line in (corpus.folder / "phones.jsonl").read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == [utterance.id for utterance in corpus.utterances]
    for line, utterance in zip(lines, corpus.utterances, strict=True):
        starts_s = [start_s for start_s, _ in line["phones"]]
        assert starts_s == sorted(starts_s)
        assert starts_s[0] == utterance.spans[0][0]
        assert starts_s[-1] == utterance.spans[-1][1]


def test_ocr_lists_the_equations_from_top_to_bottom(corpus):
    by_line = {item["id"]: dict(zip(item["lines"], item["latex"], strict=True)) for item in recipe.plan(LITTLE)}
    for utterance in corpus.utterances:
        page = read_image(corpus.media(utterance, "image"))[:, :, 0]
        corners = {}
        for line, latex in by_line[utterance.id].items():
            for scale in range(6):
                picture = typeset(latex, FONT_PX * 0.85**scale)
                match = cv2.matchTemplate(page, picture, cv2.TM_SQDIFF)
                if match.min() < picture.size:  # equal but for the rounding of a Fourier transform
                    corners[line] = np.unravel_index(match.argmin(), match.shape)
                    break
        assert utterance.ocr == " ".join(sorted(corners, key=corners.__getitem__))
