"""The report: one static page that contains every figure and table, and opens offline."""

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path

import jinja2

import dmlm
from dmlm import files, paths, snr
from dmlm.results.exhibit import Exhibit
from dmlm.results.grid import CorpusCard, GridResults
from dmlm.results.tables import left_out, unended
from dmlm.score.intervals import RESAMPLES

MARKS = {"holds": "yes", "does not hold": "no", "undecided": "maybe", "not measured": "none"}  # cell text -> CSS class


def _image(exhibit: Exhibit) -> str:
    """Return a figure as a `data:` URL: its SVG, else its PNG, else empty.

    As separate images, two SVGs may use the same ids.
    """
    if exhibit.svg:
        return "data:image/svg+xml;base64," + base64.b64encode(exhibit.svg.encode("utf-8")).decode("ascii")
    png = next((file for file in exhibit.files if file.suffix == ".png"), None)
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode("ascii") if png else ""


def _facts(results: GridResults) -> list[tuple[str, str]]:
    """Return the facts that are needed to judge and reproduce the numbers, as pairs of label and text."""
    trained = sum(cell.training is not None for cell in results.cells)
    done = results.evaluation_count - len(results.missing)
    seeds = sorted({cell.seed for cell in results.cells})
    speakers = {u.speaker for c in results.cells for e in c.evaluations[:1] if e.done for u in e.utterances}
    return [
        *(("corpus", _corpus(card)) for card in results.corpora),
        ("speakers in the test set", f"{len(speakers - {None})}" if speakers - {None} else "not recorded"),
        *(("noise", _noise(noise)) for noise in results.distinct(lambda cell: cell.noise)),
        ("tokenizers", "; ".join(_tokenizers(results)) or "not recorded"),
        ("utterances left out", "; ".join(left_out(results)) or "none"),
        ("hypotheses that did not end", _unended(results)),
        ("text normaliser", f"{results.normaliser}, the same for references and hypotheses"),
        ("WER", "sum of substitutions, deletions and insertions over sum of reference words"),
        ("CER", "the same of characters, the space between two words included"),
        ("intervals", f"95 %, percentile, paired bootstrap over test utterances, {RESAMPLES} resamples, fixed seed"),
        ("training seeds", f"{len(seeds)} ({_list(seeds)}); the intervals do not cover the choice of seed"),
        ("baseline", results.baseline),
        (
            "cells",
            f"{trained} of {len(results.cells)} trained; {done} of {results.evaluation_count} evaluations finished",
        ),
        ("made by", f"dmlm {dmlm.__version__}; again with: python analysis/make_figures.py {_place(results.folder)}"),
    ]


def _place(folder: Path) -> str:
    """Return what to write for a grid on a command line: its name if it lies where grids are kept, else its path."""
    return shlex.quote(folder.name if folder.parent == paths.runs().resolve() else str(folder))


def _unended(results: GridResults) -> str:
    """Return how many hypotheses were cut or stopped, of the evaluations that recorded it."""
    recorded = [evaluation.result.cut_hypotheses is not None for evaluation in results.finished]
    if not any(recorded):
        return "not recorded"
    counts = "; ".join(unended(results)) or "none"
    return counts if all(recorded) else f"{counts}; not recorded in {recorded.count(False)} evaluations"


def _corpus(card: CorpusCard) -> str:
    sizes = ", ".join(f"{count} {split}" for split, count in card.utterances.items())
    folds = f" (in each of {card.folds} folds, about)" if card.folds else ""
    return f"{card.name} {card.version}: {sizes} utterances{folds}; licence {card.licence}, SHA-256 {card.digest}"


def _noise(noise: dict[str, object]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_plain(key, value)}" for key, value in noise.items() if value != [])


def _tokenizers(results: GridResults) -> list[str]:
    """Return texts such as `A audio_mfcc or audio_codec`: a modality and all recipes that it was read with."""
    letters = dict.fromkeys(letter for cell in results.cells for letter in cell.inputs)
    return [f"{letter} {' or '.join(recipes)}" for letter in letters if (recipes := results.tokenizers_of(letter))]


def _plain(key: str, value: object) -> str:
    if isinstance(value, list):
        return " + ".join(map(str, value))
    return str(value).replace("_", " ") if key == "placement" else str(value)  # others may be paths


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _missing(results: GridResults) -> list[str]:
    """Return one line for each missing evaluation."""
    lines = []
    for cell, evaluation in results.missing:
        condition = snr.with_unit(evaluation.snr_db)
        permuted = f", {evaluation.permuted} permuted, draw {evaluation.draw}" if evaluation.permuted else ""
        variant = f", {cell.variant}" if cell.variant else ""
        lines.append(f"{cell.model} {cell.template}, seed {cell.seed}{variant}: {condition}{permuted}")
    return lines


def write(results: GridResults, path: Path, exhibits: Sequence[Exhibit]) -> Path:
    """Write the page; everything on it comes from `exhibits` and `grid.json`."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html.j2").render(
        name=results.name,
        about=results.about,
        facts=_facts(results),
        missing=_missing(results),
        evaluation_count=results.evaluation_count,
        exhibits=exhibits,
        image_of=_image,
        marks=MARKS,
    )
    files.write_text(path, page)
    return path
