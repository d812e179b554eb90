"""The shipped sweep files: every grid resolves, fits its models, and contains the cells that its question needs."""

import re
import shlex
from dataclasses import asdict
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from grids import run_grid

from dmlm import paths, recipes
from dmlm.corpus.noise import Placement
from dmlm.errors import UserError
from dmlm.plan.cell import Cell
from dmlm.plan.grid import Grid, read_grid_file
from dmlm.plurals import counted
from dmlm.sequence.template import Template
from dmlm.sweep.preview import describe
from dmlm.tokens.encoder import Tokenizer
from dmlm.tokens.encoding import EncoderSpec
from dmlm.tokens.shards import TokenSource

# longest clip of each preset of three_equations, grid_corpus and fsdd
LONGEST_S = {"smoke": 5.16, "tiny": 7.84, "paper": 16.84, "s1": 3.0, "unseen": 5.46}
TEXT_TOKENS = {"T": 50 + 1, "O": 71}  # at most, in transcripts (with <eos>) and pages
PAGE = np.full((200, 450, 3), 255, np.uint8)
README = paths.recipe_folder("sweeps") / "README.md"


def shipped() -> list[str]:
    """`quickstart`, `order:small`, ...: every grid of every file."""
    grids = []
    for name in recipes.names("sweeps"):
        parts = yaml.safe_load(recipes.find("sweeps", name).read_text("utf-8")).get("grids")
        grids += [f"{name}:{part}" for part in parts] if parts else [name]
    return grids


ALL = shipped()
SMALL, PAPER = ([name for name in ALL if name.endswith(part)] for part in (":small", ":paper"))
OF_ONE_TEMPLATE = ("loss_weights:small", "loss_weights:small_axes")  # these compare weights, not inputs
COMPARING = [name for name in ALL if name not in OF_ONE_TEMPLATE]
grid = cache(read_grid_file)


def circumstances(cell: Cell, letters: str) -> dict[str, Any]:
    """Return the settings that two models must share if they are to differ only in inputs other than `letters`."""
    values = cell.model_dump(exclude={"template", "permute", "perceptual", "execution"})
    values["tokenizers"] = {letter: values["tokenizers"].get(letter) for letter in letters}
    lambdas = values["train"]["lambdas"]
    values["train"]["lambdas"] = {letter: lambdas[letter] for letter in (*letters, "T")}
    return values


def baselines(resolved: Grid) -> list[Cell]:
    return [cell for cell in resolved.cells if cell.template == resolved.baseline and not cell.permute]


def templates(resolved: Grid) -> set[str]:
    return {cell.template for cell in resolved.cells}


@pytest.mark.parametrize("name", COMPARING)
def test_every_cell_has_its_baseline(name):
    resolved = grid(name)
    letters = "".join(Template.parse(resolved.baseline).letters)
    available = [circumstances(cell, letters) for cell in baselines(resolved)]
    for cell in resolved.cells:
        assert circumstances(cell, letters) in available, f"{cell.label} has no {resolved.baseline} of its settings"


@pytest.mark.parametrize("name", OF_ONE_TEMPLATE)
def test_a_grid_without_baseline_compares_no_inputs(name):
    assert len(templates(grid(name))) == 1


@pytest.mark.parametrize("name", ALL)
def test_every_control_has_its_twin_without_control(name):
    cells = grid(name).cells
    for cell in cells:
        assert not cell.permute or cell.model_copy(update={"permute": None}) in cells, cell.label


@pytest.mark.parametrize("name", [name for name in [*SMALL, *PAPER] if name in COMPARING])
def test_grids_of_a_size_share_their_baseline(name):
    """A model trained for one question is then reused by the next."""
    file, _, part = name.partition(":")
    others = [circumstances(cell, "A") for cell in baselines(grid(f"modalities:{part}"))]
    assert any(circumstances(cell, "A") in others for cell in baselines(grid(name))), file


@pytest.mark.parametrize("name", ALL)
def test_the_longest_sequence_fits_the_context(name):
    for cell in grid(name).cells:
        try:
            for letter in cell.letters:
                TokenSource.check(letter, cell.tokenizers[letter].recipe, cell.tokenizers[letter].settings).require()
        except UserError as error:
            pytest.skip(str(error))
        length = (
            1 + len(cell.letters) + 1 + max(TEXT_TOKENS["T"], cell.decode.max_new_tokens)
        )  # <bos>, tags, transcript
        for letter in cell.letters:
            choice = cell.tokenizers[letter]
            length += TEXT_TOKENS.get(letter) or units(choice.recipe, str(choice.settings), cell.corpus.preset)
        assert length <= cell.model.context, f"{cell.label} {cell.tokenizers}: {length} tokens"


@cache
def units(recipe: str, settings: str, preset: str) -> int:
    """Tokens of the longest clip, or of a page."""
    values = yaml.safe_load(settings)
    encoder = EncoderSpec(recipe, values).build()
    assert isinstance(encoder, Tokenizer)
    if encoder.rate_hz:
        return round(LONGEST_S[preset] * encoder.rate_hz)
    if encoder.learns:
        encoder = EncoderSpec(recipe, {**values, "steps": 10}).build()
        encoder.learned = encoder.fit([PAGE, PAGE])
        return len(encoder.encode([PAGE])[0])
    return len(encoder.features_of([PAGE])[0])


def test_every_tokenizer_exists_and_fits_its_modality():
    choices = {
        (letter, choice.recipe, str(choice.settings))
        for name in ALL
        for cell in grid(name).cells
        for letter, choice in cell.tokenizers.items()
    }
    for letter, recipe, settings in choices:
        TokenSource.check(letter, recipe, yaml.safe_load(settings))


