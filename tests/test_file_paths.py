"""Paths in sweep files and overrides: what they are relative to, and that identities are of what lies there."""

import pytest

from dmlm.errors import UserError
from dmlm.plan.grid import read_grid_file

BASE = """
base:
  corpus: {recipe: three_equations, preset: smoke}
  tokenizers: {A: audio_mfcc, L: lips_dct}
  backbone: opt-nano
  perceptual: {snr_db: clean}
"""


def lay_out(tmp_path):
    """A grid file with the files that it names beside it, and a folder to run it from."""
    for name in ("grids", "grids/noise/musan", "grids/org/net", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("grids/audio_mine.py", "corpus_mine.py", "elsewhere/audio_mine.py"):
        (tmp_path / name).write_text("")
    text = """
base:
  corpus: {recipe: ../corpus_mine.py, preset: smoke}
  tokenizers:
    L: {recipe: lips_ssl_kmeans, settings: {model: org/net, layers: {first: ./one, second: org/other}}}
  noise.set: noise/musan
  template: A -> T
  backbone: opt-nano
axes: {tokenizers.A: [audio_mfcc, audio_mine.py, {recipe: ./audio_mine.py, settings: {first_pass: ../first}}]}
exclude: [{tokenizers.A: audio_mine.py}]
"""
    (tmp_path / "grids" / "mine.yaml").write_text(text)
    return tmp_path / "grids" / "mine.yaml"


def test_a_path_in_a_grid_file_is_relative_to_that_file(tmp_path, monkeypatch):
    path = lay_out(tmp_path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    grid = read_grid_file(str(path))
    first, second = grid.cells
    beside = path.parent
    assert first.corpus.recipe == str(tmp_path / "corpus_mine.py")
    assert first.noise.set == str(beside / "noise" / "musan")
    assert first.tokenizers["L"].settings["model"] == str(beside / "org" / "net")
    assert first.tokenizers["L"].settings["layers"] == {"first": str(beside / "one"), "second": "org/other"}
    assert (first.tokenizers["A"].recipe, second.tokenizers["A"].recipe) == (
        "audio_mfcc",
        str(beside / "audio_mine.py"),
    )
    assert second.tokenizers["A"].settings["first_pass"] == str(tmp_path / "first")
    assert grid.variants == ("audio_mfcc", "audio_mine.py first_pass=first")


def test_a_path_in_an_override_is_relative_to_the_current_folder(tmp_path, monkeypatch):
    path = lay_out(tmp_path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    changes = ["tokenizers.A=audio_mine.py", "noise.set=musan", "tokenizers.L.settings.model=./net"]
    (cell,) = read_grid_file(str(path), changes).cells
    assert cell.tokenizers["A"].recipe == str(tmp_path / "elsewhere" / "audio_mine.py")
    assert cell.noise.set == str(tmp_path / "elsewhere" / "musan")
    assert cell.tokenizers["L"].settings["model"] == str(tmp_path / "elsewhere" / "net")


RECIPE = """
from pathlib import Path
from dmlm.tokens.encoder import Settings as BaseSettings, Tokenizer

class Settings(BaseSettings):
    table: Path

class Mine(Tokenizer):
    modality, media, rate_hz, vocab_size, Settings = "A", "audio", 25.0, 8, Settings

    def encode(self, batch):
        return batch
"""


def test_a_path_that_lies_in_the_current_folder_alone_is_not_taken_from_there(tmp_path, monkeypatch):
    path = lay_out(tmp_path)
    (tmp_path / "elsewhere" / "org" / "other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="org/other lies in the current folder, but paths in a sweep file are relative"):
        read_grid_file(str(path))


def test_where_a_file_lies_is_no_part_of_an_identity(tmp_path, monkeypatch):
    from dmlm.tokens.encoding import EncoderSpec

    monkeypatch.setenv("DMLM_HOME", str(tmp_path))
    prints = []
    for place, table in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / place / "folder").mkdir(parents=True)
        (tmp_path / place / "audio_mine.py").write_text(RECIPE)
        (tmp_path / place / "folder" / "table").write_text(table)
        for settings in ({"table": f"{tmp_path}/{place}/folder"}, {"table": f"{tmp_path}/{place}/folder/table"}):
            prints.append(EncoderSpec(str(tmp_path / place / "audio_mine.py"), settings).build().fingerprint)
    assert prints[:2] == prints[2:4]
    assert len(set(prints)) == 4


def test_the_list_of_noise_sources_is_relative_to_its_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "grid.yaml"
    path.parent.mkdir()
    path.write_text(BASE + "  noise: {sources: ./sources.txt}\n  template: A -> T\n")
    monkeypatch.chdir(tmp_path)
    (cell,) = read_grid_file(str(path)).cells
    assert cell.noise.sources == str(tmp_path / "deep" / "sources.txt")


def test_where_recordings_lie_is_a_path_also_without_a_slash(tmp_path, monkeypatch):
    """A bare name once gave one corpus to the folders of this name in two places."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "base: {corpus: {recipe: fsdd, preset: seen, settings: {folder: digits}}, tokenizers: {A: audio_mfcc},"
        " template: A -> T, backbone: opt-nano}"
    )
    for changes, folder in (([], "digits"), (["corpus.settings.folder=others"], "others")):
        (cell,) = read_grid_file(str(tmp_path / "mine.yaml"), changes).cells
        assert cell.corpus.settings["folder"] == str(tmp_path / folder)
