"""Tables for a paper: WER, relative benefit and CER by SNR, and the costs of each model; as CSV, Markdown and LaTeX."""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dmlm import files, snr
from dmlm.results.exhibit import Exhibit, Table, csv_number, write_csv, write_points
from dmlm.results.grid import GridResults
from dmlm.results.measures import (
    Point,
    System,
    benefit_point,
    cells_of,
    cer_point,
    compared_systems,
    systems,
    wer_point,
)
from dmlm.results.tables import (
    MISSING,
    UNDEFINED,
    UNTRAINED,
    benefit_notes,
    bracketed,
    folds_tested,
    left_out,
    marked,
    mean_benefits,
)
from dmlm.score.intervals import RESAMPLES

ORDER = 40
NAME = "summary"


def _costs(results: GridResults, system: System) -> tuple[str, ...]:
    """Return the cost cells of a system: means over its finished trainings and evaluations."""
    cells = cells_of(results, system)
    done = [cell.training for cell in cells if cell.training]
    decode_s = [e.result.decode_s / e.result.utterances for c in cells for e in c.evaluations if e.done]
    trained = f"{len(done)}/{len(cells)}"
    if not done:
        return (trained, *[MISSING] * 5)
    speeds = [run.tokens_per_s for run in done if run.tokens_per_s is not None]
    return (
        *(trained, f"{done[0].parameters / 1e6:.2f}", f"{statistics.fmean(run.steps for run in done):.0f}"),
        f"{statistics.fmean(run.train_s for run in done):.0f}",
        f"{statistics.fmean(speeds):.0f}" if speeds else MISSING,
        f"{1000 * statistics.fmean(decode_s):.0f}" if decode_s else MISSING,
    )


def _markdown(tables: Sequence[Table]) -> str:
    parts = []
    for table in tables:
        rule = [":--" if column < table.words else "--:" for column in range(len(table.head))]
        lines = [f"| {' | '.join(row)} |" for row in (table.head, rule, *table.rows)]
        parts.append("\n\n".join([f"### {table.title}", "\n".join(lines), *table.notes]) + "\n")
    return "\n".join(parts)


def _tex(text: str) -> str:
    """Write a cell for LaTeX: special characters escaped, a real minus sign, the interval small and on a second line."""
    marks: dict[str, str | int | None] = {
        "\\": r"\textbackslash{}",
        "—": "---",
        "±": r"$\pm$",
        "*": r"$^{*}$",
        "λ": r"$\lambda$",
        UNTRAINED: r"$\dagger$",
    }
    marks |= {sign: f"\\{sign}" for sign in "&%#_"}
    text = text.translate(str.maketrans(marks)).replace("->", r"$\to$")
    text = re.sub(r"(?<![\w-])-(?=\d)", "$-$", text)
    value, bracket, interval = text.partition(" [")
    return rf"\shortstack[r]{{{value}\\{{\scriptsize [{interval}}}}}" if bracket else text


def _latex(tables: Sequence[Table]) -> str:
    """Write the tables for LaTeX; they need no package but booktabs."""
    parts = ["% in the preamble: \\usepackage{booktabs}"]
    for table in tables:
        columns = "l" * table.words + "r" * (len(table.head) - table.words)
        head, *rows = (" & ".join(map(_tex, row)) + r" \\" for row in (table.head, *table.rows))
        lines = [r"\begin{table*}", rf"\caption{{{_tex(table.title)}}}", r"\centering\small\setlength{\tabcolsep}{4pt}"]
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
        notes = [rf"\par {{\footnotesize {_tex(note)}}}" for note in table.notes]
        parts.append("\n".join([*lines, r"\end{tabular}", *notes, r"\end{table*}"]))
    return "\n\n".join(parts) + "\n"


def _table(
    title: str, results: GridResults, rows: Sequence[tuple[str, ...]], *more: str, notes: Sequence[str] = ()
) -> Table:
    head = map(snr.with_unit, results.snrs_db)
    return Table(title, ("model", "inputs", *head, *more), tuple(rows), words=2, notes=tuple(notes))


def _rate_rows(points_of: Mapping[System, Sequence[Point]]) -> list[tuple[str, ...]]:
    return [
        (a.model, a.name, *(bracketed(p.estimate, seed_sd=p.seed_sd) for p in points))
        for a, points in points_of.items()
    ]


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Write the tables in each format; that of CER if character errors are recorded."""

    def by_snr(
        of: Sequence[System], measure: Callable[[GridResults, System, float], Point]
    ) -> dict[System, list[Point]]:
        return {system: [measure(results, system, snr_db) for snr_db in results.snrs_db] for system in of}

    wer = by_snr(systems(results), wer_point)
    cer = by_snr(systems(results), cer_point) if results.has_characters else {}
    benefits = by_snr(compared_systems(results), benefit_point)
    means = {system: mean_benefits(results, system) for system in benefits}
    benefit_rows = [
        (
            *(a.model, marked(a.name, results, a)),
            *(bracketed(e, signed=True) for e in (*(p.estimate for p in points), *means[a])),
        )
        for a, points in benefits.items()
    ]
    cost_head = (
        "model",
        "inputs",
        "trained",
        "parameters (M)",
        "steps",
        "training (s)",
        "tokens/s",
        "decoding (ms/utt.)",
    )
    cost_rows = [(system.model, system.name, *_costs(results, system)) for system in wer]
    tables: tuple[Table, ...] = (
        _table("Word error rate (%)", results, _rate_rows(wer), notes=[*folds_tested(results), *left_out(results)]),
        _table(
            f"Relative benefit over {results.baseline} (%)",
            *(results, benefit_rows, "mean", "pooled"),
            notes=benefit_notes(results),
        ),
        _table("Character error rate (%)", results, _rate_rows(cer)),
        Table("What the models cost", cost_head, tuple(cost_rows), words=2),
    )
    tables = tuple(table for table in tables if table.rows)
    files.write_text(folder / f"{NAME}.md", _markdown(tables))
    files.write_text(folder / f"{NAME}.tex", _latex(tables))
    mean_rows = [
        [a.model, a.template, a.variant, kind, *(map(csv_number, (e.value, e.low, e.high)) if e else ("", "", ""))]
        for a, pair in means.items()
        for kind, e in zip(("mean_of_benefits", "benefit_of_pooled_wer"), pair, strict=True)
    ]
    head = ["model", "template", "variant", "measure", "value", "low_95", "high_95"]
    costs = write_csv(
        folder / f"{NAME}_cost.csv", cost_head, [[c.replace(MISSING, "") for c in row] for row in cost_rows]
    )
    rates = [write_points(folder / f"{NAME}_wer.csv", "wer", [point for row in wer.values() for point in row])]
    if cer:
        points = [point for row in cer.values() for point in row]
        rates.append(write_points(folder / f"{NAME}_cer.csv", "cer", points, unit="characters"))
    return Exhibit(
        title="Summary",
        caption=(
            f"In brackets the 95 % percentile interval of a paired bootstrap over the test utterances ({RESAMPLES}"
            " resamples); ± is the standard deviation over training seeds, where there are several; * the interval"
            " excludes zero (each taken alone, not corrected for the number of comparisons). Mean (of the RBs) and"
            f" pooled (RB of the pooled WER) are over the noisy levels. {MISSING} missing; {UNDEFINED}: the baseline"
            " makes no error, so the ratio has no value."
        ),
        files=(
            *(folder / f"{NAME}.md", folder / f"{NAME}.tex", *rates),
            *(write_csv(folder / f"{NAME}_benefit_means.csv", head, mean_rows), costs),
        ),
        tables=tables,
    )
