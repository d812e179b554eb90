"""A corpus recipe whose `change` says what is wrong with its ten clips, and cells on it."""

from pathlib import Path

from small_corpus import in_this_process, small_cell, write_tones

from dmlm.plan.cell import Cell
from dmlm.sweep.preparation import prepare_under_lease

RECIPE = """
from pathlib import Path
import soundfile
from pydantic import BaseModel, ConfigDict
from faulty_corpus import RATE_HZ, speech
from grids import run_here
from dmlm.corpus.manifest import Utterance, write_corpus

class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    change: str = ""

PRESETS = {"p": Settings()}

def prepare(settings, folder, workers=None):
    folder.mkdir(parents=True, exist_ok=True)
    utterances = []
    for number in range(10):
        name, split, words = f"clip-{number}", "train" if number < 6 else "test", ["one", "two", "six"][number % 3:]
        samples, fields = speech(number), {}
        if number in (6, 8) and settings.change == "silent":
            samples[16_000:] = 0
        if number == 7 and settings.change == "long":
            samples, fields = speech(number, 12), {"duration_s": 12.0}
        if number == 1 and settings.change == "long training":
            samples, fields = speech(number, 12), {"duration_s": 12.0}
        if number == 9 and settings.change == "wordy":
            words = words * 40
        if number in (6, 8) and settings.change == "spans":
            samples[:2000] = 0
            fields = {"spans": [(1.0, 3.0)] if number == 6 else [(500.0, 1500.0)]}
        if number == 3 and settings.change == "dev":
            split = "dev"
        if number == 3 and settings.change == "no text":
            words = []
        soundfile.write(folder / f"{name}.wav", samples, RATE_HZ)
        fields = {"text": " ".join(words), "audio": f"{name}.wav", "duration_s": 2.0, **fields}
        utterances.append(Utterance(id=name, split=split, **fields))
    return write_corpus(folder, utterances, {"name": "mine", "version": "1", "licence": "CC0-1.0"})
"""


def cells_on(folder: Path):
    """Write the recipe and noise into a folder; return a function that builds a cell on the corpus with a change."""
    recipe = folder / "faulty.py"
    recipe.write_text(RECIPE)
    write_tones(folder / "tones")

    def build(change: str, *leave_out: str, **changes: object) -> Cell:
        corpus = {"recipe": str(recipe), "preset": "p", "settings": {"change": change}, "leave_out": leave_out}
        return small_cell(folder / "tones", corpus=corpus, **{"snr_db": {"train": [0], "test": [0]}, **changes})

    return build


def prepared(*cells: Cell, say=lambda line: None):
    return prepare_under_lease(cells, say, in_this_process)
