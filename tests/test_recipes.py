"""What a recipe does is its identity: comments, layout, docstrings and descriptions have no part in it."""

import pytest

from dmlm import recipes

SOURCE = '''"""Units."""

from pydantic import Field


class Settings(Base):
    """What changes the units."""

    bands: int = Field(default=32, ge=2, description="bands of equal width")


def units(x, *, width=None, **more):
    """Units of x."""
    name = f"{x!r:>{width}} {width=} {x:}" f"{{}}" "tail é"
    return [*(x / 1e3), {**more, "a": None}, -1, b"a", x[1:, ::2], lambda: ...] if x else name
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Units."""', '"""Audio units."""'),
        ('    """Units of x."""\n', ""),
        ("*, width=None, **more", "\n    *,\n    width=None,  # a comment\n    **more,\n"),
        ("bands of equal width", "number of bands"),
        ("    return", "    # a comment\n\n    return"),
        ('"tail é"', "'tail é'"),
        ("1e3", "1_000.0"),
        ("\n", "\r\n"),
    ],
)
def test_what_does_nothing_changes_no_identity(old, new):
    assert old in SOURCE
    assert recipes.program_digest(SOURCE.replace(old, new).encode()) == recipes.program_digest(SOURCE.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("default=32", "default=33"),
        ("ge=2", "ge=3"),
        ("bands:", "band:"),
        ("description=", "title="),
        ('"a": None', '"a": 0'),
        ("**more,", "'more': more,"),
        ("x!r", "x!s"),
        ("::2", "::3"),
        ("else name", "else None"),
        ("-1", "1"),
    ],
)
def test_what_does_something_changes_the_identity(old, new):
    assert old in SOURCE
    assert recipes.program_digest(SOURCE.replace(old, new).encode()) != recipes.program_digest(SOURCE.encode())


def test_docstrings_that_are_read_count():
    sources = [f'"""{text}"""\nVERSION = __doc__' for text in ("one", "two")]
    assert len({recipes.program_digest(source.encode()) for source in sources}) == 2


def test_the_identity_is_the_same_in_every_version_of_python():
    """A golden value, found with 3.11, 3.12 and 3.13."""
    assert recipes.program_digest(SOURCE.encode())[:16] == "79333ea562e7a2a3"


def test_a_comment_in_a_recipe_keeps_the_fingerprint_of_its_tokenizer(tmp_path):
    from dmlm.tokens.encoding import EncoderSpec

    source = recipes.find("tokenizers", "audio_mfcc").read_text("utf-8")
    prints = []
    for number, text in enumerate((source, f"{source}\n# a comment\n", source.replace('"""', '"""Now: ', 1))):
        path = tmp_path / str(number) / "audio_mine.py"
        path.parent.mkdir()
        path.write_text(text, "utf-8")
        prints.append(EncoderSpec(str(path), {}).build().fingerprint)
    assert len(set(prints)) == 1
