"""Word error rate against SNR: one panel per backbone, one line per template."""

from pathlib import Path

from dmlm.score.intervals import RESAMPLES
from dmlm.sweep.drawing import legend, panels, per_cent_axis, save, snr_axis, snr_line, style_of
from dmlm.sweep.exhibit import Exhibit, write_points
from dmlm.sweep.measures import arms, wer_point
from dmlm.sweep.store import GridResults

ORDER = 10
NAME = "wer_by_snr"


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Draw the curves and write the numbers behind them."""
    levels = results.snrs_db
    figure, columns = panels(results.models)
    everything = []
    for model, (axis,) in zip(results.models, columns, strict=True):
        lines = arms(results, model)
        for place, arm in enumerate(lines):
            points = [wer_point(results, arm, snr_db) for snr_db in levels]
            snr_line(axis, points, levels, style_of(results, arm), arm.name, place - (len(lines) - 1) / 2)
            everything += points
        snr_axis(axis, levels)
        per_cent_axis(axis, "WER (%)")
    columns[0][0].set_ylim(bottom=0)
    legend(figure, columns)
    files, svg = save(figure, folder, NAME)
    return Exhibit(
        title="Word error rate by SNR",
        caption=(
            "WER pooled over the test utterances; noise grows to the right, clean speech stands apart. Bars: 95 %"
            f" percentile intervals, bootstrap over utterances, {RESAMPLES} resamples. A missing evaluation leaves a"
            " gap."
        ),
        files=(*files, write_points(folder / f"{NAME}.csv", "wer", everything)),
        svg=svg,
    )
