"""The report: one static page with every figure and table inside it, which opens offline."""

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2

import dmlm
from dmlm import places
from dmlm.score.intervals import RESAMPLES
from dmlm.sweep.exhibit import Exhibit
from dmlm.sweep.measures import level
from dmlm.sweep.store import CLEAN_DB, GridResults

MARKS = {"holds": "yes", "does not hold": "no", "undecided": "maybe", "not measured": "none"}  # cell text -> CSS class


def _data_uri(svg: str) -> str:
    """A figure as an image inside the page: vector, and its internal names cannot collide with another figure's."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


def _facts(results: GridResults) -> list[tuple[str, str]]:
    """What a reader needs to judge the numbers, and to make them again."""
    corpus, sizes = results.corpus, results.corpus.get("utterances", {})
    trained = sum(cell.training is not None for cell in results.cells)
    done = results.asked - len(results.missing)
    seeds = sorted({cell.seed for cell in results.cells})
    speakers = {u.speaker for c in results.cells for e in c.evaluations[:1] if e.done for u in e.utterances}
    return [
        ("corpus", f"{corpus['name']} {corpus['version']}, licence {corpus['licence']}, SHA-256 {corpus['digest']}"),
        ("utterances", ", ".join(f"{count} {split}" for split, count in sizes.items())),
        ("speakers in the test set", f"{len(speakers - {None})}" if speakers - {None} else "not recorded"),
        ("noise", ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in results.noise.items())),
        ("readers", ", ".join(f"{letter} {name}" for letter, name in results.readers.items()) or "not recorded"),
        ("text normaliser", f"{results.normaliser}, the same for references and hypotheses"),
        ("WER", "sum of substitutions, deletions and insertions over sum of reference words"),
        ("intervals", f"95 %, percentile, paired bootstrap over test utterances, {RESAMPLES} resamples, fixed seed"),
        ("training seeds", f"{len(seeds)} ({_list(seeds)}); the intervals do not cover the choice of seed"),
        ("baseline", results.baseline),
        ("cells", f"{trained} of {len(results.cells)} trained; {done} of {results.asked} evaluations finished"),
        ("made by", f"dmlm {dmlm.__version__}; again with: python analysis/make_figures.py {results.folder.name}"),
    ]


def _plain(value: object) -> str:
    return " + ".join(map(str, value)) if isinstance(value, list) else str(value).replace("_", " ")


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _missing(results: GridResults) -> list[str]:
    """One line for each missing evaluation."""
    lines = []
    for cell, evaluation in results.missing:
        condition = level(evaluation.snr_db) + (" dB" if evaluation.snr_db != CLEAN_DB else "")
        permuted = f", {evaluation.permuted} permuted, draw {evaluation.draw}" if evaluation.permuted else ""
        variant = f", {cell.variant}" if cell.variant else ""
        lines.append(f"{cell.model} {cell.template}, seed {cell.seed}{variant}: {condition}{permuted}")
    return lines


def write(results: GridResults, path: Path, exhibits: Sequence[Exhibit]) -> Path:
    """Write the page. Everything it shows comes from `exhibits` and from `grid.json`."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html.j2").render(
        name=results.name,
        facts=_facts(results),
        missing=_missing(results),
        asked=results.asked,
        exhibits=exhibits,
        data_uri=_data_uri,
        marks=MARKS,
    )
    places.write_text(path, page)
    return path
