"""What `environment.yml` asks for is what `pyproject.toml` asks for, and every package of an extra is named there once."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_conda_and_pip_ask_for_the_same():
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    requirements, editable = pip["pip"][:-1], pip["pip"][-1]
    assert set(requirements) <= set(PROJECT["dependencies"])
    extras = re.fullmatch(r"-e \.\[(.*)\]", editable)[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert f">={conda[0].removeprefix('python=')}" == PROJECT["requires-python"]


def test_an_extra_that_a_file_names_exists():
    """In install lines such as `pip install -e ".[ray]"`, wherever they stand."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "environment.yml", ROOT / "Makefile"]
    files += [
        path for folder in ("dmlm", "tokenizers", "datasets", "analysis") for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    named = {
        extra
        for path in files
        for match in re.findall(r'install[^\n]* -e "?\.\[([a-z,]+)\]', path.read_text("utf-8"))
        for extra in match.split(",")
    }
    assert named
    assert named <= set(PROJECT["optional-dependencies"])
