"""Verdicts on the paper's trends, and sentences of findings: each from a known effect, from its mirror and from neither."""

import json
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_grid import rows, sentences, write_grid

from dmlm import recipes
from dmlm.results.exhibit import Exhibit
from dmlm.results.grid import read_grid
from dmlm.results.tables import percent
from dmlm.score.intervals import wer_difference
from dmlm.score.wer import Counts

Lost = int | Callable[[str], int]  # words of a sentence that are not recognised; every sentence has eight at least
ITEMS = 15  # odd, so that sentences in two groups never balance
NOISY = (20.0, 0.0, -20.0)
ENDS = (20.0, -20.0)


def group(reference: str) -> int:
    """One of two groups that a sentence belongs to."""
    return zlib.crc32(reference.encode()) % 2


def grid(root: Path, losses: dict, snrs_db, permuted: Lost = 0, **more) -> Path:
    """A grid whose systems lose so many words: `losses` by template or (model, template), one number a level."""

    def speaker(reference, model, template, snr_db, exchanged, draw):
        by_snr = losses[(model, template)] if (model, template) in losses else losses[template]
        lost = permuted if exchanged else by_snr[snrs_db.index(snr_db)]
        return " ".join(reference.split()[lost(reference) if callable(lost) else lost :])

    templates = list(dict.fromkeys(key if isinstance(key, str) else key[1] for key in losses))
    return write_grid(root, templates=templates, snrs_db=snrs_db, utterances=ITEMS, speaker=speaker, **more)


def checks(folder: Path) -> Exhibit:
    return recipes.load("analysis", "trend_checks").draw(read_grid(folder), folder / "figures")


def row(exhibit: Exhibit, trend: str, of: str = "") -> tuple[str, ...]:
    """The one check of this number (and of these inputs, or of this model)."""
    (found,) = [r for r in exhibit.tables[0].rows if r[0].startswith(f"{trend}  ") and of in f"{r[0]} {r[1]}"]
    return found


def verdict(exhibit: Exhibit, trend: str, of: str = "") -> str:
    return row(exhibit, trend, of)[2]


# ---- the paper's trends


@pytest.mark.parametrize(
    ("lips", "expected"),
    [
        ((3, 2, 1), "holds"),
        ((1, 2, 3), "does not hold"),
        ((3, 3, 3), "undecided"),
        ((3, 1, 2), "does not hold"),  # it grows over all, but falls at the end
    ],
)
def test_trend_1_holds_where_the_benefit_of_lips_grows_with_noise(tmp_path, lips, expected):
    found = checks(grid(tmp_path, {"A -> T": (4, 4, 4), "A+L -> T": lips}, NOISY))
    assert verdict(found, "1") == expected


@pytest.mark.parametrize("better", [0, 1])
def test_a_trend_whose_interval_holds_zero_is_undecided_on_whichever_side_its_value_lies(tmp_path, better):
    """Sentences of one group gain three words in the noise, those of the other lose three."""
    mixed = (4, lambda reference: 1 if group(reference) == better else 7)
    said = row(checks(grid(tmp_path, {"A -> T": (4, 4), "A+L -> T": mixed}, ENDS)), "1")
    balance = sum(1 if group(sentence) == better else -1 for sentence in sentences(ITEMS))
    assert said[3].startswith(f"-20 dB less 20 dB: {'+' if balance > 0 else '-'}")
    assert said[2] == "undecided"


@pytest.mark.parametrize("letter", ["I", "O"])
@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ((3, 1, 3), "holds"),
        ((1, 3, 1), "does not hold"),
        ((3, 1, 1), "undecided"),  # as large at one end
        ((1, 1, 3), "undecided"),
        ((3, 2, 1), "does not hold"),  # larger at one end
        ((1, 2, 3), "does not hold"),
    ],
)
def test_trend_2_holds_where_the_benefit_is_larger_between_than_at_either_end(tmp_path, letter, added, expected):
    found = checks(grid(tmp_path, {"A -> T": (4, 4, 4), f"A+{letter} -> T": added}, NOISY))
    assert verdict(found, "2", f"A+{letter}") == expected
    assert verdict(found, "2", "A+O" if letter == "I" else "A+I") == "not measured"


