"""The common look of all figures: palette, SNR axis with clean speech set apart, legend and saving. Without pyplot."""

import math
import textwrap
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dmlm import files, snr
from dmlm.results.grid import GridResults
from dmlm.results.measures import Point, System, systems

# Okabe & Ito's colours, which people with any colour vision tell apart, less the yellow that vanishes on white.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", ":", "-.")
INK = "#222222"
WARNING = "#B03A00"
DPI = 150
KEY_IN, LETTER_IN, LINE_IN = 0.6, 0.075, 0.19  # legend sizes in inches: key with gaps, letter, line
CLEAN_GAP_DB = 9.0  # between "clean" and the highest SNR
DODGE = 0.006  # fraction of the axis between neighbouring systems, so that their intervals do not hide each other


def style_of(results: GridResults, system: System) -> dict[str, Any]:
    """Return colour, marker and dash of a system: the same in every panel and figure; the baseline is black."""
    names = [system.name for system in systems(results)]
    names = list(dict.fromkeys(sorted(names, key=lambda name: f"{name} -> T" != results.baseline)))
    index = names.index(system.name)
    cycle = index // len(COLOURS)  # another marker and dash when the colours repeat
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[(index + cycle) % len(MARKERS)],
        "linestyle": LINES[cycle % len(LINES)],
    }


