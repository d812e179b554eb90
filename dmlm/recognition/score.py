"""The errors of each utterance under one condition."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dmlm import snr
from dmlm.corpus.manifest import Utterance
from dmlm.score.wer import count_errors


def score(
    utterances: Sequence[Utterance], hypotheses: Sequence[str], snr_db_measured: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return one record per utterance: texts, error counts, measured SNR (None for clean speech)."""
    records = []
    for utterance, hypothesis in zip(utterances, hypotheses, strict=True):
        measured_db = snr_db_measured.get(utterance.id, snr.CLEAN_DB)
        records.append(
            {
                "id": utterance.id,
                "reference": utterance.text,
                "hypothesis": hypothesis,
                **asdict(count_errors(utterance.text, hypothesis)),
                "snr_db_measured": round(measured_db, 4) if snr.noisy(measured_db) else None,
                "speaker": utterance.speaker,
            }
        )
    return records
