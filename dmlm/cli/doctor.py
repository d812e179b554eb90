"""The command `doctor`: what this machine has, and what each tokenizer still needs."""

import shutil
import subprocess
import sys
from importlib import metadata

from dmlm import paths, recipes
from dmlm.errors import BrokenRecipe, UserError
from dmlm.tokens.encoder import Encoder

PACKAGES = (
    "torch",
    "transformers",
    "espeakng-loader",
    "av",
    "rapidocr",
    "pytesseract",
    "easyocr",
    "mediapipe",
    "dlib-bin",
    "ray",
)


def doctor() -> None:
    """Print what this machine has: versions, devices, the home folder, and what each tokenizer still needs."""
    print(report())


def report() -> str:
    """Text of the command, one line for each item."""
    import torch

    from dmlm.model import scan_choice

    cuda = torch.cuda.is_available()
    lines = [("python", sys.version.split()[0]), *((package, _version(package)) for package in PACKAGES)]
    lines += [
        ("CUDA device", torch.cuda.get_device_name() if cuda else "none"),
        ("scan of Mamba", scan_choice.fastest_scan("cuda" if cuda else "cpu")[0]),
        ("torchvision", _torchvision()),
        ("FFmpeg", _ffmpeg()),
        ("tesseract", _program("tesseract")),
        ("home", str(paths.home())),
        ("", ""),
        *((name, state(name)) for name in recipes.names("tokenizers")),
    ]
    return "\n".join(f"{name:<22} {text}".rstrip() for name, text in lines)


def state(recipe: str) -> str:
    """`ready`, or what a tokenizer with default settings still needs, and the command that gets it."""
    try:
        kind = recipes.load_class("tokenizers", recipe, Encoder)
        encoder = kind(kind.Settings())
        encoder.require()
    except BrokenRecipe as error:
        return f"does not load: {error}".replace("\n", " ")
    except UserError as error:
        return str(error).removeprefix(f"{recipe}: ")
    except Exception as error:  # in a recipe under development; the others are still reported
        return f"does not load: {type(error).__name__}: {error}".replace("\n", " ")
    return f"ready ({encoder.modality})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _torchvision() -> str:
    """State of torchvision, which only EasyOCR needs. One of another build than torch breaks `transformers`."""
    try:
        import torchvision
    except ModuleNotFoundError:
        return "not installed"
    except RuntimeError as error:
        return (
            f"{_version('torchvision')} does not fit this torch ({error}), and models cannot be opened beside it;"
            " run: pip uninstall torchvision, or install both from one index of download.pytorch.org"
        )
    return str(torchvision.__version__)


def _ffmpeg() -> str:
    import av

    return "inside av: " + ", ".join(
        f"{name} {'.'.join(map(str, v))}" for name, v in av.library_versions.items() if name == "libavcodec"
    )


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        return "not installed"
    result = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return (result.stdout or result.stderr).splitlines()[0]
