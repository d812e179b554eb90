"""Imports point one way, the recipe folders shadow no installed package, and every recipe loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from dmlm import paths, recipes
from dmlm.cli import doctor
from dmlm.errors import UserError
from dmlm.tokens.encoder import Encoder, Reader, Tokenizer

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (  # in the order of the data flow
    *(
        "errors",
        "paths",
        "files",
        "progress",
        "recipes",
        "seeding",
        "limits",
        "snr",
        "modalities",
        "plurals",
        "processes",
        "known_files",
    ),
    *(
        "weights",
        "corpus",
        "importing",
        "synthesis",
        "tokens",
        "ocr",
        "sequence",
        "model",
        "score",
        "training",
        "recognition",
    ),
    *("plan", "engines", "results", "sweep", "cli"),
)
FOLDERS = ("tokenizers", "datasets", "sweeps", "analysis")


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "dmlm")


def test_every_room_is_listed():
    modules = {path.stem if path.suffix else path.name for path in (ROOT / "dmlm").iterdir()}
    assert modules - {"__init__", "__pycache__"} == set(ROOMS)


def test_a_room_imports_only_rooms_above_it():
    for path in (ROOT / "dmlm").rglob("*.py"):
        room = path.relative_to(ROOT / "dmlm").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for name in imports(path):
            if name.startswith("dmlm."):
                other = name.split(".")[1]
                if other in ROOMS:
                    assert ROOMS.index(other) <= ROOMS.index(room), f"{path} imports {name}"


def test_dmlm_imports_no_recipe_and_no_recipe_another():
    names = {name for folder in ("datasets", "analysis") for name in recipes.names(folder)} | {"run_grid"}
    names |= set(recipes.names("tokenizers"))
    for path in [*(ROOT / "dmlm").rglob("*.py"), *(p for folder in FOLDERS for p in (ROOT / folder).glob("*.py"))]:
        for name in imports(path):
            assert name.split(".")[0] not in names | {"datasets", "sweeps", "analysis"}, f"{path} imports {name}"


def test_the_recipe_folders_shadow_nothing():
    assert not [path for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")]
    for folder in FOLDERS:
        for path in (ROOT / folder).glob("*.py"):
            assert path.stem not in sys.stdlib_module_names, path
    program = "import tokenizers, transformers, sys; print(tokenizers.__file__, transformers.__file__)"
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert str(ROOT / "tokenizers") not in printed
    assert printed.count("site-packages") == 2


@pytest.mark.parametrize("name", recipes.names("tokenizers"))
def test_every_tokenizer_recipe_has_the_one_shape(name):
    kind = recipes.load_class("tokenizers", name, Encoder)
    assert issubclass(kind, Tokenizer) != issubclass(kind, Reader)
    assert kind.__doc__
    assert kind.modality in "ALIO"
    assert kind.media in {"audio", "lips", "image", "ocr"}
    with pytest.raises(Exception, match="no_such_setting"):
        kind.Settings(no_such_setting=1)


@pytest.mark.parametrize("name", recipes.names("datasets"))
def test_every_recipe_of_a_corpus_or_of_noise_has_the_one_shape(name):
    module = recipes.load("datasets", name)
    assert hasattr(module, "prepare") != hasattr(module, "prepare_noise")
    assert module.PRESETS
    assert all(isinstance(preset, module.Settings) for preset in module.PRESETS.values())


def test_an_unknown_recipe_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean 'audio_mfcc'"):
        recipes.find("tokenizers", "audio_mfc")
    with pytest.raises(UserError, match="there is no file"):
        recipes.find("tokenizers", str(tmp_path / "mine.py"))


def test_a_recipe_of_the_users_own_is_found_by_path(tmp_path):
    path = tmp_path / "audio_mine.py"
    path.write_text((paths.recipe_folder("tokenizers") / "audio_mfcc.py").read_text())
    assert recipes.load_class("tokenizers", str(path), Encoder).modality == "A"


def test_training_and_evaluation_need_no_synthesiser_ocr_or_video():
    """A bare GPU machine with prepared shards needs torch and transformers only."""
    blocked = [
        "espeakng_loader",
        "rapidocr",
        "onnxruntime",
        "av",
        "cv2",
        "matplotlib",
        "kaldi_native_fbank",
        "soundfile",
    ]
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import dmlm.sweep.train_trial, dmlm.sweep.evaluate_trial, dmlm.sweep.schedule"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_command_line_starts_without_torch():
    program = "import sys, dmlm.cli.main, dmlm.plan.grid, dmlm.sweep.schedule, dmlm.sweep.materials; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_recipe_that_does_not_load_is_named_with_its_line(tmp_path):
    for name, code, complaint in (
        ("typo", "x = 1\ndef", r"audio_typo\.py, line 2: SyntaxError"),
        ("wish", "\n\nimport nowhere", r"audio_wish\.py, line 3: ModuleNotFoundError: No module named 'nowhere'"),
    ):
        path = tmp_path / f"audio_{name}.py"
        path.write_text(code)
        with pytest.raises(UserError, match=complaint):
            recipes.load("tokenizers", str(path))


def test_recipes_of_one_name_in_folders_of_one_name_are_kept_apart(tmp_path):
    modules = []
    for number in (1, 2):
        path = tmp_path / str(number) / "mine" / "audio_mine.py"
        path.parent.mkdir(parents=True)
        path.write_text(f"NUMBER = {number}")
        modules.append(recipes.load("tokenizers", str(path)))
    assert [module.NUMBER for module in modules] == [1, 2]
    assert len({recipes.digest(module.__name__) for module in modules}) == 2


def test_doctor_goes_on_after_a_recipe_that_does_not_load(tmp_path) -> None:
    for name, code in (("audio_typo", "def"), ("audio_wish", "import nowhere")):
        (tmp_path / f"{name}.py").write_text(code)
        assert doctor.state(str(tmp_path / f"{name}.py")).startswith("does not load: ")
