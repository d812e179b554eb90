"""Relative benefit of each added modality against SNR, with a line at zero."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dmlm.results.drawing import (
    INK,
    draw_systems,
    legend,
    panels,
    per_cent_axis,
    save,
)
from dmlm.results.exhibit import Exhibit, write_points
from dmlm.results.grid import GridResults
from dmlm.results.measures import Point, benefit_point, compared_systems
from dmlm.score.intervals import RESAMPLES, Estimate

ORDER = 20
NAME = "relative_benefit"
TITLE = "Relative benefit by SNR"
MARGIN = 0.25  # the figure shows intervals down to this far below the lowest value; longer ones are cut


def _range(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Return the range of the y axis in per cent.

    A very long interval, as where the baseline makes few errors, is cut; otherwise it would flatten all other points.
    """
    defined = [estimate for estimate in estimates if not math.isnan(estimate.value)]
    with_interval = [estimate for estimate in defined if not math.isnan(estimate.low)]
    values = [0.05, 0.0, *(estimate.value for estimate in defined)]
    lowest = min(values) - MARGIN
    bottom = min(*values, *(max(estimate.low, lowest) for estimate in with_interval))
    top = max(*values, *(estimate.high for estimate in with_interval))
    return 100 * bottom - 3, 100 * top + 3


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Draw RB(M | A) = (WER_A - WER_A+M) / WER_A and write its numbers."""
    models = [model for model in results.models if compared_systems(results, model)]
    if not models:
        return Exhibit(title=TITLE, caption=f"Not measured: no model has {results.baseline} and reads more beside it.")
    figure, columns = panels(models)
    all_points: list[Point] = []
    for model, (axis,) in zip(models, columns, strict=True):
        axis.axhline(0, color=INK, linewidth=1.0)
        all_points += draw_systems(axis, results, compared_systems(results, model), partial(benefit_point, results))
        per_cent_axis(axis, f"relative benefit over {results.baseline.removesuffix(' -> T')} (%)", signed=True)
    columns[0][0].set_ylim(*_range([point.estimate for point in all_points if point.estimate]))
    legend(figure, columns)
    files, svg = save(figure, folder, NAME)
    undefined = sum(point.status == "undefined" for point in all_points)
    return Exhibit(
        title=TITLE,
        caption=(
            f"The share of the errors of {results.baseline} that further inputs remove; above zero they help. Bars:"
            f" 95 % percentile intervals, paired bootstrap of the ratio over utterances, {RESAMPLES} resamples"
            + (f"; {undefined} points are undefined, since the baseline makes no error there." if undefined else ".")
        ),
        files=(*files, write_points(folder / f"{NAME}.csv", "relative_benefit", all_points)),
        svg=svg,
    )
