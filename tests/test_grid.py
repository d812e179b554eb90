"""Sweep files, trial identity, and the user's mistakes: each one sentence."""

import math

import pytest
from typer.testing import CliRunner

from dmlm.cli.main import app
from dmlm.errors import UserError
from dmlm.plan.cell import Cell
from dmlm.plan.grid import assign, read_grid_file
from dmlm.sweep.preview import describe

BASE = """
base:
  corpus: {recipe: three_equations, preset: smoke}
  tokenizers: {A: audio_mfcc, L: lips_dct}
  backbone: opt-nano
  perceptual: {snr_db: clean}
"""


def cells(tmp_path, text: str, *changes: str) -> list[tuple]:
    """Backbone, template, seed, steps, noise placement, permuted modality and variant of each cell of a file."""
    path = tmp_path / "mine.yaml"
    path.write_text(BASE + text)
    grid = read_grid_file(str(path), changes)
    return [
        (c.backbone, c.template, c.seed, c.train.steps, c.noise.placement, c.permute, variant)
        for c, variant in zip(grid.cells, grid.variants, strict=True)
    ]


def test_axes_are_combined_in_the_order_of_the_file_and_each_cell_comes_once(tmp_path):
    found = cells(tmp_path, "axes:\n  template: [A -> T, A+L->T, A -> T]\n  seed: [0, 1]")
    assert [(c[1], c[2]) for c in found] == [("A -> T", 0), ("A -> T", 1), ("A+L -> T", 0), ("A+L -> T", 1)]
    grid = read_grid_file(str(tmp_path / "mine.yaml"))
    assert [cell.label for cell in grid.cells] == ["OPT A", "OPT A seed 1", "OPT A+L", "OPT A+L seed 1"]


def test_zipped_keys_advance_together(tmp_path):
    text = "axes: {template: [A -> T]}\nzip: {backbone: [opt-nano, mamba-nano], train.steps: [9, 4]}"
    assert [(c[0], c[3], c[-1]) for c in cells(tmp_path, text)] == [("opt-nano", 9, ""), ("mamba-nano", 4, "")]
    with pytest.raises(UserError, match=r"backbone 2, train\.steps 1"):
        cells(tmp_path, text.replace("[9, 4]", "[9]"))


def test_excluded_cells_are_gone_and_included_blocks_come_on_top_of_the_base(tmp_path):
    text = """
axes: {template: [A -> T, A+L -> T], noise.placement: [whole, second_half]}
exclude: [{template: A+L->T, noise.placement: whole}]
include:
  - {base: {template: A+L -> T, permute: L, train.steps: 7}}
"""
    found = cells(tmp_path, text)
    assert [(c[1], c[3], c[4], c[5]) for c in found] == [
        ("A -> T", 1000, "whole", None),
        ("A -> T", 1000, "second_half", None),
        ("A+L -> T", 1000, "second_half", None),
        ("A+L -> T", 7, "second_half", "L"),
    ]
    assert [c[-1] for c in found] == [
        "noise.placement whole",
        "noise.placement second_half",
        "noise.placement second_half",
        "permuted L, train.steps 7",
    ]


def test_one_of_several_grids_is_chosen_by_name(tmp_path):
    text = """
grids:
  small: {axes: {template: [A -> T]}, base: {train: {steps: 5}}}
  large: {axes: {template: [A -> T, A+L -> T]}}
"""
    with pytest.raises(UserError, match="choose one of mine:small, mine:large"):
        cells(tmp_path, text)
    path = str(tmp_path / "mine.yaml")
    assert [c.train.steps for c in read_grid_file(f"{path}:small").cells] == [5]
    assert read_grid_file(f"{path}:large").name == "mine_large"
    assert len(read_grid_file(f"{path}:large").cells) == 2
    with pytest.raises(UserError, match="did you mean 'small'"):
        read_grid_file(f"{path}:smal")


def test_an_override_replaces_an_axis_or_holds_in_every_cell(tmp_path):
    text = "axes: {template: [A -> T, A+L -> T]}\nzip: {seed: [0, 1], train.steps: [5, 6]}"
    assert {c[3] for c in cells(tmp_path, text, "train.steps=9")} == {9}
    assert {c[1] for c in cells(tmp_path, text, "template=A -> T")} == {"A -> T"}
    assert len(cells(tmp_path, text, "axes.train.lr=[0.1, 0.2]")) == 8
    assert read_grid_file(str(tmp_path / "mine.yaml"), ["name=other", "baseline=A+L->T"]).baseline == "A+L -> T"


