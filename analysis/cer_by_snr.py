"""Character error rate against SNR: one panel per backbone, one line per template."""

from functools import partial
from pathlib import Path

from dmlm.results.drawing import draw_rates
from dmlm.results.exhibit import Exhibit, write_points
from dmlm.results.grid import GridResults
from dmlm.results.measures import cer_point

ORDER = 15
NAME = "cer_by_snr"
TITLE = "Character error rate by SNR"


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Draw the curves and write their numbers."""
    if not results.has_characters:
        return Exhibit(title=TITLE, caption="Not recorded: no finished evaluation has counts of character errors.")
    points, files, svg = draw_rates(results, folder, NAME, partial(cer_point, results), "CER (%)")
    return Exhibit(
        title=TITLE,
        caption=(
            "As the word error rate, with characters in place of words; the space between two words is a character."
            " Evaluations of versions that did not count characters are shown as missing."
        ),
        files=(*files, write_points(folder / f"{NAME}.csv", "cer", points, unit="characters")),
        svg=svg,
    )
