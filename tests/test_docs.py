"""The documentation: links resolve, commands exist, names import, every file has its line, the examples run."""

import ast
import importlib
import json
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
import typer
from fake_grid import rows, write_grid
from small_corpus import in_this_process, write_tones
from test_layout import ROOMS

from dmlm import recipes
from dmlm.cli import grid as grid_commands
from dmlm.cli.main import app
from dmlm.plan.grid import read_grid_file

ROOT = Path(__file__).resolve().parent.parent
README, USAGE, EXTENDING = ROOT / "README.md", ROOT / "docs" / "usage.md", ROOT / "docs" / "extending.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = sorted([README, ROOT / "sweeps" / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*/*.md")])
NO_NAMES = ("dmlm.json",)  # a file


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language; "" are commands."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


# ---- pages


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_relative_link_resolves(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page_id(page)} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page_id(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_dotted_name_imports(page: Path) -> None:
    for name in set(re.findall(r"\bdmlm(?:\.\w+)+", page.read_text("utf-8"))) - set(NO_NAMES):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            try:
                value = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            break
        for part in parts[length:]:
            assert hasattr(value, part), f"{page_id(page)} names {name}"
            value = getattr(value, part)


def test_the_readme_is_one_page() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 100


# ---- the tree


def described_files() -> dict[str, str]:
    """Path of each file in the tree of docs/architecture.md, with its line."""
    (tree,) = blocks(ARCHITECTURE, "text")
    files, folder = {}, ""
    for line in filter(None, tree.splitlines()):
        name, _, about = line.strip().partition(" ")
        if line.startswith(" "):
            files[folder + name] = about.strip()
        else:
            folder = name
    return files


def listed(path: Path) -> bool:
    """Whether a file must have a line: an `__init__.py` only where it holds more than a docstring."""
    return path.name != "__init__.py" or len(ast.parse(path.read_text("utf-8")).body) > 1


def test_every_file_has_its_line() -> None:
    folders = ("dmlm", "tokenizers", "datasets", "analysis")
    there = {str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).rglob("*.py") if listed(p)}
    described = described_files()
    assert set(described) - {"dmlm/model/scan_native.c"} == there
    assert all(described.values())


def test_the_rooms_stand_in_their_order() -> None:
    rooms = [path.split("/")[1].removesuffix(".py") for path in described_files() if path.startswith("dmlm/")]
    described = [room for room in dict.fromkeys(rooms) if room != "__init__"]
    packages = [room for room in ROOMS if (ROOT / "dmlm" / room).is_dir()]
    assert [room for room in described if room in packages] == packages
    assert set(described) == set(ROOMS)


# ---- commands

FENCED = [
    (page, line)
    for page in (README, USAGE, EXTENDING)
    for block in blocks(page, "")
    for line in block.splitlines()
    if line.startswith(("dmlm ", "python ", "make "))
]
INLINE = [
    (page, command)
    for page in (README, USAGE)
    for command in re.findall(r"`((?:dmlm|python|make) [^`\n]+)`", page.read_text("utf-8"))
]


