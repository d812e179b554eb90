"""The command `noise make`: a noise set of recordings that others publish, by a recipe."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dmlm.errors import UserError


def make(
    recipe: Annotated[str, typer.Argument(help="A recipe of noise, such as musan.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Its settings, such as folder=/data/musan voices=4.")
    ] = None,
    to: Annotated[str | None, typer.Option(help="Name of the noise; a grid hears it by noise.set=NAME.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")] = None,
) -> None:
    """Make a noise set: sources dealt to training, validation and test, and babble. Interrupted, the same command goes on."""
    from dmlm import recipes
    from dmlm.corpus.imported import NAME, noise_named
    from dmlm.plan.cell import validated
    from dmlm.plan.dotted import parse_override

    module = recipes.load("datasets", recipe)
    if not hasattr(module, "prepare_noise"):
        raise UserError(f"{recipe} is a recipe of a corpus, not of noise; a grid reads it by `corpus`.")
    name = to or Path(recipe).stem
    if not NAME.fullmatch(name) or name in ("builtin", "known"):
        raise UserError(f"--to {name}: noise cannot be called so; use letters, digits, `_`, `-` and `.`, such as mine.")
    chosen = validated(
        module.Settings, dict(parse_override(text) for text in settings or ()), f"dmlm noise make {recipe}"
    )
    module.require(chosen)
    print(module.ORIGIN.sentence)
    folder = module.prepare_noise(chosen, noise_named(name), workers)
    parts = json.loads((folder / "noise.json").read_text("utf-8"))["parts"]
    for part, counts in parts.items():
        print(f"{part:<5}  " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items())))
    kinds = ",".join(sorted(parts["test"]))
    print(
        f"\nA grid hears it by: dmlm grid run quickstart noise.set={name} noise.sources=folder 'noise.kinds=[{kinds}]'"
    )
