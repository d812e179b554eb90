"""Folds that take turns as the test, and utterances that lack a modality: what is trained, what is tested, what is said."""

import json
import shutil
from types import SimpleNamespace

import fake_grid
import numpy as np
import pytest
import soundfile
from small_corpus import in_this_process

from dmlm.corpus.condition import CLEAN
from dmlm.corpus.manifest import Utterance, in_fold, read_corpus, write_corpus
from dmlm.corpus.media import write_video
from dmlm.errors import UserError
from dmlm.plan.dotted import merged
from dmlm.plan.grid import read_grid_file
from dmlm.recognition.recogniser import Recogniser
from dmlm.results.grid import read_grid
from dmlm.results.measures import benefit_point, compared_systems, systems, wer_point
from dmlm.results.tables import terminal_tables
from dmlm.score.normalisers import BASIC
from dmlm.score.wer import Counts, pooled_over_folds
from dmlm.sweep import api, materials, search
from dmlm.sweep.controls import permute
from dmlm.tokens.shards import TokenSource

RATE = 16_000
CARD = {"name": "mine", "version": "1", "licence": "CC0-1.0", "folds": 3}


def corpus(folder, clips: int = 9, with_lips=lambda number: True, silent=()):
    """`clips` tones of half a second in three folds, most of them with lips."""
    for name in ("audio", "lips"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    utterances = []
    for number in range(clips):
        samples = 0.1 * np.sin(np.arange(RATE // 2) * 0.05 * (number + 1)) + 0.01 * random.standard_normal(RATE // 2)
        soundfile.write(folder / f"audio/{number}.flac", samples * (number not in silent), RATE)
        write_video(folder / f"lips/{number}.mp4", random.integers(0, 255, (13, 96, 96)).astype(np.uint8))
        fold = number % 3
        utterances.append(
            Utterance(
                id=f"clip{number}",
                split=("test", "val", "train")[fold],
                text=f"one two {'abcdefghi'[number]}",
                audio=f"audio/{number}.flac",
                lips=f"lips/{number}.mp4" if with_lips(number) else None,
                ocr=f"page {number}",
                fold=fold,
                duration_s=0.5,
                spans=((0.0, 0.5),),
            )
        )
    return write_corpus(folder, utterances, CARD)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def overrides(**more: str) -> list[str]:
    small = {
        "tokenizers": "{A: {recipe: audio_mfcc, settings: {clusters: 8}}, L: {recipe: lips_dct, settings: {clusters: 8}}}"
    }
    small |= {
        "corpus": "mine",
        "backbone": "opt-nano",
        "train.steps": "1",
        "train.batch_size": "2",
        "snr_db.test": "[clean]",
    }
    small |= {
        "snr_db.train": "[clean]",
        "perceptual": "{snr_db: clean, draws: 1}",
        "execution.loggers": "[]",
        "name": "mine",
    }
    return [f"{key}={value}" for key, value in (small | more).items()]


def test_each_utterance_is_tested_once_by_a_model_that_has_not_seen_it(tmp_path):
    made = corpus(tmp_path / "corpus")
    folds = [in_fold(made, fold) for fold in range(3)]
    tested = [utterance.id for fold in folds for utterance in fold.split("test")]
    assert sorted(tested) == sorted(utterance.id for utterance in made.utterances)
    for fold in folds:
        splits = [{utterance.id for utterance in fold.split(name)} for name in ("train", "val", "test")]
        assert all(splits)
        assert sum(map(len, splits)) == len(set.union(*splits)) == 9
    assert read_corpus(tmp_path / "corpus", fold=1).counts == {"train": 3, "val": 3, "test": 3}


def test_a_fold_that_is_not_there_is_one_sentence(tmp_path):
    made = corpus(tmp_path / "corpus")
    with pytest.raises(UserError, match=r"corpus.fold=3: .* has folds 0 to 2"):
        in_fold(made, 3)
    plain = write_corpus(tmp_path / "corpus", [u.model_copy(update={"fold": None}) for u in made.utterances], CARD)
    with pytest.raises(UserError, match="has no folds; import it with --folds"):
        in_fold(plain, 0)


def test_another_corpus_keeps_how_it_is_read():
    """Overriding the corpus of a grid once lost the axis over its folds."""
    grid = read_grid_file(
        "smoke", ["corpus.normaliser=none", "axes.corpus.fold=[0, 1]", "corpus={recipe: three_equations, preset: tiny}"]
    )
    assert {cell.corpus.fold for cell in grid.cells} == {0, 1}
    assert {cell.corpus.preset for cell in grid.cells} == {"tiny"}
    assert set(grid.variants) == {""}  # a fold is a run, as a seed is
    assert {"OPT A fold 0", "OPT A fold 1"} <= {cell.label for cell in grid.cells}


def test_the_folds_of_a_grid_are_pooled(home):
    corpus(home / "corpora" / "mine")
    grid = read_grid_file(
        "smoke", [*overrides(), "axes.template=[A -> T]", "axes.backbone=[opt-nano]", "axes.corpus.fold=[0, 1, 2]"]
    )
    made = materials.prepare(grid.cells, run=in_this_process)
    index = api.index_of(
        grid, made, trials := [api.trial_of(c, m, "A -> T") for c, m in zip(grid.cells, made, strict=True)]
    )
    assert len({trial.folder for trial in trials}) == 3
    (system,) = systems(index)
    for trial in trials[:2]:
        api.train(trial)
        api.evaluate(trial)
    assert wer_point(index, system, float("inf")).status == "missing"  # two folds of three are not the test set
    api.train(trials[2])
    api.evaluate(trials[2])
    again = api.index_of(grid, made, trials)
    point = wer_point(again, system, float("inf"))
    assert (point.status, point.runs_done, point.runs_asked) == ("measured", 1, 1)
    assert sorted(point.counts.ids) == [f"clip{number}" for number in range(9)]
    assert "bootstrap over 9 test utterances" in terminal_tables(again)


def test_an_utterance_in_two_test_sets_counts_once():
    first = Counts(("a", "b"), np.array([1.0, 2.0]), np.array([4.0, 4.0]))
    second = Counts(("b", "c"), np.array([4.0, 1.0]), np.array([4.0, 2.0]))
    pooled = pooled_over_folds([first, second])
    assert pooled.ids == ("a", "b", "c")
    assert pooled.errors.tolist() == [1.0, 3.0, 1.0]
    assert pooled.words.tolist() == [4.0, 4.0, 2.0]


def test_a_clip_without_lips_is_refused_or_has_an_empty_segment(home):
    corpus(home / "corpora" / "mine", with_lips=lambda number: number not in (2, 4, 6))
    settings = [*overrides(), "template=A+L -> T"]
    (cell,) = read_grid_file("smoke", settings).cells
    with pytest.raises(UserError, match=r"lacking 2.*corpus.lacking=empty"):  # of train and test; val is not read
        api.prepare(cell)
    (cell,) = read_grid_file("smoke", [*settings, "corpus.lacking=empty"]).cells
    trial, made = api.prepare(cell)
    lengths = {
        split: [len(item["L"]) for item in made.streams(("A", "L"), split, made.test_conditions[float("inf")])[0]]
        for split in ("train", "test")
    }
    assert [length > 0 for length in lengths["train"]] == [False, True, True]
    assert [length > 0 for length in lengths["test"]] == [True, True, False]
    api.train(trial)
    api.evaluate(trial)
    recogniser = Recogniser.load(trial.folder / "model")
    audio = made.corpus.media(made.corpus.split("test")[-1], "audio")
    (stored,) = trial.folder.glob("evals/clean-*/utterances.jsonl")
    last = json.loads(stored.read_text("utf-8").splitlines()[-1])
    assert recogniser.transcribe(audio=audio) == BASIC(last["hypothesis"])  # it was trained to read without lips too
    (grid,) = [read_grid_file("smoke", [*settings, "corpus.lacking=empty"])]
    tables = terminal_tables(api.index_of(grid, [made], [trial]))
    assert "read with an empty segment, of mine: train 1 (lips 1); val 1 (lips 1); test 1 (lips 1)" in tables


def test_a_permutation_leaves_out_those_that_lack_the_modality():
    items = [{"A": np.arange(5), "L": np.full(length, number)} for number, length in enumerate((3, 0, 4, 3))]
    permuted = permute(items, ["L"], draw=0)
    assert len(permuted[1]["L"]) == 0
    for number in (0, 2, 3):
        assert permuted[number]["L"][0] not in (1, number)


def test_a_corpus_is_named_by_its_name_alone_or_by_its_folder(home, tmp_path):
    corpus(home / "corpora" / "mine")
    corpus(tmp_path / "elsewhere")
    by_name, by_folder = (
        read_grid_file("smoke", [*overrides(corpus=name), "template=A -> T"]).cells[0].corpus
        for name in ("mine", str(tmp_path / "elsewhere"))
    )
    assert (by_name.recipe, by_folder.recipe) == ("mine", str(tmp_path / "elsewhere"))
    assert json.loads((tmp_path / "elsewhere/corpus.json").read_text())["name"] == "mine"
    with pytest.raises(UserError, match=r"known: .*three_equations.*Imported corpora: mine"):
        read_grid_file("smoke", ["corpus=min"])
    with pytest.raises(UserError, match="has no preset and no settings"):
        api.prepare(read_grid_file("smoke", [*overrides(), "corpus.preset=tiny", "template=A -> T"]).cells[0])


def folded(tmp_path, edit):
    """A grid of made-up results with a cell for each seed of each template; `edit` makes folds of the seeds."""
    folder = fake_grid.write_grid(
        tmp_path, seeds=(0, 1, 2), utterances=6, snrs_db=("clean", 0.0), permuted_snrs_db=("clean",), draws=2
    )
    grid = json.loads((folder / "grid.json").read_text("utf-8"))
    for cell in grid["cells"]:
        cell["corpus"], cell["settings"] = {**cell["corpus"], "folds": 3}, {"corpus": {"fold": cell["seed"]}}
        edit(cell)
    (folder / "grid.json").write_text(json.dumps(grid), encoding="utf-8")
    return read_grid(folder)


def test_folds_that_leave_out_different_clips_are_one_system(tmp_path):
    """Once the label of a fold said what it left out, so that each fold stood in the table as a system of its own."""

    def edit(cell):
        fold, cell["seed"] = cell["seed"], 0
        cell["corpus"]["left_out"] = [{"test": {"silent": 1}}, {}, {"train": {"silent": 1}}][
            fold
        ]  # 1: in val, not read

    grid = folded(tmp_path, edit)
    assert len(systems(grid)) == 2
    assert wer_point(grid, systems(grid)[0], 0.0).status == "measured"
    assert "left out of three_equations, fold 2: train 1 (silent 1)." in terminal_tables(grid)


def test_a_benefit_over_folds_with_a_seed_each_is_wholly_measured(tmp_path):
    grid = folded(tmp_path, lambda cell: None)
    (system,) = compared_systems(grid)
    for point in (wer_point(grid, system, 0.0), benefit_point(grid, system, 0.0)):
        assert (point.status, point.runs_done, point.runs_asked) == ("measured", 1, 1)


def test_a_level_that_one_fold_lacks_is_missing(tmp_path):
    """It was a traceback once."""

    def edit(cell):
        fold, cell["seed"] = cell["seed"], 0
        cell["evaluations"] = [e for e in cell["evaluations"] if fold != 2 or e["snr_db"] != 0.0]

    grid = folded(tmp_path, edit)
    assert [wer_point(grid, systems(grid)[0], snr_db).status for snr_db in grid.snrs_db] == ["measured", "missing"]
    assert "folds" not in terminal_tables(grid)


def test_a_grid_of_some_folds_says_so(tmp_path):
    grid = folded(tmp_path, lambda cell: cell["corpus"].update(folds=5))
    assert "of the 5 folds of three_equations-abababab, only 0, 1, 2 are tested." in terminal_tables(grid)


def test_what_one_fold_leaves_out_stops_no_search_in_another(home):
    corpus(home / "corpora" / "mine", silent=[1])  # in fold 1, which is val for fold 0, and the test that nobody reads
    settings = [*overrides(), "axes.template=[A -> T]", "axes.backbone=[opt-nano]", "corpus.leave_out=silent"]
    cells = read_grid_file("smoke", [*settings, "axes.corpus.fold=[0, 1, 2]", "split=val"]).cells
    engine = SimpleNamespace(map=in_this_process)
    points = search._evaluate([(cell, {}) for cell in cells], lambda trials: {}, engine, lambda line: None, {})
    assert len({point.trial for point in points}) == 3
    found = [search.CellSearch(cell, "", None, [point]) for cell, point in zip(cells, points, strict=True)]
    search._report(found, SimpleNamespace(space={}, point_count=lambda cell: 1), home, lambda line: None)
    rows = (home / "search.csv").read_text("utf-8").splitlines()[1:]
    assert [row.split(",")[3] for row in rows] == ["fold 0", "fold 1", "fold 2"]


def test_a_clip_of_several_folds_is_counted_once_as_to_be_encoded(home):
    corpus(home / "corpora" / "mine")
    settings = [*overrides(tokenizers="{O: ocr_oracle}"), "axes.template=[O -> T]", "axes.backbone=[opt-nano]"]
    cells = read_grid_file("smoke", [*settings, "axes.corpus.fold=[0, 1, 2]"]).cells
    made = dict(enumerate(materials.prepare(cells, run=in_this_process)))
    assert materials.clips_to_encode(cells, made) == 0
    shutil.rmtree(home / "tokens")
    assert materials.clips_to_encode(cells, made) == 9


def test_an_empty_section_changes_nothing_and_a_section_goes_on_a_corpus_that_is_a_name():
    """An included `train: {}` once put all settings of training back to their defaults."""
    base = {"train": {"steps": 7, "lambdas": {"A": 1.0}}, "corpus": "mine"}
    assert merged(base, {"train": {}}) == merged(base, {"train": {"lambdas": {}}}) == base
    assert merged(base, {"corpus": {"fold": 1}})["corpus"] == {"recipe": "mine", "fold": 1}


def test_what_is_lacking_is_what_the_encoder_reads(home):
    """A reader of pages once was said to lack the texts of all pages, and the corpus was listed once more for it."""
    made = corpus(home / "corpora" / "mine", with_lips=lambda number: number > 2)
    (cell,) = read_grid_file(
        "smoke", [*overrides(tokenizers="{L: lips_dct, O: ocr_tesseract}"), "template=L+O -> T"]
    ).cells
    sources = {letter: TokenSource(made, cell.tokenizers[letter].recipe, {}, CLEAN) for letter in cell.letters}
    of_cell = materials.Materials(made, sources, None, [], {})
    lacking = {"train": {"lips": 1, "image": 3}, "val": {"lips": 1, "image": 3}, "test": {"lips": 1, "image": 3}}
    assert api._counts(of_cell, cell)["lacking"] == lacking


def test_a_corpus_of_which_cells_lack_different_things_is_listed_once(tmp_path):
    def edit(cell):
        cell["settings"], cell["corpus"]["folds"] = {}, None
        cell["corpus"]["lacking"] = {"test": {"lips": 1}} if "L" in cell["template"] else {}

    assert len(folded(tmp_path, edit).corpora) == 1
