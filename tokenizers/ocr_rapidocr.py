"""Recognised text by RapidOCR (PP-OCRv6 small, which its wheel contains; nothing is downloaded).

The cost of the recogniser grows with the width of a line, and the neural detector costs more than all lines of a page.
So lines of a plain page are found by connected components, and each is given to the recogniser as small as possible.
The engine cannot read fractions: 12/7 becomes 12, 7 or noise. That loss is part of the experiment.
"""

from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from dmlm.errors import UserError
from dmlm.ocr import lines

RECOGNISER_PX = 48  # input height of the recogniser
JOIN_PX = (5, 15)  # ink within this distance (down, across) belongs to one line


class Settings(lines.Settings):
    """How a page is cut into lines, at which size they are read, and how they become text."""

    layout: Literal["components", "detector"] = "components"  # detector: the neural one of RapidOCR, for photographs
    line_px: int = Field(40, ge=16, le=200)  # components: minimum height of the strip around a line; more is faster
    narrow: float = Field(0.8, ge=0.3, le=1, description="components: strips are squeezed to this share of their width")


class RapidOcr(lines.PageReader):
    """One engine on one core. Pages are read one by one, so that no page depends on its batch."""

    Settings = Settings

    packages = dict.fromkeys(("rapidocr", "onnxruntime"), "pip install rapidocr onnxruntime")

    @cached_property
    def models(self) -> dict[str, Path]:
        """Files of the detector (`det`) and the recogniser (`rec`).

        Raises:
            UserError: the installed package lacks one.
        """
        package = find_spec("rapidocr")
        assert package is not None
        folder = Path(str(package.origin)).parent / "models"
        versions = {task: sorted(folder.glob(f"PP-OCRv*_{task}_small.onnx")) for task in ("det", "rec")}
        if not all(versions.values()):
            raise UserError(f"ocr_rapidocr: {folder} lacks its models; run: pip install --force-reinstall rapidocr")
        return {task: paths[-1] for task, paths in versions.items()}

    @cached_property
    def engine(self) -> Any:
        """RapidOCR with one thread, since there is already one worker per core."""
        import rapidocr

        threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
        return rapidocr.RapidOCR(
            params={
                "Global.log_level": "critical",
                "Det.model_path": str(self.models["det"]),
                "Det.limit_side_len": 320,  # the default, 736, is four times slower and loses more fractions
                "Rec.model_path": str(self.models["rec"]),
                "Rec.rec_img_shape": [3, RECOGNISER_PX, RECOGNISER_PX],  # no padding of short lines to 320 px
                "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,
                **threads,
            }
        )

    def facts(self) -> list[str]:
        """Versions of the engine, the names of its models, and how lines become text."""
        self.require()
        return [
            *(f"{package} {version(package)}" for package in self.packages),
            *sorted(path.name for path in self.models.values()),
            *lines.facts(self.settings),
        ]

    def lines_of(self, page: np.ndarray) -> list[lines.Line]:
        """The lines of a page in reading order."""
        if self.settings.layout == "detector":
            return [
                lines.Line(text, lines.hull(corners), score) for text, score, corners in self._ask(page, detect=True)
            ]
        return [
            lines.Line(text, box, score)
            for box, strip in self._strips(page)
            for text, score, _ in self._ask(strip, detect=False)
        ]

    def _ask(self, image: np.ndarray, detect: bool) -> list[tuple[str, float, Any]]:
        """Text, confidence and corners (4, 2) of each line. All three switches are set, since the engine remembers them."""
        result: Any = self.engine(image, use_det=detect, use_cls=False, use_rec=True)
        if not result.txts:
            return []
        corners = result.boxes if detect else [None] * len(result.txts)
        return list(zip(result.txts, result.scores, corners, strict=True))

    def _strips(self, page: np.ndarray) -> list[tuple[lines.Box, np.ndarray]]:
        """Boxes of the lines in reading order, and the recogniser input of each, uint8 (48, w, 3)."""
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
            strip = cv2.cvtColor(cv2.resize(strip, (max(8, width), RECOGNISER_PX)), cv2.COLOR_GRAY2RGB)
            strips.append(((top, bottom, left, right), strip))
        return strips


def _boxes(ink: np.ndarray) -> list[lines.Box]:
    """Boxes of the groups of nearby ink, each cropped to its ink."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(ink, np.ones(JOIN_PX, np.uint8)))
    boxes = []
    for label, (left, top, width, height, _) in enumerate(stats[1:], start=1):
        window = (slice(top, top + height), slice(left, left + width))
        rows, columns = np.nonzero(ink[window] * (labels[window] == label))
        first_row, end_row = int(top + rows.min()), int(top + rows.max() + 1)
        boxes.append((first_row, end_row, int(left + columns.min()), int(left + columns.max() + 1)))
    return boxes


def _in_reading_order(boxes: list[lines.Box]) -> list[lines.Box]:
    """Sort boxes by row, then left to right. A row is all boxes whose centre is above the bottom of its first box."""
    rows: list[list[lines.Box]] = []
    for box in sorted(boxes, key=lambda box: (box[0] + box[1], box[2])):
        if rows and box[0] + box[1] < 2 * rows[-1][0][1]:
            rows[-1].append(box)
        else:
            rows.append([box])
    return [box for row in rows for box in sorted(row, key=lambda box: box[2])]
