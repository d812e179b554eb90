"""Draw a page of equations at random positions, like the 3-Equations corpus (450 x 200 px, black on white)."""

import numpy as np

from dmlm.errors import UserError
from dmlm.synthesis.typeset import typeset

FONT_PX = 22
SMALLEST_PX = 9
MARGIN_PX = 4  # white border of the page
GAP_PX = (8, 16)  # least distance between two equations, down or across
TRIES = 30  # random layouts before equations are stacked in rows


def draw_page(equations: list[str], rng: np.random.Generator, width: int = 450, height: int = 200) -> np.ndarray:
    """Draw a grey page, uint8 (height, width), with each equation once. None overlap, and none are cut off.

    Takes a few milliseconds. If 22 px type does not fit, the page gets smaller type.

    Args:
        equations: LaTeX without dollar signs; the subset is that of `typeset`
        rng: draws the positions
        width: of the page, in pixels
        height: of the page, in pixels

    Raises:
        UserError: the LaTeX cannot be typeset, or the equations do not fit on the page.
    """
    page = np.full((height, width), 255, np.uint8)
    for (top, left), picture in lay_out(equations, rng, width, height):
        page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return page


def lay_out(
    equations: list[str], rng: np.random.Generator, width: int = 450, height: int = 200
) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Lay out what `draw_page` draws: the corner (top, left) and picture (h, w) of each equation, in input order."""
    size_px = float(FONT_PX)
    while size_px >= SMALLEST_PX:
        pictures = [typeset(equation, size_px) for equation in equations]
        corners = place_boxes([picture.shape for picture in pictures], rng, width, height)
        if corners is not None:
            return list(zip(corners, pictures, strict=True))
        size_px *= 0.85
    raise UserError(f"{len(equations)} equations do not fit on a page of {width} x {height} px; make the page larger.")


def place_boxes(
    sizes: list[tuple[int, int]], rng: np.random.Generator, width: int, height: int
) -> list[tuple[int, int]] | None:
    """Corners (top, left) of boxes (h, w) on a page: random positions, else rows. None if the boxes do not fit."""
    if any(h > height - 2 * MARGIN_PX or w > width - 2 * MARGIN_PX for h, w in sizes):
        return None
    for _ in range(TRIES):
        corners = [
            (
                int(rng.integers(MARGIN_PX, height - MARGIN_PX - h, endpoint=True)),
                int(rng.integers(MARGIN_PX, width - MARGIN_PX - w, endpoint=True)),
            )
            for h, w in sizes
        ]
        boxes = [(*corner, *size) for corner, size in zip(corners, sizes, strict=True)]
        if all(_apart(a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
            return corners
    return _rows(sizes, rng, width, height)


def _apart(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two boxes (top, left, h, w) are at least GAP_PX apart, down or across."""
    return any(p[axis] + p[2 + axis] + GAP_PX[axis] <= q[axis] for axis in (0, 1) for p, q in ((a, b), (b, a)))


def _rows(
    sizes: list[tuple[int, int]], rng: np.random.Generator, width: int, height: int
) -> list[tuple[int, int]] | None:
    """Corners of boxes in rows, spread over the height; only the left edges are random. None if they do not fit."""
    spare = height - 2 * MARGIN_PX - sum(h for h, _ in sizes)
    gap = spare // max(1, len(sizes) - 1)
    if gap < GAP_PX[0]:
        return None
    corners, top = [], MARGIN_PX
    for h, w in sizes:
        corners.append((top, int(rng.integers(MARGIN_PX, width - MARGIN_PX - w, endpoint=True))))
        top += h + gap
    return corners
