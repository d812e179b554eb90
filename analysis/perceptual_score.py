"""Perceptual score of each added modality: what a model loses when the modality comes from another utterance."""

from pathlib import Path

from dmlm import snr
from dmlm.results.drawing import (
    INK,
    LINES,
    legend,
    note_missing,
    panels,
    per_cent_axis,
    save,
    snr_axis,
    snr_line,
    style_of,
)
from dmlm.results.exhibit import Exhibit, Table, write_points
from dmlm.results.grid import GridResults
from dmlm.results.measures import Point, System, perceptual_point, permuted_modalities, permuted_snrs_db, systems
from dmlm.results.tables import MISSING, bracketed, percent

ORDER = 30
NAME = "perceptual_score"
TITLE = "Perceptual score by SNR"


def _permuted(results: GridResults, model: str) -> list[tuple[System, str]]:
    """Return each system of a model with each modality that the grid permutes for it."""
    return [(system, letter) for system in systems(results, model) for letter in permuted_modalities(results, system)]


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Draw PS_M = E[WER_permuted(M)] - WER and write its numbers."""
    snrs_db, models = permuted_snrs_db(results), [model for model in results.models if _permuted(results, model)]
    if not models:
        return Exhibit(title=TITLE, caption="Not measured: this grid permutes no modality.")
    figure, columns = panels(models)
    all_points, rows = [], []
    for model, (axis,) in zip(models, columns, strict=True):
        axis.axhline(0, color=INK, linewidth=1.0)
        panel_points: list[Point] = []
        lines = _permuted(results, model)
        for index, (system, letter) in enumerate(lines):
            measured = [perceptual_point(results, system, letter, snr_db) for snr_db in snrs_db]
            points = [point for point, _ in measured]
            style = {
                **style_of(results, system),
                "linestyle": LINES[permuted_modalities(results, system).index(letter) % 4],
            }
            shift = 1.6 * (index - (len(lines) - 1) / 2)
            snr_line(axis, points, snrs_db, style, f"{letter} in {system.name}", shift)
            panel_points += points
            rows += [
                (
                    *(
                        model,
                        f"{letter} in {system.name}",
                        snr.text(point.snr_db),
                        bracketed(point.estimate, signed=True),
                    ),
                    *(
                        bracketed(part, signed=True)
                        for part in ((score.by_model, score.by_task) if score else (None, None))
                    ),
                    *(
                        percent(score.draw_sd) if score and score.draws > 1 else MISSING,
                        f"{point.runs_done}/{point.runs_asked}",
                    ),
                )
                for point, score in measured
            ]
        all_points += panel_points
        note_missing(axis, panel_points)
        snr_axis(axis, snrs_db)
        per_cent_axis(axis, "perceptual score (points of WER)", signed=True)
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, -1), max(high, 1))  # a score of zero is drawn as zero, not as rounding
    legend(figure, columns)
    files, svg = save(figure, folder, NAME)
    head = (
        "model",
        "modality",
        "SNR (dB)",
        "PS (points)",
        "PS / WER (%)",
        "PS / baseline WER (%)",
        "SD of draws",
        "runs",
    )
    return Exhibit(
        title=TITLE,
        caption=(
            "WER with one modality taken from other utterances (derangements of the test set), less the WER as it"
            " is; above zero the model uses the modality. Near zero beside a positive relative benefit, training"
            " with the modality helped and reading it does not. Bars: 95 % percentile intervals, paired bootstrap"
            " over utterances of the mean over draws."
        ),
        files=(*files, write_points(folder / f"{NAME}.csv", "perceptual_score", all_points)),
        svg=svg,
        tables=(Table("Perceptual score and its two normalisations", head, tuple(rows), words=2, folded=True),),
    )