def test_an_override_of_an_axis_reaches_included_blocks(tmp_path):
    text = """
axes: {template: [A -> T], seed: [0]}
include:
  - {base: {template: A+L -> T, permute: L}, axes: {seed: [0]}}
"""
    found = cells(tmp_path, text, "seed=[3, 4]", "axes.train.steps=[7]")
    assert [(c[1], c[2], c[3]) for c in found] == [(t, s, 7) for t in ("A -> T", "A+L -> T") for s in (3, 4)]


def test_a_recipe_brings_its_own_settings(tmp_path):
    text = """
grids:
  one:
    base: {tokenizers: {A: {recipe: audio_mfcc, settings: {clusters: 9}}}, template: A -> T}
    axes: {tokenizers.L: [lips_dct, {recipe: lips_dct, settings: {clusters: 8}}], tokenizers.A.settings.clusters: [3]}
"""
    (tmp_path / "mine.yaml").write_text(BASE + text)
    found = read_grid_file(f"{tmp_path / 'mine.yaml'}:one").cells
    assert [cell.tokenizers["A"].settings for cell in found] == [{"clusters": 3}] * 2
    assert [cell.tokenizers["L"].settings for cell in found] == [{}, {"clusters": 8}]
    (bare, *_) = read_grid_file("quickstart", ["tokenizers.A.settings.clusters=200"]).cells
    assert (bare.tokenizers["A"].recipe, bare.tokenizers["A"].settings) == ("audio_mfcc", {"clusters": 200})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("axess: {template: [A -> T]}", "line 7: there is no key 'axess'; did you mean 'axes'"),
        (
            "axes: {template: [A -> T]}\ninclude:\n  - base: {train: {stepz: 5}}",
            "line 9: there is no key 'train.stepz'",
        ),
        ("axes:\n  template: [A -> T]\n  train.lrr: [1]", "line 9: there is no key 'train.lrr'; did you mean 'lr'"),
        ("axes: {template: []}", "axes.template"),
        ("axes: {template: [A -> T]}\nexclude: [{template: A -> T}]", "asks for no cell"),
        (
            "axes: {template: [A -> T, A+L -> T]}\nexclude:\n  - {templat: A -> T}",
            "line 9: no cell has templat: A -> T, so nothing is excluded; did you mean 'template'",
        ),
        ("axes: {template: [A -> T]}\nexclude: [{seed: 7}]", "line 8: no cell has seed: 7, so nothing is excluded"),
        ("axes:\n  snr_db.train: [0]\n  template: [A -> T]\n  train.lamdas.L: [1]", "line 10: there is no key"),
        ("axes:\n  template: [A -> T]\n  backbone: [opt-nanno]", "line 9: There is no backbone 'opt-nanno'"),
        ("axes: {template: [A -> T]}\ngrids: {a: {}}", "belong inside one of mine:a"),
        ("axes: {train.steps: [5]}", "template is missing; give it a value"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path, text, complaint):
    with pytest.raises(UserError) as error:
        cells(tmp_path, text)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("train.stepz=5", "On the command line, train.stepz=5: there is no key 'train.stepz'; did you mean 'steps'"),
        ("tokenizer.A=x", "did you mean 'tokenizers'"),
        ("train.steps=many", "train.steps"),
        ("train.lr=.inf", "train.lr: Input should be a finite number"),
        ("decode.max_repeats=1", "decode.max_repeats: Value error, every phrase occurs once"),
        ("noise.placement=third_half", "noise.placement"),
        (
            "corpus.normaliser=basik",
            "corpus.normaliser: Input should be 'none', 'basic', 'words' or 'english' (got 'basik')",
        ),
        ("backbone=opt-huge", "no backbone 'opt-huge'"),
        ("template=A+X -> T", "'X'"),
        ("template=A+I -> T", "names none for I"),
        ("train.lambdas.Q=1", "known: A, I, L, O, T"),
        ("train.steps.x=1", "no place"),
        ("train.steps=[", "has not a YAML value: while parsing a flow"),
        ("=5", "key=value"),
        ("train.=5", "key=value"),
        ("seed=010", "010 is not the same to all readers of YAML; write 8 or 10 or"),
        ("seed=1:30", "write 90 or"),
        ("train.steps=1_000", "write 1000 or"),
        ("seed=true", "seed=true: seed: Input should be a number (got True)"),
        ("decode.max_new_tokens=true", "decode.max_new_tokens: Input should be a number (got True)"),
        ("train={lr: true}", "train.lr: Input should be a number (got True)"),
        ("execution.recompute=yes", "execution.recompute: Input should be true or false (got 'yes')"),
        ("execution.recompute=1", "execution.recompute: Input should be true or false (got 1)"),
        ("search={space: {train.lr: [1, 2]}, trials: true}", "there is no key 'search'"),
        ("lr=1e-3", "there is no key 'lr'; did you mean 'train.lr'?"),
        ("train={lr: 1, lr: 2}", "the key 'lr' stands in line 1 already"),
        ("train={1: 2}", "a key is a word, and 1 is none"),
        ("train=&a {lr: *a}", "this value contains itself"),
        ("name=", "On the command line, name=: name has no value"),
        ("about=5", "On the command line, about=5: about"),
        ("axes.seed=", "On the command line, axes.seed=: seed: Input should be a valid integer (got None)"),
        ("search.space=5", "On the command line, search.space=5: space"),
        ("tokenizers={}", "On the command line, tokenizers={}: template"),
        ("tokenizers.A=audio_mfc", "On the command line, tokenizers.A=audio_mfc: tokenizers: no recipe is named"),
        ("corpus.recipe=./none.py", "On the command line, corpus.recipe=./none.py: datasets: there is no file"),
        ("seed=0,1,2", "Several values are an axis: axes.seed=[0, 1, 2]"),
        ("snr_db.test=0,10", "A list is written snr_db.test=[0, 10]"),
        ("execution.loggers=wandb", "A list is written execution.loggers=[wandb]"),
        ("snr_db.test=[500]", "On the command line, snr_db.test=[500]: perceptual.snr_db has clean"),
        ("corpus={recipee: x}", "known: fold, lacking, leave_out, normaliser, preset, recipe, settings"),
        (
            "corpus.recipe=./tests",
            "/tests is a folder, and no prepared corpus; run: dmlm corpus import",
        ),
        (
            "corpus.recipe=manifest.jsonl",
            "manifest.jsonl is a manifest; import it once: dmlm corpus import manifest.jsonl --to NAME",
        ),
        ("snr_db.test=[]", "snr_db.test"),
        ("snr_db.test=[clean, 0]", "perceptual.snr_db has -10, which snr_db.test lacks"),
        ("permute=I", "permute: 'I' is no input modality"),
        ("snr_db.test=[.nan, 0]", "snr_db.test.0: Value error, an SNR is a number of dB, or `clean` (got nan)"),
        ("snr_db.train=-.inf", "an SNR is a number of dB, or `clean`"),
        ("seed=-1", "seed=-1: seed: Input should be greater than or equal to 0"),
        ("seed=100000000000000000000", "seed: Input should be less than 9223372036854775808"),
        ("name=..", "a grid called '..' cannot have a folder of its own in runs; give it another `name`"),
        ("name=.", "a grid called '.'"),
        ("name=Trials", "a grid called 'Trials'"),
        (f"name={'x' * 300}", "of at most 200 bytes"),
    ],
)
def test_a_mistake_is_one_sentence(change, complaint):
    with pytest.raises(UserError) as error:
        read_grid_file("quickstart", [change])
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        "tokenizers.A.settings.clusters=true",
        "corpus.settings.train=true",
        "noise.set=/no/such/folder",
        "corpus.preset=tinny",
    ],
)
def test_a_dry_run_finds_the_mistakes_of_a_run(change):
    with pytest.raises(UserError):
        describe(read_grid_file("quickstart", [change]))


