"""Render SVG pictures, by resvg (package resvg-py, MPL-2.0), which needs no system library."""

import importlib.util
from pathlib import Path

from dmlm.errors import UserError

DPI = 96  # of CSS; without it resvg takes lengths in pt, mm or cm for nothing


def render(path: Path, side: int) -> bytes:
    """Return a picture as PNG on white whose longer side is this long, in pixels; its aspect is kept.

    Raises:
        UserError: the package is missing, or the file is no SVG.
    """
    require()
    import resvg_py

    try:
        return bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=side, height=side, dpi=DPI, background="white"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be rendered ({error}); replace the file.") from None


def require() -> None:
    """Check that the package is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("resvg_py") is None:
        raise UserError('SVG pictures need a package; run: pip install -e ".[svg]"')