@pytest.mark.parametrize(
    ("image", "lips", "both", "expected"),
    [
        (4, 3, 1, "holds"),
        (2, 1, 5, "does not hold"),
        (4, 2, 3, "does not hold"),  # better than one of them
        (2, 4, 3, "does not hold"),
        (4, 2, 2, "undecided"),
    ],
)
def test_trend_3_holds_where_two_inputs_help_more_than_the_better_of_them(tmp_path, image, lips, both, expected):
    lost = {"A -> T": 6, "A+I -> T": image, "A+L -> T": lips, "A+I+L -> T": both}
    found = checks(grid(tmp_path, {template: (words, words) for template, words in lost.items()}, ENDS))
    assert verdict(found, "3") == expected


@pytest.mark.parametrize(
    ("audio_first", "lips_first", "expected"),
    [
        ((1, 1), (2, 4), "holds"),
        ((2, 4), (1, 1), "does not hold"),
        ((1, 1), (4, 2), "does not hold"),  # better, but less so in noise
        ((4, 2), (1, 1), "does not hold"),  # worse, but less so in noise
        ((1, 3), (2, 4), "undecided"),  # better by as much
    ],
)
def test_trend_5_holds_where_audio_first_is_better_and_the_more_so_in_noise(
    tmp_path, audio_first, lips_first, expected
):
    lost = {"A -> T": (5, 5), "A+L -> T": audio_first, "L+A -> T": lips_first}
    assert verdict(checks(grid(tmp_path, lost, ENDS)), "5") == expected


@pytest.mark.parametrize(
    ("opt", "mamba", "expected"),
    [(2, 2, "holds"), (6, 6, "holds"), (2, 6, "does not hold"), (6, 2, "does not hold"), (4, 2, "undecided")],
)
def test_trend_7_holds_where_the_benefits_of_both_families_have_one_sign(tmp_path, opt, mamba, expected):
    lost = {"A -> T": (4, 4), ("opt-tiny", "A+L -> T"): (opt, opt), ("mamba-tiny", "A+L -> T"): (mamba, mamba)}
    found = checks(grid(tmp_path, lost, ENDS, models=("opt-tiny", "mamba-tiny")))
    assert verdict(found, "7", "signs") == expected


@pytest.mark.parametrize(
    ("opt_s", "mamba_s", "expected"),
    [(3.0, 1.5, "holds"), (1.5, 3.0, "does not hold"), (1.5, 1.0, "holds"), (1.4, 1.0, "does not hold")],
)
def test_trend_7_holds_where_mamba_decodes_at_least_one_and_a_half_times_as_fast(tmp_path, opt_s, mamba_s, expected):
    folder = grid(tmp_path, {"A -> T": (4, 4)}, ENDS, models=("opt-tiny", "mamba-tiny"))
    for path in tmp_path.glob("trials/*/evals/*/result.json"):
        spent = opt_s if path.parents[2].name.startswith("opt") else mamba_s
        path.write_text(json.dumps({**json.loads(path.read_text()), "decode_s": spent}))
    said = row(checks(folder), "7", "fast")
    assert said[2] == expected
    assert said[3].startswith(f"{opt_s / mamba_s:.2f} times OPT's speed")


@pytest.mark.parametrize(
    ("lips", "expected"),
    [(7, "holds"), (8, "does not hold"), (4, "does not hold"), (lambda text: 8 - 3 * group(text), "undecided")],
)
def test_trend_8_holds_where_the_mean_benefit_lies_in_the_range_of_the_paper(tmp_path, lips, expected):
    found = checks(grid(tmp_path, {"A -> T": (8, 8), "A+L -> T": (lips, lips)}, ENDS))
    assert verdict(found, "8", "A+L") == expected


# ---- where they are read


