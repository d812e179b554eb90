"""A page of any shape on the square that an image network wants, and the networks that see it patch by patch."""

from typing import Literal

import numpy as np

from dmlm.errors import UserError

Fit = Literal["pad", "crop", "squash"]
LANCZOS = 1  # of PIL.Image.Resampling
PATCHWISE = (  # of transformers: the last tokens are the patches in raster order, and nothing is masked at random
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
    """See that a model's `model_type` is one whose tokens are known to be those of patches.

    Raises:
        UserError: it is another; many look alike, and would give other tokens or fewer.
    """
    if kind not in PATCHWISE:
        raise UserError(
            f"{recipe}: {model} is no transformer over patches that is known here but a {kind}; choose one"
            f" of these: {', '.join(PATCHWISE)}."
        )


def square(page: np.ndarray, side: int, fit: Fit, resample: int = LANCZOS) -> np.ndarray:
    """A page uint8 (H, W, 3) as (side, side, 3): its longer side fits (pad), its shorter one (crop), or both (squash).

    What pads is the page's own paper, its median colour. To crop is what image networks were trained with; it cuts the
    ends of wide pages off.
    """
    from PIL import Image

    height, width = page.shape[:2]
    scale = side / (max(height, width) if fit == "pad" else min(height, width))
    size = (side, side) if fit == "squash" else (max(1, round(scale * width)), max(1, round(scale * height)))
    small = np.asarray(Image.fromarray(page).resize(size, Image.Resampling(resample)))
    if fit == "pad":
        whole = np.empty((side, side, 3), np.uint8)
        whole[:] = np.median(page, axis=(0, 1))
        top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
        whole[top : top + small.shape[0], left : left + small.shape[1]] = small
        return whole
    top, left = (round((length - side) / 2) for length in small.shape[:2])
    return small[top : top + side, left : left + side]
