"""An oracle instead of an OCR engine: the `ocr` text of the manifest, as a perfect engine would read it.

It is an upper bound on the benefit of recognised text; a real engine (`ocr_rapidocr`) loses fractions and some
exponents. It has no boxes, so there are no positions and no line selection.
"""

from dmlm.ocr import spelling
from dmlm.tokens.encoder import Reader
from dmlm.tokens.encoder import Settings as BaseSettings


class Settings(BaseSettings):
    """The normaliser; use that of the engine it is compared with."""

    normaliser: spelling.Name = "equations/1"


class OcrOracle(Reader):
    """Returns the `ocr` field of the manifest, normalised."""

    media = "ocr"
    Settings = Settings

    def facts(self) -> list[str]:
        """Digest of the normalisers."""
        return [spelling.digest()]

    def read(self, batch: list[str], heard: list[str] | None = None) -> list[str]:
        """The `ocr` text of each utterance; each part without spaces is normalised like a box. `heard` is not used."""
        normalise = spelling.NORMALISERS[self.settings.normaliser]
        return [" ".join(filter(None, map(normalise, text.split()))) for text in batch]