def test_an_unknown_grid_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        read_grid_file("quikstart")


def test_a_grid_of_the_current_folder_is_pointed_to_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "lips_help.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no grid is named 'lips_help'; the file in this folder is \./lips_help\.yaml"):
        read_grid_file("lips_help")


def test_whose_level_is_not_tested_and_what_to_write(tmp_path):
    base = (
        "corpus: {recipe: three_equations, preset: smoke}, tokenizers: {A: audio_mfcc, L: lips_dct}, backbone: opt-nano"
    )
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {{{base}, template: A+L -> T, snr_db: {{test: [0, 5, clean]}}}}")
    with pytest.raises(UserError, match=r"\(-10 is the default .*write perceptual\.snr_db=\[clean, 0\]"):
        read_grid_file(str(path))
    assert read_grid_file(str(path), ["perceptual.snr_db=[clean, 0]"]).cells
    with pytest.raises(UserError, match=r"\(-10 is of .*quickstart\.yaml, line \d+\); add it"):
        read_grid_file("quickstart", ["snr_db.test=[clean, 0]"])
    with pytest.raises(UserError, match=r"snr_db\.test lacks; add it"):
        read_grid_file(str(path), ["perceptual.snr_db=-7"])


def test_what_a_run_sets_is_not_among_the_settings_that_are_shown():
    shown = CliRunner().invoke(app, ["grid", "show", "smoke", "--resolved"]).stdout
    assert "leave_out" in shown
    assert "left_out" not in shown


