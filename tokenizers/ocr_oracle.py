"""An oracle in the place of an OCR engine: the manifest's own linear text, as a perfect engine would read it.

It bounds from above what recognised text can bring; a real engine (`ocr_rapidocr`) loses fractions and some exponents.
It knows no boxes, so it has neither positions nor lines to choose from.
"""

from dmlm.ocr import spelling
from dmlm.tokens.encoder import Reader
from dmlm.tokens.encoder import Settings as BaseSettings


class Settings(BaseSettings):
    """The spelling; take the same as for the engine it is compared with."""

    normaliser: spelling.Name = "equations/1"


class OcrOracle(Reader):
    """Reads nothing: it hands over what is known."""

    media = "ocr"
    Settings = Settings

    def facts(self) -> list[str]:
        """Digest of the normalisers."""
        return [spelling.digest()]

    def read(self, batch: list[str], said: list[str] | None = None) -> list[str]:
        """The manifest's `ocr` text of each utterance, each run without a space normalised for itself, as a box is."""
        normalise = spelling.NORMALISERS[self.settings.normaliser]
        return [" ".join(filter(None, map(normalise, text.split()))) for text in batch]
