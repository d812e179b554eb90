"""Word error rate against SNR: one panel per backbone, one line per template."""

from functools import partial
from pathlib import Path

from dmlm.results.drawing import draw_rates
from dmlm.results.exhibit import Exhibit, write_points
from dmlm.results.grid import GridResults
from dmlm.results.measures import wer_point
from dmlm.score.intervals import RESAMPLES

ORDER = 10
NAME = "wer_by_snr"


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Draw the curves and write their numbers."""
    points, files, svg = draw_rates(results, folder, NAME, partial(wer_point, results), "WER (%)")
    return Exhibit(
        title="Word error rate by SNR",
        caption=(
            "WER pooled over the test utterances; noise grows to the right, clean speech stands apart. Bars: 95 %"
            f" percentile intervals, bootstrap over utterances, {RESAMPLES} resamples. A missing evaluation leaves a"
            " gap."
        ),
        files=(*files, write_points(folder / f"{NAME}.csv", "wer", points)),
        svg=svg,
    )