def test_one_cell_is_a_cell():
    shown = CliRunner().invoke(app, ["grid", "show", "smoke", "template=A -> T", "backbone=opt-nano"]).stdout
    assert "1 cell," in shown


def test_a_file_that_is_not_yaml_is_named(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("cells: [")
    with pytest.raises(UserError, match=r"broken\.yaml, line 1 is not YAML"):
        read_grid_file(str(path))


def test_a_value_is_what_it_looks_like(tmp_path):
    text = "about: no\nname: 2024-01-01\naxes: {template: [A -> T], train.lr: [1e-3], seed: [0x1F]}"
    (tmp_path / "mine.yaml").write_text(BASE + text)
    grid = read_grid_file(str(tmp_path / "mine.yaml"))
    assert (grid.about, grid.name, grid.cells[0].train.lr, grid.cells[0].seed) == ("no", "2024-01-01", 0.001, 31)
    (tmp_path / "mine.yaml").write_text(f"{BASE}axes:\n  template: [A -> T]\n  seed: [010]")
    with pytest.raises(UserError, match=r"line 9 is not YAML: 010 is not the same"):
        read_grid_file(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text(f"{BASE}base: {{}}")
    with pytest.raises(UserError, match=r"line 7 is not YAML: the key 'base' stands in line 2 already"):
        read_grid_file(str(tmp_path / "mine.yaml"))


def test_assigned_values_are_copies():
    axis = {"A": 1}
    one, other = {}, {}
    assign(one, "train.lambdas", axis)
    assign(other, "train.lambdas", axis)
    assign(one, "train.lambdas.A", 2)
    assert (one["train"], other["train"]) == ({"lambdas": {"A": 2}}, {"lambdas": {"A": 1}})


def test_a_single_value_needs_no_list():
    (first, *_) = read_grid_file("quickstart", ["noise.kinds=noise", "perceptual.snr_db=0"]).cells
    assert first.noise.kinds == ("noise",)
    assert first.perceptual.snr_db == (0.0,)


def test_clean_is_infinite():
    cell = read_grid_file("quickstart", ["snr_db.test=[clean, -10]"]).cells[0]
    assert cell.snr_db.test == (math.inf, -10.0)
    assert Cell.model_validate_json(cell.model_dump_json()) == cell


def test_equal_levels_are_tested_once_and_repeated_ones_weigh_more_in_training():
    snrs_db = "[clean, clean, 0, 0.0, -0.0]"
    changes = [f"snr_db={{train: {snrs_db}, test: {snrs_db}}}", f"perceptual.snr_db={snrs_db}"]
    for cell in read_grid_file("quickstart", changes).cells:
        assert cell.snr_db.train == (math.inf, math.inf, 0.0, 0.0, 0.0)
        assert cell.snr_db.test == cell.perceptual.snr_db == (math.inf, 0.0)
        assert "-0.0" not in cell.model_dump_json()


@pytest.mark.parametrize(("name", "part"), [("trials.yaml", ""), (".yaml", ""), ("mine.yaml", ":a/../../..")])
def test_a_grid_named_after_its_file_has_a_folder_of_its_own_too(tmp_path, name, part):
    block = "{axes: {template: [A -> T]}}"
    (tmp_path / name).write_text(BASE + (f"grids: {{{part[1:]}: {block}}}" if part else block[1:-1]))
    with pytest.raises(UserError, match="cannot have a folder of its own"):
        read_grid_file(f"{tmp_path / name}{part}")
    assert read_grid_file(f"{tmp_path / name}{part}", ["name=mine"]).name == "mine"


def test_several_values_where_one_belongs_are_pointed_to_axes():
    with pytest.raises(UserError, match=r"On the command line, seed=\[0, 1\]: .* an axis: axes\.seed=\[0, 1\]$"):
        read_grid_file("smoke", ["seed=[0, 1]"])


def test_the_override_is_named_where_it_and_the_file_do_not_fit():
    with pytest.raises(UserError, match=r"On the command line, permute=I: permute: 'I' is no input modality"):
        read_grid_file("smoke", ["permute=I"])


# ---- paths


def test_a_section_as_axis_or_override_is_merged_into_the_base(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        BASE + "axes: {train: [{lr: 0.1}, {lr: 0.2}], train.steps: [3, 4], backbone: [opt-nano], template: [A -> T]}\n"
    )
    cells = read_grid_file(str(path), ["decode={beams: 2}", "train.batch_size=5"]).cells
    assert [(cell.train.lr, cell.train.steps) for cell in cells] == [(0.1, 3), (0.1, 4), (0.2, 3), (0.2, 4)]
    assert {cell.train.batch_size for cell in cells} == {5}
