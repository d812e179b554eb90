"""The smallest real grid, run as a user runs it, and an engine that does tasks at once, here."""

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from dmlm.cli import grid
from dmlm.engines.base import Engine, Outcome
from dmlm.errors import UserError
from dmlm.sweep import api, tasks

ROOT = Path(__file__).resolve().parent.parent
ONE = (
    "backbone=opt-nano",
    "template=A -> T",
    "tokenizers={A: {recipe: audio_mfcc, settings: {clusters: 64}}}",
)


def command(*arguments: str) -> list[str]:
    """`python sweeps/run_grid.py --grid smoke ...`"""
    return [sys.executable, str(ROOT / "sweeps" / "run_grid.py"), "--grid", "smoke", *arguments]


def environment(home: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "DMLM_HOME": str(home), **more}


def run_grid(home: Path, *arguments: str, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=cwd, env=environment(home, **more), capture_output=True, text=True)


def run_here(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `run_grid` does, without the seconds that new processes need to import everything: for what is not about them."""
    application = typer.Typer()
    application.command()(grid.run)
    tasks._last_materials.clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMLM_HOME", str(home))
        patch.setattr(api, "open_engine", lambda *options: Direct())
        result = CliRunner().invoke(application, command(*arguments)[2:])
    torch.set_num_threads(threads)
    mistake = isinstance(result.exception, UserError)
    if result.exception and not mistake and not isinstance(result.exception, SystemExit):
        raise result.exception
    said = f"error: {result.exception}\n" if mistake else result.stderr
    return subprocess.CompletedProcess(arguments, 2 if mistake else result.exit_code, result.stdout, said)


def start_grid(home: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """The same in the background, in a session of its own."""
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(command(*arguments), cwd=ROOT, env=environment(home, **more), **quiet)


class Direct(Engine):
    """Does each task when asked for what has ended: no process, no waiting."""

    free_slots = 1

    def __init__(self) -> None:
        self.queue: list = []
        self.done: list[tuple[str, str]] = []  # function and trial of each task, in order

    def submit(self, function, job) -> int:
        self.queue.append((function, job))
        return len(self.done) + len(self.queue)

    def ended(self, timeout_s: float) -> list[Outcome]:
        if not self.queue:
            return []
        function, job = self.queue.pop(0)
        self.done.append((function.__name__, job["trial"] if isinstance(job, dict) else ""))
        try:
            return [Outcome(len(self.done), function(job))]
        except BaseException as error:
            return [Outcome(len(self.done), None, error, traceback.format_exc())]

    def stop(self) -> None:
        self.queue.clear()
