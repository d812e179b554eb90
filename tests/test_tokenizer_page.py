"""docs/tokenizers.md: every recipe has its row, and the worked example is a tokenizer."""

import re

import numpy as np
import pytest
from typer.testing import CliRunner

from dmlm import recipes
from dmlm.cli.main import app, names
from dmlm.errors import UserError
from dmlm.paths import PACKAGE
from dmlm.tokens.encoder import Encoder, Tokenizer
from dmlm.tokens.encoding import EncoderSpec
from dmlm.tokens.quantize import learn_codebook

PAGE = (PACKAGE.parent / "docs" / "tokenizers.md").read_text("utf-8")


def test_every_recipe_has_a_row_with_its_rate_and_vocabulary() -> None:
    rows = {}
    for line in PAGE.split("\n## ")[0].splitlines():
        if match := re.match(r"\| `(\w+)` \|", line):
            rows[match[1]] = [cell.strip() for cell in line.split("|")]
    assert sorted(rows) == recipes.names("tokenizers")
    for name, cells in rows.items():
        kind = recipes.load_class("tokenizers", name, Encoder)
        if issubclass(kind, Tokenizer) and kind(kind.Settings()).card is None:
            encoder = kind(kind.Settings())
            assert float(cells[3].replace("–", "0")) == (encoder.rate_hz or 0), name
            assert int(cells[4].replace(",", "")) == encoder.vocab_size, name


def test_the_worked_example_is_a_tokenizer(tmp_path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code.count("\n") <= 42
    (tmp_path / "lips_flow.py").write_text(code)
    encoder = EncoderSpec(str(tmp_path / "lips_flow.py"), {"clusters": 5}).build()
    assert isinstance(encoder, Tokenizer)
    moving = np.random.default_rng(0).integers(0, 255, (12, 96, 96), dtype=np.uint8)
    encoder.codebook = learn_codebook(encoder.features(moving), 5)
    (ids,) = encoder.encode([moving])
    assert len(ids) == 12
    still = np.repeat(moving[:1], 3, axis=0)
    assert np.abs(encoder.features(still)).max() < 0.05


@pytest.mark.parametrize("name", recipes.names("tokenizers"))
def test_the_settings_of_a_recipe_can_be_listed(name) -> None:
    kind = recipes.load_class("tokenizers", name, Encoder)
    lines = CliRunner().invoke(app, ["names", "tokenizers", name]).output.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(kind.Settings.model_fields)


@pytest.mark.parametrize("name", recipes.names("datasets"))
def test_the_settings_of_a_corpus_can_be_listed_and_where_it_comes_from(name) -> None:
    recipe = recipes.load("datasets", name)
    facts, settings = CliRunner().invoke(app, ["names", "datasets", name]).output.split("\n\n")
    assert [line.split()[0] for line in settings.splitlines()] == list(recipe.Settings.model_fields)
    assert f"presets: {', '.join(recipe.PRESETS)}" in facts
    if hasattr(recipe, "ORIGIN"):
        assert {recipe.ORIGIN.title, f"licence: {recipe.ORIGIN.licence}", f"get: {recipe.ORIGIN.get}"} < {
            *facts.splitlines()
        }


def test_settings_are_listed_of_tokenizers_and_corpora_only() -> None:
    for kind, recipe, complaint in (("sweeps", "smoke", "not of sweeps"), ("tokenizers", "audio_mfc", "audio_mfcc")):
        with pytest.raises(UserError, match=complaint):
            names(kind, recipe)
