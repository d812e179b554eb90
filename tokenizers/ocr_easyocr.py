"""Recognised text by EasyOCR 1.7.2 (CRAFT finds the boxes, a CRNN reads them), the engine of arXiv 2507.19037.

Equal to `Reader(["en"]).readtext(path)`, with three differences:

- The networks are built here, and their tensors are read without unpickling; the package would unpickle its files
  (`weights_only=False`) or download them.
- The networks are not quantised, as on a GPU. On a CPU the package quantises by default, and the result depends on the
  CPU model.
- Grey levels of a coloured page can differ by one from those that the package decodes from a file.

Fractions and superscripts are lost: the alphabet of `english_g2` is ASCII and the euro sign. Boxes are in the order of
the detector: level boxes row by row, then slanted ones.
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
    """How lines become text; by default like the authors of 3-Equations."""

    normaliser: spelling.Name = "authors/1"


class EasyOcr(lines.PageReader):
    """Pages and boxes are read one by one, so that no text depends on its batch. 24.6 million parameters."""

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
        """The checkpoints inside the archives of the card: detector and recogniser."""
        return [(published.folder(self.recipe) / file.name).with_suffix(".pth") for file in self.card.files]

    def convert(self, downloaded: list[Path]) -> list[Path]:
        """Extract the checkpoint of each archive.

        Raises:
            UserError: an archive is damaged or lacks its checkpoint.
        """
        for archive, target in zip(downloaded, self.checkpoints, strict=True):
            try:
                with (
                    zipfile.ZipFile(archive) as zipped,
                    zipped.open(target.name) as source,
                    files.atomic(target) as temporary,
                    temporary.open("wb") as destination,
                ):
                    copyfileobj(source, destination)
            except (zipfile.BadZipFile, KeyError) as error:
                raise UserError(f"ocr_easyocr: {archive} holds no {target.name} ({error}); fetch it again.") from None
        return self.checkpoints

    def require(self) -> None:
        """Check the packages, that torchvision fits the installed torch, and the weights."""
        super().require()
        if not all(path.is_file() for path in self.checkpoints):
            raise UserError(published.missing_message(self.card, self.recipe))
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:  # a CUDA build of torchvision with a CPU build of torch
            raise UserError(
                f"ocr_easyocr: torchvision does not fit this torch ({error}); install the build of the same kind, for a"
                " CPU: pip install torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu"
            ) from None

    def facts(self) -> list[str]:
        """Version of the engine, the digest of its weights, and how lines become text."""
        self.require()
        return [f"easyocr {version('easyocr')}", published.digest(self.checkpoints), *lines.facts(self.settings)]

    @cached_property
    def engine(self) -> Any:
        """The reader of EasyOCR, with networks that were loaded here."""
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
        sys.path.remove(folder)  # the package added it, to import custom networks
        reader.converter = utils.CTCLabelConverter(reader.character, {}, {})
        reader.get_textbox = detection.get_textbox
        detector, recogniser = self.checkpoints
        reader.detector = self._network(detector, craft.CRAFT)
        classes = len(reader.converter.character)
        reader.recognizer = self._network(recogniser, lambda: vgg_model.Model(num_class=classes, **SIZE))
        return reader

    def _network(self, path: Path, make: Callable[[], Any]) -> Any:
        """Build a network with `make` and load the checkpoint into it, frozen."""
        import torch

        from dmlm.weights import untrusted
        from dmlm.weights.frozen import on_device, with_weights

        def build() -> torch.nn.Module:
            with torch.device("meta"):
                module = make()
            return module.to_empty(device="cpu")

        tensors = {name.removeprefix("module."): tensor for name, tensor in untrusted.read(path).items()}
        return on_device(self.device, with_weights(build, tensors, str(path)))

    def lines_of(self, page: np.ndarray) -> list[lines.Line]:
        """The lines of a page in the order of the detector; the box of a slanted line is its hull."""
        import cv2

        grey = cv2.cvtColor(page, cv2.COLOR_RGB2GRAY)  # the package would take the array for BGR
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its loader requests pinned memory, which a CPU does not have
            level, slanted = self.engine.detect(page, reformat=False)
            results = self.engine.recognize(grey, level[0], slanted[0], reformat=False)
        return [
            lines.Line(text, lines.hull(np.asarray(corners, float)), float(confidence))
            for corners, text, confidence in results
        ]
