"""Draw docs/img/example.png: one test utterance of the quickstart, what the models read of it, and what they wrote.

    python docs/make_example_figure.py            # after `make grid`; another utterance: add its id

The utterance is picked by hand, so the caption counts all test utterances of the same two models.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dmlm.modalities import SAMPLE_RATE_HZ
from dmlm.plan.grid import read_grid_file
from dmlm.results.drawing import COLOURS, INK, WARNING
from dmlm.results.grid import GridResults
from dmlm.results.records import UtteranceResult
from dmlm.sweep.api import load_results
from dmlm.sweep.look import look_in_grid

SNR_DB = 0.0
FRAMES = 8  # of the mouth, drawn over the time axis


def transcripts(results: GridResults, inputs: str) -> dict[str, UtteranceResult]:
    """What OPT wrote of every test utterance at this SNR, by utterance id."""
    (cell,) = (c for c in results.cells if c.model == "opt-tiny" and c.template == f"{inputs} -> T")
    (at_snr,) = (e for e in cell.evaluations if e.snr_db == SNR_DB and not e.permuted)
    return {utterance.id: utterance for utterance in at_snr.utterances}


def draw(name: str, target: Path) -> None:
    """Compose the picture of one utterance."""
    look = look_in_grid(read_grid_file("quickstart"), name, SNR_DB)
    utterance, speech, noisy, frames, page = look.utterance, look.sound.clean, look.sound.noisy, look.lips, look.page
    if frames is None or page is None or not look.transcripts:
        raise SystemExit(f"{' '.join(look.notes)} Run the quickstart first.")
    audio, lips = look.streams["A"].ids, look.streams["L"].ids

    figure = Figure(figsize=(10, 3.1), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    end_s = utterance.duration_s
    time_s = np.arange(len(noisy)) / SAMPLE_RATE_HZ
    panel = figure.add_axes((0.06, 0.69, 0.56, 0.24))
    panel.plot(time_s, noisy, color=COLOURS[2], linewidth=0.5)
    panel.plot(time_s, speech, color=INK, linewidth=0.4)
    panel.set_title(f"speech, with noise of {SNR_DB:g} dB on its second half", fontsize=9, color=COLOURS[2], pad=3)
    plain(panel, end_s, "audio")
    strip(figure.add_axes((0.06, 0.51, 0.56, 0.12)), audio, end_s, f"{len(audio)} IDs")
    panel = figure.add_axes((0.06, 0.22, 0.56, 0.23))
    for number, index in enumerate(np.linspace(0, len(frames) - 1, FRAMES).astype(int)):
        left = number * end_s / FRAMES
        extent = (left, left + 0.97 * end_s / FRAMES, 0, 1)
        panel.imshow(frames[index], cmap="gray", extent=extent, aspect="auto", vmin=0, vmax=255)
    plain(panel, end_s, "lips")
    panel.set_ylim(0, 1)
    strip(figure.add_axes((0.06, 0.04, 0.56, 0.12)), lips, end_s, f"{len(lips)} IDs")
    panel = figure.add_axes((0.66, 0.45, 0.32, 0.48))
    panel.imshow(page, cmap="gray")
    panel.set(xticks=[], yticks=[])
    panel.set_title("page", fontsize=9, pad=3)
    results = load_results("quickstart")
    heard = {inputs: transcripts(results, inputs) for inputs in ("A", "A+L", "A+O")}
    rows = [("spoken", utterance.text), *((f"OPT {inputs}", by_id[name].hypothesis) for inputs, by_id in heard.items())]
    for number, (who, words) in enumerate(rows):
        wrong = words != utterance.text
        figure.text(0.66, 0.33 - 0.095 * number, who, color=INK, fontsize=9)
        figure.text(
            0.735, 0.33 - 0.095 * number, words, color=WARNING if wrong else INK, fontsize=9, family="monospace"
        )
    figure.savefig(target)
    print(f"{target}: {name}, {audio[:6]} ..., {lips[:6]} ...")
    a, b = ({i: u.errors for i, u in heard[inputs].items()} for inputs in ("A", "A+L"))
    better, worse = sum(b[i] < a[i] for i in a), sum(b[i] > a[i] for i in a)
    print(f"at {SNR_DB:g} dB: lips better on {better}, worse on {worse} of {len(a)} utterances")


def plain(panel: Axes, end_s: float, label: str) -> None:
    """A panel over time without ticks."""
    panel.set(xlim=(0, end_s), xticks=[], yticks=[])
    panel.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)


def strip(panel: Axes, ids: np.ndarray, end_s: float, label: str) -> None:
    """One cell an ID, coloured by it; every few cells the number is written."""
    panel.imshow(ids[None, :], cmap="Pastel1", aspect="auto", extent=(0, end_s, 0, 1), interpolation="nearest")
    every = -(-len(ids) // 20)
    for index in range(every // 2, len(ids) - 1, every):
        panel.text((index + 0.5) * end_s / len(ids), 0.5, ids[index], ha="center", va="center", fontsize=6.5)
    plain(panel, end_s, label)


if __name__ == "__main__":
    draw(*(sys.argv[1:] or ["test-00281"]), target=Path(__file__).parent / "img" / "example.png")
