"""What a corpus recipe requires is asked before any work: by a dry run, by a run, and not of a corpus that is made."""

import pytest
from small_corpus import small_cell

from dmlm.errors import BrokenRecipe, UserError
from dmlm.plan.cell import CorpusChoice
from dmlm.plan.grid import read_grid_file
from dmlm.sweep.parts import corpus_folder, open_corpus
from dmlm.sweep.preview import describe
from dmlm.sweep.requirements import check, missing_requirements

RECIPE = """
from pathlib import Path
from pydantic import BaseModel
from dmlm.corpus.manifest import write_corpus
from dmlm.corpus.origin import Origin

ORIGIN = Origin(name="mine", title="Mine", licence="CC0", cost="5 MB", get="ask me", citation="me")

class Settings(BaseModel):
    folder: Path | None = None

PRESETS = {"all": Settings()}

def require(settings):
    REQUIRE

def prepare(settings, folder):
    raise RuntimeError("it was prepared")
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DMLM_RECORDINGS", raising=False)

    def write(body):
        (tmp_path / "mine.py").write_text(RECIPE.replace("REQUIRE", body))
        return CorpusChoice(recipe=str(tmp_path / "mine.py"))

    return write


def test_a_dry_run_and_a_run_say_what_is_missing(recipe, tmp_path):
    grid = read_grid_file("smoke", [f"corpus={recipe('ORIGIN.folder(settings.folder)').recipe}", "corpus.preset=all"])
    sentence = (
        f"There is no folder {tmp_path}/home/recordings/mine with the recordings. Mine; licence: CC0; 5 MB; ask me."
    )
    assert missing_requirements(grid.cells) == [sentence]
    assert f"needed first: {sentence}" in describe(grid)
    with pytest.raises(UserError, match="licence: CC0"):
        check(grid.cells)


def test_nothing_is_prepared_before_all_is_there_and_what_is_made_is_not_asked(recipe, tmp_path):
    choice = recipe("ORIGIN.folder(settings.folder)")
    with pytest.raises(UserError, match="licence: CC0"):
        open_corpus(choice)
    (tmp_path / "home" / "recordings" / "mine").mkdir(parents=True)
    with pytest.raises(BrokenRecipe, match="it was prepared"):
        open_corpus(choice)
    (tmp_path / "home" / "recordings" / "mine").rmdir()
    folder = corpus_folder(choice)[0]
    folder.mkdir(parents=True)
    (folder / "corpus.json").touch()
    assert missing_requirements([small_cell(tmp_path).model_copy(update={"corpus": choice})]) == []


def test_a_mistake_in_what_it_asks_is_named_with_its_line(recipe):
    with pytest.raises(BrokenRecipe, match=r"mine\.py, line 15: ZeroDivisionError"):
        open_corpus(recipe("1 / 0"))
