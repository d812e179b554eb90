"""Tables and figures of a grid that compares tokenizers of one modality: baselines, checks, names."""

import json

import pytest
from fake_grid import rows, write_grid

from dmlm.results.drawing import legend, panels, style_of
from dmlm.results.figures import make_figures
from dmlm.results.grid import read_grid
from dmlm.results.measures import baseline_of, compared_systems, systems


@pytest.fixture
def filtered(tmp_path):
    """Two tokenizers for A and for O: all lines, where A+O loses 2 words of a sentence, and one line, where it loses 1."""
    lost = {"A -> T": 3, "L -> T": 3, "A+O -> T": 2, "O+A -> T": 1}
    grid = write_grid(
        tmp_path / "runs",
        templates=tuple(lost),
        snrs_db=(0.0, -10.0),
        utterances=12,
        speaker=lambda reference, model, template, *condition: " ".join(reference.split()[lost[template] :]),
    )
    data = json.loads((grid / "grid.json").read_text())
    made = {
        "A -> T": ("A -> T", "audio_ssl_kmeans", {}),
        "L -> T": ("A -> T", "audio_mfcc", {}),
        "A+O -> T": ("A+O -> T", "audio_mfcc, ocr_rapidocr", {}),
        "O+A -> T": (
            "A+O -> T",
            "audio_mfcc, ocr_rapidocr keep=1 first_pass=a/very/long/name/of/a/folder",
            {"keep": 1, "first_pass": "a"},
        ),
    }
    for cell in data["cells"]:
        cell["template"], cell["variant"], kept = made[cell["template"]]
        reader = {"recipe": "ocr_rapidocr", "settings": kept}
        cell["settings"] = {"permute": None, "tokenizers": {"O": reader} if "O" in cell["template"] else {}}
    (grid / "grid.json").write_text(json.dumps(data))
    return grid


def test_the_benefit_of_filtered_text_is_checked_where_both_are(filtered):
    make_figures(read_grid(filtered))
    checks = {row["trend"][:1]: row for row in rows(filtered / "figures" / "trend_checks.csv")}
    assert checks["6"]["verdict"] == "holds"
    assert (
        "WER of A+O (audio_mfcc, ocr_rapidocr) less that of A+O (audio_mfcc, ocr_rapidocr keep=1"
        in checks["6"]["evidence"]
    )
    assert checks["4"]["verdict"] == "not measured"


def test_a_benefit_is_over_the_baseline_of_the_same_tokenizer(filtered):
    results = read_grid(filtered)
    for system in compared_systems(results):
        assert baseline_of(results, system).variant == "audio_mfcc", "not the first, audio_ssl_kmeans"


def test_a_finding_names_the_baseline_where_there_are_several(filtered):
    make_figures(read_grid(filtered))
    said = (filtered / "figures" / "findings.md").read_text()
    assert "A (audio_mfcc) (baseline): WER" in said
    assert "A (audio_ssl_kmeans): WER" in said
    assert "A+O (audio_mfcc, ocr_rapidocr) over A (audio_mfcc):" in said


def test_a_legend_lies_within_its_figure(filtered):
    results = read_grid(filtered)
    figure, columns = panels(["one"])
    for system in systems(results):
        columns[0][0].plot([0, 1], [0, 1], label=system.name, **style_of(results, system))
    legend(figure, columns)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert 0 <= box.y0 < box.y1 < columns[0][0].get_window_extent().y0
