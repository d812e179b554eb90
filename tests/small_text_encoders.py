"""Engines of recognised text; EasyOCR at its true size with random weights, in the archives in which it is published."""

import zipfile
from typing import Any

import numpy as np
import torch

from dmlm import recipes
from dmlm.synthesis.page import draw_page
from dmlm.tokens.encoder import Encoder, importable
from dmlm.weights import published


def random_networks() -> dict[str, torch.nn.Module]:
    """Detector and recogniser whose last layers are scaled until a page has boxes, and a box several characters."""
    from easyocr.config import recognition_models
    from easyocr.craft import CRAFT
    from easyocr.imgproc import normalizeMeanVariance
    from easyocr.model.vgg_model import Model

    page = np.repeat(draw_page(["12 a + 45 = 8", "17 k - 30 = 9 h"], np.random.default_rng(0))[..., None], 3, axis=2)
    classes = len(recognition_models["gen2"]["english_g2"]["characters"]) + 1
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        detector = CRAFT().eval()
        recogniser = Model(input_channel=1, output_channel=256, hidden_size=256, num_class=classes).eval()
        map_of_text = detector(torch.from_numpy(normalizeMeanVariance(page))[None].permute(0, 3, 1, 2))[0][0, ..., 0]
        low, high = map_of_text.quantile(0.6), map_of_text.quantile(0.97)
        last = detector.conv_cls[-1]
        last.weight[0] /= high - low
        last.bias[0] = (last.bias[0] - low) / (high - low)
        last.weight[1], last.bias[1] = 0, 0
        scores = recogniser(torch.from_numpy(page[None, None, :64, :256, 0] / 127.5 - 1).float(), None)[0]
        recogniser.Prediction.weight *= 8 / scores.std(0).mean()
        recogniser.Prediction.bias += -8 * scores.mean(0) / scores.std(0).mean()
    return {"craft_mlt_25k": detector, "english_g2": recogniser}


def ocr_easyocr() -> dict[str, Any]:
    """Nothing is written where the package is missing: the recipe says so itself."""
    if not importable("easyocr"):
        return {}
    folder = published.folder("ocr_easyocr")
    folder.mkdir(parents=True)
    for name, network in random_networks().items():
        archive = folder / f"{name}.zip"
        with zipfile.ZipFile(archive, "w") as packed, packed.open(f"{name}.pth", "w", force_zip64=True) as held:
            torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, held)
    kind = recipes.load_class("tokenizers", "ocr_easyocr", Encoder)
    kind(kind.Settings()).convert(sorted(folder.glob("*.zip")))
    return {}


SMALL = {"ocr_easyocr": ocr_easyocr, "ocr_rapidocr": dict, "ocr_tesseract": dict, "ocr_oracle": dict}
