"""Fit a page of any shape to the square input of an image network; the vision transformers that are supported."""

from typing import Literal

import numpy as np

from dmlm.errors import UserError

Fit = Literal["pad", "crop", "squash"]
LANCZOS = 1  # value of PIL.Image.Resampling.LANCZOS
PATCHWISE = (  # `model_type` of transformers: the last tokens are the patches in raster order, none masked at random
    "beit",
    "clip_vision_model",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "ijepa",
    "siglip_vision_model",
    "vit",
    "vit_msn",
)


def require_patchwise(recipe: str, model: str, kind: str) -> None:
    """Check that a model is a vision transformer whose output tokens are its patches; `kind` is its `model_type`.

    Raises:
        UserError: the type is not in PATCHWISE; similar models would give other tokens, or fewer.
    """
    if kind not in PATCHWISE:
        raise UserError(
            f"{recipe}: {model} is no transformer over patches that is supported, but a {kind}; choose one"
            f" of these: {', '.join(PATCHWISE)}."
        )


def square(page: np.ndarray, side: int, fit: Fit, resample: int = LANCZOS) -> np.ndarray:
    """Resize a page uint8 (H, W, 3) to (side, side, 3). `fit`: pad (longer side fits), crop (shorter) or squash (both).

    Padding has the median colour of the page. Image networks were trained with crops, which cut off the ends of wide
    pages.
    """
    from PIL import Image

    height, width = page.shape[:2]
    scale = side / (max(height, width) if fit == "pad" else min(height, width))
    size = (side, side) if fit == "squash" else (max(1, round(scale * width)), max(1, round(scale * height)))
    small = np.asarray(Image.fromarray(page).resize(size, Image.Resampling(resample)))
    if fit == "pad":
        canvas = np.empty((side, side, 3), np.uint8)
        canvas[:] = np.median(page, axis=(0, 1))
        top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
        canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
        return canvas
    top, left = (round((length - side) / 2) for length in small.shape[:2])
    return small[top : top + side, left : left + side]