def panels(titles: Sequence[str], rows: int = 1, height_in: float = 3.6) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure with one column of axes per title, at most three side by side; axes of a row share the y range.

    Returns:
        The figure, and for each title its `rows` axes from top to bottom.
    """
    columns = min(3, len(titles))
    lines = -(-len(titles) // columns)  # how often three columns are repeated below each other
    figure = Figure(figsize=(max(6.4, 4.6 * columns), height_in * rows * lines + 0.6), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows * lines, columns, sharey="row" if rows > 1 else True, squeeze=False)
    axes_by_title: list[list[Axes]] = []
    for index, title in enumerate(titles):
        column = [axes[index // columns * rows + row][index % columns] for row in range(rows)]
        column[0].set_title(title, fontsize=12, color=INK, loc="left")
        for axis in column:
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
            axis.set_axisbelow(True)
            axis.tick_params(labelsize=9, colors=INK, labelleft=True)
        axes_by_title.append(column)
    for index in range(len(titles), lines * columns):
        for row in range(rows):
            axes[index // columns * rows + row][index % columns].set_visible(False)
    return figure, axes_by_title


def snr_positions(snrs_db: Sequence[float]) -> dict[float, float]:
    """Return the x position of each SNR: noise grows to the right, to scale; clean speech is set apart on the left.

    >>> snr_positions([math.inf, 20.0, 0.0])
    {inf: -29.0, 20.0: -20.0, 0.0: 0.0}
    """
    noisy = [snr_db for snr_db in snrs_db if snr.noisy(snr_db)]
    clean = -max(noisy) - CLEAN_GAP_DB if noisy else 0.0
    return {snr_db: 0.0 - snr_db if snr.noisy(snr_db) else clean for snr_db in snrs_db}


def _width(positions: dict[float, float]) -> float:
    """Return the extent of the axis in dB; 10 dB for a single condition."""
    return max(positions.values()) - min(positions.values()) or 10.0


def snr_axis(axis: Axes, snrs_db: Sequence[float]) -> None:
    """Draw ticks at the measured SNRs and a break in the axis next to clean speech."""
    positions = snr_positions(snrs_db)
    axis.set_xticks(list(positions.values()), [snr.text(snr_db).replace("-", "−") for snr_db in positions])
    width = _width(positions)
    axis.set_xlim(min(positions.values()) - 0.06 * width, max(positions.values()) + 0.06 * width)
    axis.set_xlabel("SNR (dB)", fontsize=10, color=INK)
    noisy = [position for snr_db, position in positions.items() if snr.noisy(snr_db)]
    if noisy and len(noisy) < len(positions):
        middle, gap, lean = min(noisy) - CLEAN_GAP_DB / 2, 0.011 * width, 0.008 * width
        on_axis: dict[str, Any] = {"transform": axis.get_xaxis_transform(), "clip_on": False}
        axis.plot([middle - gap, middle + gap], [0, 0], color="white", linewidth=3, zorder=5, **on_axis)
        for side in (middle - gap, middle + gap):
            axis.plot([side - lean, side + lean], [-0.018, 0.018], color=INK, linewidth=0.9, zorder=6, **on_axis)


def snr_line(
    axis: Axes, points: Sequence[Point], snrs_db: Sequence[float], style: dict[str, Any], label: str, shift: float
) -> None:
    """Draw one system: a marker with its interval at each SNR, and a line through the noisy SNRs, broken at gaps.

    Args:
        snrs_db: all SNRs of the axis.
        shift: moves the system sideways, in steps of `DODGE`, so that neighbours do not hide each other.
    """
    positions = snr_positions(snrs_db)
    xs = [positions[point.snr_db] + shift * DODGE * _width(positions) for point in points]
    estimates = [point.estimate for point in points]
    ys = [100 * estimate.value if estimate else math.nan for estimate in estimates]
    bars = [
        [max(0.0, 100 * (e.value - e.low)) if e and not math.isnan(e.low) else 0.0 for e in estimates],
        [max(0.0, 100 * (e.high - e.value)) if e and not math.isnan(e.high) else 0.0 for e in estimates],
    ]
    look = {**style, "markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.5}
    axis.errorbar(xs, ys, yerr=bars, elinewidth=1.0, **{**look, "linestyle": "none"})
    noisy = [index for index, point in enumerate(points) if snr.noisy(point.snr_db)]
    axis.plot([xs[index] for index in noisy], [ys[index] for index in noisy], linewidth=1.4, **look)
    axis.plot([], [], label=label, linewidth=1.4, **look)


def draw_systems(
    axis: Axes, results: GridResults, systems: Sequence[System], point_of: Callable[[System, float], Point]
) -> list[Point]:
    """Draw one line per system over all SNRs, and note what is missing; returns the points."""
    all_points: list[Point] = []
    for index, system in enumerate(systems):
        points = [point_of(system, snr_db) for snr_db in results.snrs_db]
        shift = index - (len(systems) - 1) / 2
        snr_line(axis, points, results.snrs_db, style_of(results, system), system.name, shift)
        all_points += points
    note_missing(axis, all_points)
    snr_axis(axis, results.snrs_db)
    return all_points


def draw_rates(
    results: GridResults, folder: Path, name: str, point_of: Callable[[System, float], Point], label: str
) -> tuple[list[Point], tuple[Path, ...], str]:
    """Draw an error rate against SNR, a panel per model, from zero upwards, and save it as NAME.

    Returns:
        All points, and the files and the SVG text of `save`.
    """
    figure, columns = panels(results.models)
    points: list[Point] = []
    for model, (axis,) in zip(results.models, columns, strict=True):
        points += draw_systems(axis, results, systems(results, model), point_of)
        per_cent_axis(axis, label)
    top = max(5.0, columns[0][0].get_ylim()[1])
    columns[0][0].set_ylim(-0.015 * top, top)
    legend(figure, columns)
    return points, *save(figure, folder, name)


def note_missing(axis: Axes, points: Sequence[Point]) -> None:
    """Write into the panel how many of its points are missing or undefined; a gap alone is easily overlooked."""
    counts = {status: sum(point.status == status for point in points) for status in ("missing", "undefined")}
    if note := ", ".join(f"{count} {status}" for status, count in counts.items() if count):
        axis.set_title(f"of {len(points)} points {note}", fontsize=8, color=WARNING, loc="right")


def per_cent_axis(axis: Axes, label: str, signed: bool = False) -> None:
    """Set label and ticks of a y axis in per cent; with `signed`, positive ticks carry a plus sign."""
    axis.set_ylabel(label, fontsize=10, color=INK)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:{'+' if signed and y else ''}g}".replace("-", "−")))


def legend(figure: Figure, columns: list[list[Axes]]) -> None:
    """Draw one legend below all panels; the figure grows by its lines."""
    handles = {
        label: handle
        for column in columns
        for handle, label in zip(*column[0].get_legend_handles_labels(), strict=True)
    }
    if not handles:
        return
    widest = figure.get_figwidth() - KEY_IN
    labels = [textwrap.fill(label, int(widest / LETTER_IN)) for label in handles]
    entry = KEY_IN + LETTER_IN * max(len(line) for label in labels for line in label.split("\n"))
    across = max(1, min(len(labels), int(figure.get_figwidth() / entry)))
    rows = [labels[start : start + across] for start in range(0, len(labels), across)]
    lines = sum(max(label.count("\n") + 1 for label in row) for row in rows)
    figure.set_figheight(figure.get_figheight() + LINE_IN * (lines - 1))
    figure.legend(
        handles.values(),
        labels,
        loc="outside lower center",
        ncols=across,
        fontsize=9,
        frameon=False,
        labelcolor=INK,
    )


def save(figure: Figure, folder: Path, name: str) -> tuple[tuple[Path, ...], str]:
    """Write NAME.png and NAME.pdf. The same numbers give the same bytes.

    Returns:
        The two paths, and the figure as SVG text, for the report.
    """
    text = BytesIO()
    figure.draw_without_rendering()  # compute the layout once, for all formats
    figure.set_layout_engine("none")
    # directly with each backend: `savefig` would draw everything twice
    with matplotlib.rc_context({"svg.hashsalt": name, "pdf.fonttype": 42}):
        with files.atomic(folder / f"{name}.png") as temporary:
            FigureCanvasAgg(figure).print_png(temporary)
        with files.atomic(folder / f"{name}.pdf") as temporary:
            FigureCanvasPdf(figure).print_pdf(temporary, metadata={"CreationDate": None})
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return (folder / f"{name}.png", folder / f"{name}.pdf"), text.getvalue().decode("utf-8")
