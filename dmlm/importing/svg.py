"""Render SVG pictures, by resvg (package resvg-py, MPL-2.0), which needs no system library."""

from pathlib import Path

from dmlm.errors import UserError


def render(path: Path, width: int) -> bytes:
    """Return a picture as PNG of this width in pixels, on white.

    Raises:
        UserError: the package is missing, or the file is no SVG.
    """
    try:
        import resvg_py
    except ImportError:
        raise UserError('SVG pictures need a package; run: pip install -e ".[svg]"') from None
    try:
        return bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=width, background="white"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be rendered ({error}); replace the file.") from None