class Cells(HTMLParser):
    """The rows of every table of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.rows, self._cell = [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
        self._cell = tag == "td" or (self._cell and tag == "span")

    def handle_endtag(self, tag):
        self._cell = self._cell and tag != "td"

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data


@pytest.mark.parametrize(("lips", "expected"), [((3, 2, 1), "holds"), ((1, 2, 3), "does not hold")])
def test_the_report_and_the_file_show_each_trend_beside_its_verdict(tmp_path, lips, expected):
    folder = grid(tmp_path, {"A -> T": (4, 4, 4), "A+L -> T": lips}, NOISY)
    found = checks(folder)
    recipes.load("analysis", "report").write(read_grid(folder), folder / "report.html", [found])
    page = [r for r in Cells((folder / "report.html").read_text("utf-8")).rows if r]
    file = [tuple(r.values()) for r in rows(folder / "figures" / "trend_checks.csv")]
    assert [tuple(r) for r in page] == list(found.tables[0].rows) == file
    assert [r[2] for r in page if r[0].startswith("1  ")] == [expected]
    assert len([r for r in page if r[2] == "not measured"]) == len(page) - 2  # trend 8 is the other
    assert f"Of {len(page)} checks, holds: {int(expected == 'holds')}, " in found.caption


# ---- findings


def findings(folder: Path, system: str = "A+L") -> list[str]:
    """The clauses of the sentence about one system."""
    notes = recipes.load("analysis", "findings").draw(read_grid(folder), folder / "figures").notes
    (note,) = [note for note in notes if note.startswith(f"opt-tiny, {system}: ")]
    return note.removeprefix(f"opt-tiny, {system}: ").removesuffix(".").split("; ")


def test_a_gain_and_its_mirror_have_the_same_numbers_and_the_other_verb(tmp_path):
    texts = sentences(ITEMS)
    words = np.array([len(text.split()) for text in texts], float)
    few, many = np.array([1.0 + group(text) for text in texts]), np.full(ITEMS, 4.0)
    gain = wer_difference(*(Counts(tuple(texts), errors, words) for errors in (many, few)))
    assert gain.value == pytest.approx((many - few).sum() / words.sum())
    assert 0 < gain.low < gain.value < gain.high
    size = (
        f"{percent(gain.value)} points (95 % interval {percent(gain.low)} to {percent(gain.high)}, excludes zero: yes)"
    )

    better, worse = (lambda text: 1 + group(text),) * 2, (4, 4)
    gained = findings(grid(tmp_path / "gain", {"A -> T": worse, "A+L -> T": better}, (0.0, -10.0)))
    assert gained[0] == f"at 0 dB and below, it lowers WER by {size}"
    lost = findings(grid(tmp_path / "loss", {"A -> T": better, "A+L -> T": worse}, (0.0, -10.0)))
    assert lost[0] == f"at 0 dB and below, it raises WER by {size}"


@pytest.mark.parametrize(
    ("lips", "exchanged", "in_training_only"),
    [
        (2, 2, True),  # helps, whoever's they are
        (2, lambda text: 3 - 2 * group(text), True),  # helps, and what an exchange does is not clear
        (2, 4, False),  # helps, and is read
        (4, 4, False),  # neither helps nor is read
        (6, 6, False),  # harms, whoever's they are
    ],
)
def test_a_benefit_without_a_perceptual_score_is_one_of_training_only(tmp_path, lips, exchanged, in_training_only):
    lost = {"A -> T": (4, 4), "A+L -> T": (lips, lips)}
    folder = grid(tmp_path, lost, (0.0, -10.0), permuted=exchanged, permuted_snrs_db=(-10.0,), draws=2)
    (said,) = [clause for clause in findings(folder) if "of another utterance" in clause]
    assert said.startswith("at -10 dB, lips of another utterance: WER ")
    hint = ", which, beside a positive relative benefit, points to a benefit in training only"
    assert said.endswith(f"){hint}" if in_training_only else ")")
    assert ("excludes zero: yes" in said) == (exchanged == lips + 2)
