"""Ten steps of a cell and a few transcripts, measured: what its training and its tests will take on this machine."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dmlm import processes
from dmlm.sweep.tasks import Task, opened, task_of
from dmlm.sweep.trial import Trial

WARM, STEPS = 2, 10
UTTERANCES = 16


@dataclass(frozen=True)
class Probe:
    """What was measured of one cell."""

    step_s: float
    utterance_s: float  # of a transcript, prompts included
    peak_bytes: float  # of the process on a CPU, of its tensors on a GPU


def probe_all(trials: Sequence[Trial], say: Callable[[str], None]) -> list[Probe]:
    """Measure one trial after the other, each in a fresh worker, as `dmlm grid run` would start it."""
    found = []
    for trial in trials:
        (probe,) = processes.run(measure, [task_of(trial, (), 60.0)], workers=1)
        say(f"probe    {trial.cell.label}: {1e3 * probe.step_s:,.0f} ms a step")
        found.append(probe)
    return found


def measure(task: Task) -> Probe:
    """Train a new model for some steps in this process, and let it write some transcripts."""
    import resource

    import torch

    from dmlm.recognition.device import device
    from dmlm.recognition.transcribe import transcribe
    from dmlm.results.training_log import TrainingLog
    from dmlm.sweep.evaluate_trial import reading_of
    from dmlm.sweep.train_trial import OBJECTIVES, new_model, packed_draws
    from dmlm.training.loggers import NO_LOGGERS
    from dmlm.training.loop import Session, train

    trial, materials = opened(task)
    cell, ends = trial.cell, []
    settings = replace(cell.train, steps=WARM + STEPS)
    vocabulary = materials.vocabulary(cell.letters)
    net = new_model(trial, materials)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(
            name=trial.id,
            checkpoints=Path(folder) / "checkpoints",
            device=device(),
            log=TrainingLog(Path(folder) / "train.jsonl", settings.steps, NO_LOGGERS),
            execution=cell.execution,
            on_step=lambda step, loss: ends.append(time.monotonic()),
        )
        objective = OBJECTIVES[settings.objective](settings.lambdas, vocabulary.special("<pad>"), settings.input_mask)
        train(net, packed_draws(trial, materials), settings, cell.seed, objective, session)
    if torch.cuda.is_available():
        peak_bytes = torch.cuda.max_memory_allocated()
    else:
        peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    condition = next(iter(materials.test_conditions.values()))
    streams, _ = materials.streams(cell.letters, cell.split, condition)
    started = time.monotonic()
    transcribe(net, streams[:UTTERANCES], reading_of(cell, materials))
    utterance_s = (time.monotonic() - started) / min(UTTERANCES, len(streams))
    return Probe((ends[-1] - ends[WARM - 1]) / STEPS, utterance_s, peak_bytes)
