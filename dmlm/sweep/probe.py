"""Ten steps of a cell and a few transcripts, measured: what its training and its tests will take on this machine."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dmlm import processes
from dmlm.errors import UserError
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


def probe_all(trials: Sequence[Trial], say: Callable[[str], None]) -> list[Probe | None]:
    """Measure one trial after the other, each in a fresh worker of one process; None for one that fails, which is said."""
    found: list[Probe | None] = []
    for trial in trials:
        try:
            (probe,) = processes.run(measure, [task_of(trial, (), 60.0)], workers=1)
        except Exception as error:  # it costs its own row, as in a run
            say(f"probe    {trial.cell.label} failed: {error if isinstance(error, UserError) else repr(error)}")
            found.append(None)
            continue
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
    from dmlm.sequence.batches import check_context
    from dmlm.sweep.evaluate_trial import reading_of
    from dmlm.sweep.train_trial import OBJECTIVES, new_model, packed_draws
    from dmlm.training.loggers import NO_LOGGERS
    from dmlm.training.loop import Session, train

    trial, materials = opened(task)
    cell, ends = trial.cell, []
    settings = replace(cell.train, steps=WARM + STEPS)
    vocabulary = materials.vocabulary(cell.letters)
    draws = packed_draws(trial, materials)
    names = [utterance.id for utterance in materials.corpus.split("train")]
    check_context(draws[0], names, cell.model.context, cell.template)
    net = new_model(trial, materials)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(
            name=trial.id,
            checkpoints=Path(folder) / "checkpoints",
            device=device(),
            log=TrainingLog(Path(folder) / "train.jsonl", settings.steps, NO_LOGGERS),
            execution=cell.execution,
            checkpoint_every_s=math.inf,
            on_step=lambda step, loss: ends.append(time.monotonic()),
        )
        objective = OBJECTIVES[settings.objective](settings.lambdas, vocabulary.special("<pad>"), settings.input_mask)
        train(net, draws, settings, cell.seed, objective, session)
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
