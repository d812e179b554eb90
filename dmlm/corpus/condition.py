"""The noise condition of a split: clean, one SNR for all utterances, or one SNR drawn per utterance (training)."""

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np

from dmlm import snr
from dmlm.corpus.manifest import Utterance
from dmlm.corpus.noise import PROTOCOL, Mixed, NoiseSettings, mix, noisy_spans, waveform
from dmlm.corpus.noise_clips import NoiseFile
from dmlm.corpus.noise_files import Noise, NoiseBank
from dmlm.seeding import generator


@dataclass(frozen=True)
class Condition:
    """Which noise a split is mixed with. Plain data, so it can be sent to other processes; `key` names it in the cache.

    The noise of an utterance depends on the condition, on the utterance's `id`, `spans` and `duration_s`, and on its audio.
    """

    snr_db: float | None  # infinite: clean; None: drawn per utterance from `drawn_from_db`
    drawn_from_db: tuple[float, ...] = ()  # SNRs from which each utterance draws one
    draw: int = 0  # which of several independent noise versions (training); evaluation uses 0
    noise: NoiseSettings = NoiseSettings()
    split: str = "test"  # whose part of the noise is heard
    bank_digest: str = ""  # of that part
    files: Noise = field(default_factory=dict, compare=False, repr=False)  # of that part

    @classmethod
    def of(
        cls, snrs_db: tuple[float, ...], draw: int, noise: NoiseSettings, bank: NoiseBank, split: str
    ) -> "Condition":
        """Return the condition in which each utterance of a split has one of these SNRs.

        Raises:
            UserError: the bank has no noise for this split.
        """
        if snrs_db == (snr.CLEAN_DB,):
            return CLEAN
        files = bank.part(split)
        if len(snrs_db) == 1:
            return cls(snrs_db[0], (), draw, noise, split, bank.digests[split], files)
        return cls(None, snrs_db, draw, noise, split, bank.digests[split], files)

    @property
    def clean(self) -> bool:
        return self.snr_db == snr.CLEAN_DB

    @property
    def key(self) -> str:
        """Readable and unique name: `clean`, `snr-10-1a2b3c4d`, `draw0-1a2b3c4d`."""
        if self.clean:
            return "clean"
        snrs_db = self.drawn_from_db if self.snr_db is None else (self.snr_db,)
        facts = [
            PROTOCOL,
            [self.noise.kinds, self.noise.placement, self.noise.seed],
            [self.split, self.bank_digest],  # of contents: where files lie, and what others there are, does not matter
            [str(float(snr_db)) for snr_db in snrs_db],
            self.draw,
        ]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        return f"{f'draw{self.draw}' if self.snr_db is None else f'snr{snr.text(self.snr_db)}'}-{digest}"

    def snr_db_of(self, utterance_id: str) -> float:
        """Return the SNR of an utterance."""
        if self.snr_db is not None:
            return self.snr_db
        random = generator(utterance_id, "level", self.noise.seed, self.draw)
        return self.drawn_from_db[int(random.integers(len(self.drawn_from_db)))]

    def apply(self, utterance: Utterance, speech: np.ndarray, name: str) -> Mixed:
        """Mix an utterance with the noise of this condition.

        `speech` is float32 (samples,) at 16 kHz; `name` is the file that errors mention.

        Raises:
            ValueError: the utterance is of another split, whose noise may not be this.
        """
        snr_db = self.snr_db_of(utterance.id)
        spans = noisy_spans(utterance, len(speech), self.noise)
        noise = np.zeros(0, np.float32)
        if snr.noisy(snr_db):
            noise, _ = self.noise_of(utterance, len(speech))
        return mix(speech, noise, spans, snr_db, name)

    def noise_of(self, utterance: Utterance, samples: int) -> tuple[np.ndarray, NoiseFile]:
        """Return the noise of an utterance, float32 (samples,), before it is scaled; and the file that it is from.

        Raises:
            ValueError: the utterance is of another split, whose noise may not be this.
        """
        if utterance.split != self.split:
            raise ValueError(f"{utterance.id!r} is of split {utterance.split}, the noise for {self.split}")
        version = ("draw", self.draw) if self.snr_db is None else ()
        spans = noisy_spans(utterance, samples, self.noise)
        return waveform(self.files, spans, samples, utterance.id, self.split, self.noise.seed, *version)


CLEAN = Condition(snr.CLEAN_DB)
