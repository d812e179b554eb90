"""One hearing condition of a split: clean, one SNR for all, or one SNR drawn per utterance (training)."""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dmlm.corpus.manifest import Utterance
from dmlm.corpus.noise import Mixed, NoiseBank, NoiseSettings, generator, mix, noisy_spans


@dataclass(frozen=True)
class Condition:
    """Plain data, so that it crosses process borders; `key` names it in the token cache."""

    snrs_db: tuple[float, ...]  # one level, or several of which each utterance draws one; inf is clean
    draw: int = 0  # which of several independent noise versions (training); evaluation uses 0
    noise: NoiseSettings = NoiseSettings()
    bank_folder: Path | None = None
    bank_digest: str = ""

    @property
    def clean(self) -> bool:
        return self.snrs_db == (math.inf,)

    @property
    def drawn(self) -> bool:
        return len(self.snrs_db) > 1

    @property
    def key(self) -> str:
        """Readable and unique: `clean`, `snr-10-1a2b3c4d`, `draw0-1a2b3c4d`."""
        if self.clean:
            return "clean"
        facts = [
            self.noise.model_dump(mode="json"),
            self.bank_digest,
            [str(float(level)) for level in self.snrs_db],
            self.draw,
        ]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        return f"{f'draw{self.draw}' if self.drawn else f'snr{self.snrs_db[0]:g}'}-{digest}"

    @cached_property
    def _bank(self) -> NoiseBank:
        assert self.bank_folder is not None
        return NoiseBank.open(self.bank_folder, self.noise.kinds)

    def level_db(self, utterance_id: str) -> float:
        """The SNR that an utterance gets."""
        if not self.drawn:
            return self.snrs_db[0]
        random = generator(utterance_id, "level", self.noise.seed, self.draw)
        return self.snrs_db[int(random.integers(len(self.snrs_db)))]

    def hear(self, utterance: Utterance, speech: np.ndarray, name: str) -> Mixed:
        """The utterance as it sounds under this condition; evaluation never uses a training noise file."""
        level = self.level_db(utterance.id)
        spans = noisy_spans(utterance, len(speech), self.noise)
        noise = np.zeros(0, np.float32)
        if level < math.inf:
            part = "train" if utterance.split == "train" else "test"
            version = ("draw", self.draw) if self.drawn else ()
            noise = self._bank.waveform(utterance.id, part, len(speech), self.noise.kinds, self.noise.seed, *version)
        return mix(speech, noise, spans, level, name)


CLEAN = Condition((math.inf,))