@pytest.mark.parametrize("name", SMALL)
def test_a_dry_run_needs_no_corpus(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path))
    resolved = grid(name)
    assert counted(len(resolved.cells), "cell") in describe(resolved)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", PAPER)
def test_paper_grids_have_the_sizes_of_the_paper(name):
    """arXiv 2507.19037: 8K, 1K and 1K clips, OPT-125M and Mamba-130M, lambda 0.3 for speech and 0.5 for the others."""
    for cell in grid(name).cells:
        assert cell.corpus.preset == "paper"
        assert cell.backbone in ("opt-125m", "mamba-130m")
        assert cell.snr_db.train == (20, 10, 5, 0, -5, -10, -20)
        for letter, rate_hz in (("A", 50), ("L", 25)):
            choice = cell.tokenizers[letter]
            assert EncoderSpec(choice.recipe, choice.settings).build().rate_hz == rate_hz
    lambdas = [asdict(cell.train.lambdas) for cell in grid(name).cells]
    assert {"A": 0.3, "L": 0.5, "I": 0.5, "O": 0.5, "T": 0.5} in lambdas
    assert grid(name).search or {cell.seed for cell in baselines(grid(name))} == {0, 1, 2}


def test_the_corpus_of_the_paper_grids_has_the_sizes_of_the_paper():
    preset = recipes.load("datasets", "three_equations").PRESETS["paper"]
    assert (preset.train, preset.val, preset.test) == (8000, 1000, 1000)


@pytest.mark.parametrize("part", ["small", "paper"])
def test_order_has_each_combination_in_both_orders(part):
    notations = templates(grid(f"order:{part}"))
    for notation in notations:
        assert Template(Template.parse(notation).segments[::-1]).notation in notations
    assert len(notations) >= 5


@pytest.mark.parametrize("part", ["small", "paper"])
def test_layout_has_both_blocks_and_the_interleaved_stream(part):
    assert templates(grid(f"layout:{part}")) == {"A -> T", "A+L -> T", "L+A -> T", "interleave(A,L) -> T"}


@pytest.mark.parametrize("part", ["small", "paper"])
def test_noise_placement_has_every_placement_with_every_combination(part):
    cells = grid(f"noise_placement:{part}").cells
    combined = {(cell.noise.placement, cell.template, cell.seed) for cell in cells}
    placements, combinations, seeds = (set(values) for values in zip(*combined, strict=True))
    assert placements == set(get_args(Placement))
    assert len(combined) == len(cells) == len(placements) * len(combinations) * len(seeds)


@pytest.mark.parametrize("part", ["small", "paper"])
def test_visual_tokenizers_differ_in_their_tokens_only(part):
    cells = grid(f"visual_tokenizers:{part}").cells
    for letter in "LI":
        with_letter = [cell for cell in cells if letter in cell.letters]
        assert len({str(cell.tokenizers[letter].settings) for cell in with_letter}) >= 3
        assert len({str(circumstances(cell, "A")) for cell in with_letter}) == len({cell.seed for cell in with_letter})


@pytest.mark.parametrize("part", ["small", "paper"])
def test_backbones_has_the_same_cells_for_each(part):
    cells = grid(f"backbones:{part}").cells
    opt, mamba = ({(c.template, c.seed) for c in cells if c.backbone.startswith(family)} for family in ("opt", "mamba"))
    assert opt == mamba
    assert len(opt) * 2 == len(cells)


def test_the_readme_counts_the_cells():
    rows = re.findall(
        r"^\| `(\w+)` \|[^|]*\| (\d+) \| (\d+|–)( \(`published`\))? \|", README.read_text("utf-8"), re.MULTILINE
    )
    counts = {f"{file}:small": int(n) for file, n, *_ in rows}
    counts |= {f"{file}:{'published' if other else 'paper'}": int(n) for file, _, n, other in rows if n != "–"}
    assert counts == {name: len(grid(name).cells) for name in [*SMALL, *PAPER, "tokenizers:published"]}


def commands() -> list[str]:
    """Every `dmlm grid` command of the folder's README and of the comments in its files."""
    files = [README, *(recipes.find("sweeps", name) for name in recipes.names("sweeps"))]
    return [
        command
        for path in files
        for command in re.findall(r"^(?:#? *)(dmlm grid .*)$", path.read_text("utf-8"), re.MULTILINE)
    ]


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_documentation_resolves(command, monkeypatch):
    monkeypatch.setattr("dmlm.model.pretrained.family_of", lambda name: "opt")  # its weights are not on every machine
    _, _, verb, *rest = shlex.split(command, comments=True)
    assert verb in ("run", "show", "transcribe")
    name, *changes = [word for word in rest if word not in ("-g", "--dry-run", "--to", "var/first_pass/tiny")]
    assert read_grid_file(name, changes).cells


def test_the_example_of_the_format_is_right(tmp_path):
    example = re.search(r"```yaml\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert example
    (tmp_path / "example.yaml").write_text(example[1])
    cells = read_grid_file(f"{tmp_path / 'example.yaml'}:small").cells
    assert len(cells) == 8
    assert {(c.backbone, c.train.steps, c.train.lr, c.train.batch_size) for c in cells} == {
        ("opt-tiny", 5000, 1e-3, 4),
        ("mamba-tiny", 800, 1e-3, 4),
    }


@pytest.mark.slow
def test_a_grid_crosses_every_tokenizer_that_needs_no_download(home, finished):
    result = run_grid(home, "--grid", "tokenizers:smoke")
    assert result.returncode == 0, result.stderr[-2000:]
    table = result.stdout.partition("Relative benefit")[0]
    for name in (
        "audio_encoder_kmeans",
        "audio_ssl_kmeans",
        "audio_codec",
        "lips_ssl_kmeans",
        "image_vqvae",
        "image_vit_kmeans",
    ):
        assert name in table
    assert "—" not in table
