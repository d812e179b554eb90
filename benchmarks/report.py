"""Write docs/performance.md from docs/results/performance.json, length.csv and docs/performance-notes.md.

python benchmarks/report.py
"""

import csv
import json

from harness import RESULTS, ROOT

PAGE = ROOT / "docs" / "performance.md"
HEAD = """# Performance

`python benchmarks/report.py` writes this page from [results/performance.json](results/performance.json) and
[performance-notes.md](performance-notes.md).

Each row was measured by one command of `benchmarks/`. Both sides took turns in one run, each in a process of its own (for the
share of the peak: in one process). Numbers are medians of 5 rounds; memory is from one round. `ratio` says how many times
better ours is; `target` is the ratio that was aimed at. Speeds on shared cores vary by a factor of two from run to run;
ratios vary less.

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


def number(value: float | None) -> str:
    """Format with four digits; a dash if it was not measured."""
    return "–" if value is None else f"{value:,.4g}" if value < 10_000 else f"{value:,.0f}"


def main() -> None:
    """Write the page: the tables, followed by docs/performance-notes.md."""
    page = HEAD
    for row in json.loads(RESULTS.read_text()):
        wanted = "" if row["at_least"] is None else f"{row['at_least']:g}"
        ratio = "–" if row["ratio"] is None else f"**{row['ratio']:.2f}**"
        cells = row["name"], number(row["ours"]), number(row["theirs"]), row["unit"], ratio, wanted, row["machine"]
        page += f"| {' | '.join(cells)} |\n"
    page += LENGTH
    with (ROOT / "docs" / "results" / "length.csv").open() as file:
        for row in csv.DictReader(file):
            cells = row["model"], f"{int(row['length']):,}", row["train_tokens_per_s"]
            page += f"| {' | '.join((*cells, row['decode_ms_per_token'], row['cache_mib_per_row']))} |\n"
    notes = ROOT / "docs" / "performance-notes.md"
    PAGE.write_text(page + "\n" + notes.read_text() if notes.is_file() else page)


if __name__ == "__main__":
    main()
