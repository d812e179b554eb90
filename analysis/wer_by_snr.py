"""Word error rate against SNR: one panel per backbone, one line per template."""

from functools import partial
from pathlib import Path

from dmlm.results.drawing import (
    draw_systems,
    legend,
    panels,
    per_cent_axis,
    save,
)
from dmlm.results.exhibit import Exhibit, write_points
from dmlm.results.grid import GridResults
from dmlm.results.measures import Point, systems, wer_point
from dmlm.score.intervals import RESAMPLES

ORDER = 10
NAME = "wer_by_snr"


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Draw the curves and write their numbers."""
    figure, columns = panels(results.models)
    all_points: list[Point] = []
    for model, (axis,) in zip(results.models, columns, strict=True):
        all_points += draw_systems(axis, results, systems(results, model), partial(wer_point, results))
        per_cent_axis(axis, "WER (%)")
    top = max(5.0, columns[0][0].get_ylim()[1])
    columns[0][0].set_ylim(-0.015 * top, top)
    legend(figure, columns)
    files, svg = save(figure, folder, NAME)
    return Exhibit(
        title="Word error rate by SNR",
        caption=(
            "WER pooled over the test utterances; noise grows to the right, clean speech stands apart. Bars: 95 %"
            f" percentile intervals, bootstrap over utterances, {RESAMPLES} resamples. A missing evaluation leaves a"
            " gap."
        ),
        files=(*files, write_points(folder / f"{NAME}.csv", "wer", all_points)),
        svg=svg,
    )
