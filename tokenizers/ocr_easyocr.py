"""Recognised text by EasyOCR 1.7.2 (CRAFT finds the boxes, a CRNN reads them): the paper's engine and clean-up.

What `Reader(["en"]).readtext(path)` gives, with three differences. Its networks are built here and given tensors that
were read without trust, where the package would unpickle its files (`weights_only=False`), or fetch them. They are not
quantised, as on a GPU: on a CPU the package quantises by default, and what that gives hangs on the make of the CPU. The
greys of a coloured page can be a level off those that the package decodes from a file.

Fractions and raised digits are lost: the alphabet of `english_g2` is ASCII and the euro sign. The order of boxes is the
detector's: level ones row by row, then slanted ones.
"""

import sys
import warnings
import zipfile
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import numpy as np

from dmlm import files
from dmlm.errors import UserError
from dmlm.ocr import lines, spelling
from dmlm.weights import published

RELEASES = "https://github.com/JaidedAI/EasyOCR/releases/download/"
INSTALL = 'pip install -e ".[easyocr]" (beside a CPU build of torch add: --extra-index-url https://download.pytorch.org/whl/cpu)'
SIZE = {"input_channel": 1, "output_channel": 256, "hidden_size": 256}  # of generation 2, easyocr/easyocr.py


class Settings(lines.Settings):
    """What is made of its lines; by default what the paper's authors made of them."""

    normaliser: spelling.Name = "authors/1"


class EasyOcr(lines.PageReader):
    """Pages are read one by one, and boxes too, so that nothing depends on its batch; 24.6 million parameters."""

    Settings = Settings

    packages = dict.fromkeys(("easyocr", "torchvision"), INSTALL)

    @property
    def card(self) -> published.Card:
        return published.Card(
            source="https://github.com/JaidedAI/EasyOCR (craft_mlt_25k, english_g2; addresses of easyocr/config.py 1.7.2)",
            licence="Apache-2.0 (EasyOCR); the detector is that of clovaai/CRAFT-pytorch, MIT",
            files=(
                published.File(
                    "craft_mlt_25k.zip",
                    sha256="8dc6a1c703a89ed56308ef742d26ebd45c656248cbbbda6e7fe60e569f873e65",
                    bytes=77_251_756,
                    url=RELEASES + "pre-v1.1.6/craft_mlt_25k.zip",
                ),
                published.File(
                    "english_g2.zip",
                    sha256="1b5eaebf1c062de6205560c97ffcfa8dc0e6f413c340e8adc5cfc57e159f61ff",
                    bytes=14_040_947,
                    url=RELEASES + "v1.3/english_g2.zip",
                ),
            ),
        )

    @property
    def checkpoints(self) -> list[Path]:
        """What the archives of the card hold: the detector, and the recogniser."""
        return [(published.folder(self.recipe) / file.name).with_suffix(".pth") for file in self.card.files]

    def convert(self, downloaded: list[Path]) -> list[Path]:
        """Take the checkpoint out of each archive."""
        for archive, target in zip(downloaded, self.checkpoints, strict=True):
            try:
                with (
                    zipfile.ZipFile(archive) as packed,
                    packed.open(target.name) as held,
                    files.atomic(target) as temporary,
                    temporary.open("wb") as written,
                ):
                    copyfileobj(held, written)
            except (zipfile.BadZipFile, KeyError) as error:
                raise UserError(f"ocr_easyocr: {archive} holds no {target.name} ({error}); fetch it again.") from None
        return self.checkpoints

    def require(self) -> None:
        """The packages, a torchvision that fits this torch, and the weights."""
        super().require()
        if not all(path.is_file() for path in self.checkpoints):
            raise UserError(published.missing(self.card, self.recipe))
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:  # the build for CUDA beside a torch without it
            raise UserError(
                f"ocr_easyocr: torchvision does not fit this torch ({error}); install the build of the same kind, for a"
                " CPU: pip install torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu"
            ) from None

    def facts(self) -> list[str]:
        """Version of the engine, the digest of its weights, and what turns lines into text."""
        self.require()
        return [f"easyocr {version('easyocr')}", published.digest(self.checkpoints), *lines.facts(self.settings)]

    @cached_property
    def engine(self) -> Any:
        """EasyOCR's reader with networks that were loaded here."""
        self.require()
        import easyocr
        from easyocr import craft, detection, utils
        from easyocr.model import vgg_model

        folder = str(published.folder(self.recipe))
        reader = easyocr.Reader(
            ["en"],
            gpu=self.device if self.device != "cpu" else False,
            model_storage_directory=folder,
            user_network_directory=folder,
            download_enabled=False,
            detector=False,
            recognizer=False,
            verbose=False,
        )
        sys.path.remove(folder)  # it looks there for networks of the user's own
        reader.converter = utils.CTCLabelConverter(reader.character, {}, {})
        reader.get_textbox = detection.get_textbox
        detector, recogniser = self.checkpoints
        reader.detector = self._network(detector, craft.CRAFT)
        classes = len(reader.converter.character)
        reader.recognizer = self._network(recogniser, lambda: vgg_model.Model(num_class=classes, **SIZE))
        return reader

    def _network(self, path: Path, kind: Callable[[], Any]) -> Any:
        import torch

        from dmlm.weights import untrusted
        from dmlm.weights.frozen import loaded, on

        def build() -> torch.nn.Module:
            with torch.device("meta"):
                module = kind()
            return module.to_empty(device="cpu")

        tensors = {name.removeprefix("module."): tensor for name, tensor in untrusted.read(path).items()}
        return on(self.device, loaded(build, tensors, str(path)))

    def lines_of(self, page: np.ndarray) -> list[lines.Line]:
        """The boxes of a page in the detector's order; a slanted one by its hull."""
        import cv2

        grey = cv2.cvtColor(page, cv2.COLOR_RGB2GRAY)  # the package would take the array for BGR
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its loader asks for pinned memory, which a CPU has not
            level, slanted = self.engine.detect(page, reformat=False)
            found = self.engine.recognize(grey, level[0], slanted[0], reformat=False)
        return [
            lines.Line(text, lines.hull(np.asarray(corners, float)), float(confidence))
            for corners, text, confidence in found
        ]
