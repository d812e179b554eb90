"""Where this grid differs from the paper that it follows (arXiv 2507.19037): every stand-in, by name."""

from pathlib import Path

from dmlm.modalities import MODALITIES
from dmlm.results.exhibit import Exhibit, Table, write_csv
from dmlm.results.grid import GridResults

ORDER = 90
NAME = "stand_ins"
PAPER_ENCODERS = {
    "A": ("audio_seamless", "Seamless units: XLSR-2 1B layer 35, 10,000 centroids"),
    "L": ("lips_avhubert", "clusters of AV-HuBERT features"),
    "I": ("image_dalle", "DALL-E's dVAE, 8,192 codes"),
    "O": ("ocr_easyocr", "EasyOCR"),
}
PAPER_MODELS = {"opt": "OPT-125M, pretrained", "mamba": "Mamba-130M, pretrained"}
VERDICTS = {
    "facebook/opt-125m": "as in the paper",
    "state-spaces/mamba-130m-hf": "as in the paper",
    "opt-125m": "size as in the paper",
    "mamba-130m": "size as in the paper",
}
PAPER_CORPUS = "3-Equations: 10,000 items (8,000/1,000/1,000), pyttsx3 speech, Wav2Lip faces, LaTeX images"


def _rows(results: GridResults) -> list[tuple[str, str, str, str]]:
    """Return the rows of the table: part, in the paper, in this grid, verdict."""
    rows = []
    for card in results.corpora:
        counts = "/".join(str(card.utterances.get(split, "?")) for split in ("train", "val", "test"))
        verdict = "stand-in, made after the authors' scripts" if "equations" in card.name else "another corpus"
        rows.append(("corpus", PAPER_CORPUS, f"{card.name} {card.version}: {counts} items", verdict))
    letters = dict.fromkeys(letter for cell in results.cells for letter in cell.inputs)
    for letter in letters:
        paper_recipe, description = PAPER_ENCODERS.get(letter, ("", "not in the paper"))
        for recipe in results.tokenizers_of(letter) or [""]:
            verdict = "as in the paper" if recipe == paper_recipe else "stand-in" if recipe else "unknown"
            rows.append((f"{letter}, {MODALITIES[letter].name}", description, recipe or "not recorded", verdict))
    for noise in results.distinct(lambda cell: (str(cell.noise.get("set")), str(cell.noise.get("placement")))):
        same = "musan" in noise[0].lower() and noise[1] == "second_half"
        setting = f"{noise[0]}, {noise[1].replace('_', ' ')}"
        paper = "MUSAN clips on the second half of each equation"
        rows.append(("noise", paper, setting, "as in the paper" if same else "stand-in"))
    for model in results.models:
        family = next(
            (description for name, description in PAPER_MODELS.items() if name in model.rpartition("/")[2]), "—"
        )
        rows.append(("backbone", family, model, VERDICTS.get(model, "stand-in")))
    return rows


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Write the comparison."""
    rows = _rows(results)
    head = ("part", "paper", "this grid", "verdict")
    return Exhibit(
        title="Stand-ins",
        caption=(
            "No absolute WER of the paper is public, so this report is held to trends with intervals. A stand-in"
            " can change a trend as well as a number; read the trend checks with this table beside them."
        ),
        files=(write_csv(folder / f"{NAME}.csv", head, rows),),
        tables=(Table("The paper's setting and this one", head, tuple(rows), words=4),),
    )
