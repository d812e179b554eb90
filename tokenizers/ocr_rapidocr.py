"""Recognised text by RapidOCR (PP-OCRv6 small, shipped inside its wheel; nothing is fetched).

The recogniser's cost grows with the width of a line, and the neural detector costs more than all lines of a page. So
lines of a plain page are found by connected components, and each is handed to the recogniser no larger than needed.
Fractions are beyond the engine: 12/7 comes out as 12, as 7 or as noise. That loss is part of the experiment.
"""

from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from dmlm.errors import UserError
from dmlm.tokens import reading
from dmlm.tokens.tokenizer import Reader
from dmlm.tokens.tokenizer import Settings as BaseSettings

RECOGNISER_PX = 48  # height that the recogniser wants
JOIN_PX = (5, 15)  # ink this near, down and across, belongs to one line


class Settings(BaseSettings):
    """How a page is cut into lines, and what size they are read at."""

    layout: Literal["components", "detector"] = "components"  # detector: RapidOCR's own, for photographs
    line_px: int = Field(40, ge=16, le=200)  # components: least height of the strip round a line; more is faster
    narrow: float = Field(0.8, ge=0.3, le=1, description="components: strips are squeezed to this share of their width")
    normaliser: reading.Name = "equations/1"


class RapidOcr(Reader):
    """One engine on one core: pages are read one by one, so that no page depends on its batch."""

    media = "image"
    Settings = Settings

    packages = dict.fromkeys(("rapidocr", "onnxruntime"), "pip install rapidocr onnxruntime")

    @cached_property
    def models(self) -> dict[str, Path]:
        """Files of the detector and the recogniser."""
        folder = Path(str(find_spec("rapidocr").origin)).parent / "models"  # type: ignore[union-attr]
        found = {task: max(folder.glob(f"PP-OCRv*_{task}_small.onnx"), default=None) for task in ("det", "rec")}
        if None in found.values():
            raise UserError(f"ocr_rapidocr: {folder} lacks its models; run: pip install --force-reinstall rapidocr")
        return found  # type: ignore[return-value]

    @cached_property
    def engine(self) -> Any:
        """One thread: every core has a worker already."""
        import rapidocr

        threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
        return rapidocr.RapidOCR(
            params={
                "Global.log_level": "critical",
                "Det.model_path": str(self.models["det"]),
                "Det.limit_side_len": 320,  # the default, 736, takes four times as long and loses more fractions
                "Rec.model_path": str(self.models["rec"]),
                "Rec.rec_img_shape": [3, RECOGNISER_PX, RECOGNISER_PX],  # no padding of short lines to 320 px
                "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,
                **threads,
            }
        )

    def facts(self) -> list[str]:
        """Versions of the engine, and its models' names."""
        self.require()
        return [
            *(f"{package} {version(package)}" for package in self.packages),
            *sorted(path.name for path in self.models.values()),
            reading.digest(),
        ]

    def read(self, batch: list[np.ndarray]) -> list[str]:
        """Normalised text of each page, uint8 (H, W, 3): lines from top to bottom, joined by spaces; "" where none."""
        return [reading.NORMALISERS[self.settings.normaliser](" ".join(self._lines(page))) for page in batch]

    def _lines(self, page: np.ndarray) -> list[str]:
        if self.settings.layout == "detector":
            return self._ask(page, detect=True)
        return [text for strip in self._strips(page) for text in self._ask(strip, detect=False)]

    def _ask(self, image: np.ndarray, detect: bool) -> list[str]:
        """The engine's lines in reading order. All three switches each time: a switch left out keeps its last value."""
        result: Any = self.engine(image, use_det=detect, use_cls=False, use_rec=True)
        return list(result.txts or ())

    def _strips(self, page: np.ndarray) -> list[np.ndarray]:
        """The page's lines as the recogniser wants them, uint8 (48, w, 3), in reading order."""
        import cv2

        grey = page if page.ndim == 2 else cv2.cvtColor(page, cv2.COLOR_RGB2GRAY)
        paper = int(np.median(grey))
        ink = (np.abs(grey.astype(np.int16) - paper) > 55).astype(np.uint8)  # (H, W)
        strips = []
        for top, bottom, left, right in _in_reading_order(_boxes(ink)):
            border = max(4, (self.settings.line_px - (bottom - top) + 1) // 2)
            strip = cv2.copyMakeBorder(
                grey[top:bottom, left:right], border, border, 6, 6, cv2.BORDER_CONSTANT, value=paper
            )
            width = round(self.settings.narrow * strip.shape[1] * RECOGNISER_PX / strip.shape[0])
            strips.append(cv2.cvtColor(cv2.resize(strip, (max(8, width), RECOGNISER_PX)), cv2.COLOR_GRAY2RGB))
        return strips


def _boxes(ink: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes (top, bottom, left, right) of the groups of near ink, each cut to its ink."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(ink, np.ones(JOIN_PX, np.uint8)))
    boxes = []
    for label, (left, top, width, height, _) in enumerate(stats[1:], start=1):
        window = (slice(top, top + height), slice(left, left + width))
        rows, columns = np.nonzero(ink[window] * (labels[window] == label))
        boxes.append((top + rows.min(), top + rows.max() + 1, left + columns.min(), left + columns.max() + 1))
    return boxes


def _in_reading_order(boxes: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Rows from top to bottom, each from left to right; a row is whatever centres above the foot of its first box."""
    rows: list[list[tuple[int, int, int, int]]] = []
    for box in sorted(boxes, key=lambda box: (box[0] + box[1], box[2])):
        if rows and box[0] + box[1] < 2 * rows[-1][0][1]:
            rows[-1].append(box)
        else:
            rows.append([box])
    return [box for row in rows for box in sorted(row, key=lambda box: box[2])]
