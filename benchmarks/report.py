"""Write docs/performance.md and docs/gpu.md from the results under docs/results and the notes beside the pages.

python benchmarks/report.py
"""

import csv
import json
from collections.abc import Iterator
from typing import Any

from harness import RESULTS, ROOT

DOCS = ROOT / "docs"
HEAD = """# Performance

`python benchmarks/report.py` writes this page from [results/performance.json](results/performance.json) and
[performance-notes.md](performance-notes.md). What was measured on GPUs is in [gpu.md](gpu.md).

Each row was measured by one command of `benchmarks/`. Both sides took turns in one run, each in a process of its own. Numbers are
medians of 5 rounds; memory is from one round. `ratio` says how many times better ours is; `target` is the ratio that was aimed at.
Speeds on shared cores vary by a factor of two from run to run; ratios vary less.

## Measurements

| benchmark | ours | theirs | unit | ratio | target | machine |
|---|---|---|---|---|---|---|
"""
LENGTH = """
## Transformer against Mamba, by length

Both have equal numbers of parameters, without embeddings, and use this project's own implementations. Command:
`python benchmarks/length.py`.

![Speed and memory over length](results/length.png)

| model | tokens | training, tokens/s | decoding, ms/token | cache per sequence, MiB |
|---|---|---|---|---|
"""
PARTS = {"right": "Is it right?", "fast": "Is it fast?", "useful": "Is it useful?"}


def number(value: float | None) -> str:
    """Format with four digits; a dash if it was not measured."""
    return "–" if value is None else f"{value:,.4g}" if value < 10_000 else f"{value:,.0f}"


def performance_page() -> str:
    """Return docs/performance.md: the tables, followed by the notes."""
    page = HEAD
    for row in json.loads(RESULTS.read_text()):
        cells = *comparison(row), row["machine"]
        page += f"| {' | '.join(cells)} |\n"
    page += LENGTH
    with (DOCS / "results" / "length.csv").open() as file:
        for row in csv.DictReader(file):
            cells = row["model"], f"{int(row['length']):,}", row["train_tokens_per_s"]
            page += f"| {' | '.join((*cells, row['decode_ms_per_token'], row['cache_mib_per_row']))} |\n"
    return page + "\n" + (DOCS / "performance-notes.md").read_text()


def comparison(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a comparison: name, ours, theirs, unit, ratio, target."""
    wanted = "" if row["at_least"] is None else f"{row['at_least']:g}"
    ratio = "–" if row["ratio"] is None else f"**{row['ratio']:.2f}**"
    return row["name"], number(row["ours"]), number(row["theirs"]), row["unit"], ratio, wanted


def gpu_page() -> str:
    """Return docs/gpu.md: the notes, followed by every step with its results on each device."""
    from gpu import fast, networks, right, training_steps

    page = (DOCS / "gpu-notes.md").read_text() + "\n## Results\n"
    planned = [*right.STEPS, *training_steps.STEPS, *networks.STEPS, *fast.STEPS]
    for part, title in PARTS.items():
        path = DOCS / "results" / "gpu" / f"{part}.json"
        devices: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
        page += f"\n### {title}\n"
        steps_of_part = [step for step in planned if step.part == part]
        for device, steps in devices.items():
            page += f"\n**{device}**\n\n" + "".join(_lines(steps, [step.name for step in steps_of_part]))
        if not devices:
            page += "\nNot run on a GPU yet.\n"
        if not devices and steps_of_part:
            page += "\n| step | what | at most | result |\n|---|---|---|---|\n"
            rows = ((step.name, _about(step), f"{step.limit_s:.0f} s", "not run yet") for step in steps_of_part)
            page += "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return page


def _about(step: Any) -> str:
    """Return what a step does: the first paragraph of its docstring."""
    return " ".join((step.run.__doc__ or "").split())


def _lines(steps: dict[str, Any], names: list[str]) -> Iterator[str]:
    """Yield the results of one device: a line for each step, and tables of its rows."""
    for name in (*names, *(name for name in steps if name not in names)):
        entry = steps.get(name)
        if entry is None:
            yield f"\n*{name}*: not run yet.\n"
            continue
        machine, error = entry["machine"], f" {entry['error']}" if "error" in entry else ""
        versions = ", ".join(f"{key} {machine[key]}" for key in ("driver", "torch", "triton") if machine.get(key))
        yield f"\n*{name}*: {entry['state']} in {entry['seconds']:.0f} s ({entry['when'][:10]}, {versions}).{error}\n"
        checks = [row for row in entry["rows"] if "check" in row]
        speeds = [row for row in entry["rows"] if "name" in row]
        facts = [row for row in entry["rows"] if "fact" in row]
        if checks:
            yield "\n| check | found | at most | |\n|---|---|---|---|\n"
            for row in checks:
                found = "not a number" if row["value"] is None else f"{row['value']:.3g}"
                yield f"| {row['check']} | {found} | {row['at_most']:g} | {'ok' if row['ok'] else '**wrong**'} |\n"
        if speeds:
            yield "\n| comparison | ours | theirs | unit | ratio | target |\n|---|---|---|---|---|---|\n"
            yield from (f"| {' | '.join(comparison(row))} |\n" for row in speeds)
        if facts:
            yield "\n" + "".join(f"* {row['fact']}: {row['value']}\n" for row in facts)


def main() -> None:
    """Write both pages."""
    (DOCS / "performance.md").write_text(performance_page())
    (DOCS / "gpu.md").write_text(gpu_page())


if __name__ == "__main__":
    main()
