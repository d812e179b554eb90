"""One recording, read by several models, clean and with noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmlm import snr
from dmlm.corpus.condition import Condition
from dmlm.corpus.voice_activity import speech_spans
from dmlm.recognition.clips import Clip
from dmlm.recognition.recogniser import Recogniser, open_input
from dmlm.recognition.recording import ClipTranscript
from dmlm.score.normalisers import NORMALISERS
from dmlm.score.wer import ErrorCounts, count_errors
from dmlm.sweep.noisy_clip import mixed


@dataclass(frozen=True)
class ClipReading:
    """What one model wrote for a recording under one condition."""

    clip: Clip
    model: str  # its label
    condition: Condition
    snr_db_measured: float  # infinite without noise
    transcript: ClipTranscript
    errors: ErrorCounts | None  # None without a reference

    def record(self) -> dict[str, Any]:
        """Everything as plain data, for JSON; probabilities are natural logarithms."""
        written, noisy = self.transcript, not self.condition.clean
        return {
            "file": self.clip.name,
            "model": self.model,
            "noise": ",".join(self.condition.noise.kinds) if noisy else None,
            "snr_db": self.condition.snr_db if noisy else None,
            "snr_db_measured": round(self.snr_db_measured, 4) if noisy else None,
            "text": written.text,
            "reference": self.clip.reference,
            "wer": self.errors.wer if self.errors else None,
            "cut": written.cut,
            "looped": written.looped,
            "audio_s": written.audio_s,
            "seconds": round(written.seconds, 3),
            "real_time_factor": written.real_time_factor and round(written.real_time_factor, 4),
            "pieces": [
                {
                    "start_s": round(piece.start_s, 3),
                    "end_s": round(piece.end_s, 3),
                    "speech": piece.speech,
                    "ends_in_speech": piece.ends_in_speech,
                    "text": piece.transcript.text,
                    "cut": piece.transcript.cut,
                    "looped": piece.transcript.looped,
                    "tokens": piece.transcript.tokens,
                    "log_probabilities": [round(value, 5) for value in piece.transcript.log_probabilities],
                }
                for piece in written.pieces
            ],
        }


def read_clip(
    clip: Clip, models: Mapping[str, Recogniser], conditions: Sequence[Condition], first_pass: str | None = None
) -> list[ClipReading]:
    """Transcribe a recording with each model under each condition, condition by condition.

    Args:
        clip: the recording; what a model does not read of it is left out, unless there is one model and the user named it
        models: by label
        conditions: clean, or of `dmlm.sweep.noisy_clip`
        first_pass: transcript by another recogniser, for models that use one

    Raises:
        UserError: an input cannot be read, lacks, is too long, or is not read by the model.
    """
    inputs: dict[str, Any] = dict(clip.inputs)
    spans = None
    if "audio" in inputs:
        inputs["audio"] = open_input("audio", inputs["audio"])
        noisy = any(not condition.clean for condition in conditions)
        if noisy or any(model.must_cut(inputs["audio"]) for model in models.values()):
            spans = speech_spans(inputs["audio"])
    readings = []
    for condition in conditions:
        heard, measured_db = dict(inputs), snr.CLEAN_DB
        if "audio" in inputs and not condition.clean:
            mixture = mixed(inputs["audio"], spans or [], clip.stem, condition)
            heard["audio"], measured_db = mixture.audio, mixture.snr_db_measured
        for label, model in models.items():
            all_used = clip.named and len(models) == 1
            used = heard if all_used else {name: value for name, value in heard.items() if name in model.needs}
            written = model.read(first_pass=first_pass, spans=spans, **used)
            errors = None
            if clip.reference is not None:
                errors = count_errors(clip.reference, written.text, NORMALISERS[model.description.normaliser])
            readings.append(ClipReading(clip, label, condition, measured_db, written, errors))
    return readings
