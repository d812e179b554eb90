"""The errors of each utterance under one condition."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dmlm import snr
from dmlm.corpus.manifest import Utterance
from dmlm.recognition.transcribe import Transcript
from dmlm.score.normalisers import Normaliser
from dmlm.score.wer import count_character_errors, count_errors


def score(
    utterances: Sequence[Utterance],
    transcripts: Sequence[Transcript],
    snr_db_measured: Mapping[str, float],
    normaliser: Normaliser,
) -> list[dict[str, Any]]:
    """Return one record per utterance: both texts as they are, error counts after `normaliser`, measured SNR.

    Raises:
        UserError: a reference has no word left after `normaliser`; names the utterance.
    """
    records = []
    for utterance, transcript in zip(utterances, transcripts, strict=True):
        measured_db = snr_db_measured.get(utterance.id, snr.CLEAN_DB)
        records.append(
            {
                "id": utterance.id,
                "reference": utterance.text,
                "hypothesis": transcript.text,
                **asdict(count_errors(utterance.text, transcript.text, normaliser)),
                "characters": count_character_errors(utterance.text, transcript.text, normaliser),
                "cut": transcript.cut,
                "looped": transcript.looped,
                "snr_db_measured": round(measured_db, 4) if snr.noisy(measured_db) else None,
                "speaker": utterance.speaker,
            }
        )
    return records