def program(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that a line runs, and its arguments."""
    if words[0] == "dmlm":
        command, rest = typer.main.get_command(app), words[1:]
    else:
        script = ROOT / words[1]
        assert script.is_file(), words[1]
        run = {"run_grid": lambda: grid_commands.run, "make_figures": lambda: runpy.run_path(str(script))["main"]}
        if script.stem not in run:
            return click.Command("script", params=[click.Argument(["arguments"], nargs=-1)]), words[2:]
        single = typer.Typer()
        single.command()(run[script.stem]())
        command, rest = typer.main.get_command(single), words[2:]
    while hasattr(command, "commands"):
        assert rest, words
        assert rest[0] in command.commands, words
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def is_make(words: list[str]) -> bool:
    """Whether it is a target of the Makefile, which must then exist."""
    if words[0] != "make":
        return False
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), words
    return True


@pytest.mark.parametrize(("page", "line"), FENCED, ids=lambda value: value if isinstance(value, str) else value.name)
def test_every_command_is_understood(page: Path, line: str) -> None:
    words = shlex.split(line, comments=True)
    if is_make(words):
        return
    command, arguments = program(words)
    with command.make_context(command.name, list(arguments)) as context:
        overrides = list(context.params.get("overrides") or [])
    imported = any(word.startswith("corpus=mine") for word in words)  # tests/test_own_data.py runs these
    if command.name in ("run", "show", "transcribe") and page != EXTENDING and not imported:
        name = overrides.pop(0) if overrides and "=" not in overrides[0] else context.params.get("grid", "quickstart")
        assert read_grid_file(name, overrides).cells


@pytest.mark.parametrize(("page", "line"), INLINE, ids=lambda value: value if isinstance(value, str) else value.name)
def test_every_command_in_the_text_exists(page: Path, line: str) -> None:
    words = shlex.split(line)
    if is_make(words) or words[-1] == "...":
        return
    command, arguments = program(words)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in arguments if word.startswith("-")} <= known, line


@pytest.mark.parametrize("code", blocks(USAGE, "python"))
def test_the_python_of_the_usage_page_imports(code: str) -> None:
    imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), str(USAGE), "exec"), {})


# ---- the examples of docs/extending.md

CODE = blocks(EXTENDING, "python")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function: the file that the page shows under this name."""
    folder = tmp_path_factory.mktemp("extending")
    text = EXTENDING.read_text("utf-8")

    def write(name: str) -> Path:
        (code,) = re.findall(rf"`{re.escape(name)}`:\n\n```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        (folder / name).write_text(code, encoding="utf-8")
        return folder / name

    return write


def module(path: Path) -> ModuleType:
    return recipes.load("analysis", str(path))  # any file by its path


def test_the_tokenizer_encodes(example) -> None:
    from dmlm.tokens.encoding import EncoderSpec

    encoder = EncoderSpec(str(example("audio_peaks.py")), {"bands": 8}).build()
    time_s = np.arange(16_000) / 16_000
    tones = [np.sin(2 * np.pi * (1000 * band + 500) * time_s).astype(np.float32) for band in (0, 5)]
    low, high = encoder.encode(tones)
    assert low.tolist() == [0] * 25
    assert high.tolist() == [5] * 25
    assert encoder.fingerprint != EncoderSpec(str(example("audio_peaks.py")), {"bands": 9}).build().fingerprint


def test_the_corpus_runs_in_a_grid_with_the_tokenizer(example, tmp_path, monkeypatch) -> None:
    from dmlm.recognition.recogniser import Recogniser
    from dmlm.score.normalisers import BASIC
    from dmlm.sweep import api, materials
    from dmlm.sweep.trial import trial_of

    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    write_tones(tmp_path / "noise", each=5)
    overrides = [f"corpus.recipe={example('tones.py')}", "corpus.preset=small", "template=A -> T", "backbone=opt-nano"]
    overrides += [f"tokenizers.A={example('audio_peaks.py')}", "train.steps=2", "name=tones"]
    overrides += [f"noise.set={tmp_path / 'noise'}", "noise.kinds=[noise, music]", "execution.loggers=[]"]
    (cell,) = read_grid_file("smoke", overrides).cells
    (made,) = materials.prepare([cell], run=in_this_process)
    assert made.corpus.card["utterances"] == {"train": 4, "val": 0, "test": 2}
    trial = trial_of(cell, made, "A -> T")
    api.train(trial)
    api.evaluate(trial)
    assert not trial.pending
    (clean,) = trial.folder.glob("evals/clean-*/utterances.jsonl")
    stored = [json.loads(line) for line in clean.read_text("utf-8").splitlines()]
    recogniser = Recogniser.load(trial.folder / "model")
    (utterance,) = (u for u in made.corpus.utterances if u.id == stored[0]["id"])
    audio = made.corpus.media(utterance, "audio")
    assert recogniser.transcribe(audio=audio) == BASIC(stored[0]["hypothesis"])


@pytest.mark.parametrize("preset", ["small", "large"])
def test_every_preset_of_the_corpus_is_without_errors(example, tmp_path, monkeypatch, preset) -> None:
    from dmlm.corpus.check import check_folder

    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    recipe = module(example("tones.py"))
    recipe.prepare(recipe.PRESETS[preset], tmp_path / "corpus")
    assert [fault for fault in check_folder(tmp_path / "corpus", in_this_process) if fault.is_error] == []


def test_the_grid_is_resolved(example) -> None:
    grid = read_grid_file(str(example("bands.yaml")))
    assert len(grid.cells) == 6
    seeds = {
        template: {cell.seed for cell in grid.cells if cell.template == template} for template in ("A -> T", "A+L -> T")
    }
    assert seeds["A -> T"] == seeds["A+L -> T"] == {0, 1}  # so that benefits are over the seeds of WER
    assert {c.tokenizers["A"].settings["mels"] for c in grid.cells if c.template == "A+L -> T"} == {20}


def test_the_figure_is_drawn(example, tmp_path) -> None:
    from dmlm.results.figures import make_figures
    from dmlm.results.grid import read_grid

    folder = write_grid(tmp_path, snrs_db=("clean", -10.0), utterances=8)
    figures = make_figures(read_grid(folder), [str(example("error_kinds.py"))])
    assert not figures.failures
    table = folder / "figures" / "error_kinds.csv"
    assert {table, table.with_suffix(".png"), table.with_suffix(".pdf")} <= set(figures.files)
    assert {row["system"] for row in rows(table)} == {"A", "A+L"}


def test_the_objective_trains(example, tmp_path) -> None:
    from small_models import VOCABULARY, tiny

    from dmlm.model.layout import Layout
    from dmlm.sequence.template import Template, pack

    objective = module(example("smooth_transcript.py")).SmoothTranscript()
    namespace: dict = {}
    exec(next(code for code in CODE if "def train_with" in code), namespace)
    random = np.random.default_rng(0)
    streams = [{"A": random.integers(0, 40, n), "T": random.integers(0, 300, 3)} for n in (4, 5, 6, 7)]
    sequences = [pack(Template.parse("A -> T"), item, VOCABULARY, {}) for item in streams]
    model = tiny("opt-nano")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = namespace["train_with"](objective, model, sequences, tmp_path, steps=2)
    assert report.steps == 2
    assert any((value != before[name]).any() for name, value in model.state_dict().items())
    log = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert list(log[-1]["loss_by_modality"]) == ["T"]

    # its parts add up: the loss of a batch is the sum of the losses of its micro-batches
    def loss(items: list) -> float:
        import torch

        ids, roles = (torch.from_numpy(np.concatenate([getattr(i, k) for i in items])) for k in ("ids", "roles"))
        share, _ = objective.loss(model.eval(), (ids, roles, ids), Layout([len(i) for i in items]), 4, False)
        return share.item()

    assert loss(sequences) == pytest.approx(loss(sequences[:1]) + loss(sequences[1:]), rel=1e-5)
