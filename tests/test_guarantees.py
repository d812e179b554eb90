"""docs/guarantees.md: every test that it names is there, and every number that a test is named for has its row."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "guarantees.md").read_text("utf-8")
KNOWN = {
    path.name: re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE) for path in TESTS.glob("test_*.py")
}
EVERY = [name for names in KNOWN.values() for name in names]


def test_every_number_in_the_name_of_a_test_has_a_row() -> None:
    cited = {number for name in EVERY for number in re.findall(r"(?<=_r)\d+(?=_)", name)}
    assert {"1", "9", "34"} <= cited
    assert cited <= set(re.findall(r"^\| R(\d+) \|", PAGE, re.MULTILINE))


def test_every_test_that_is_named_exists() -> None:
    for file, name in re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?", PAGE):
        assert file in KNOWN, file
        assert any(each.startswith(name) for each in KNOWN[file]), name
    for name in re.findall(r"`(test_\w+)…?`", PAGE):
        assert any(each.startswith(name) for each in EVERY), name
