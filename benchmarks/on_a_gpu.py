"""Prove and measure, in one command, what runs on a GPU: is it right, is it fast, is it useful?

It needs a checkout and torch, transformers, triton, safetensors and numpy; no network, and nothing to be installed. Each
step runs in a process of its own and has a time limit. What it finds is written at once; a failure is recorded and the
next step begins. The same command continues: steps that passed with this code on this GPU are not repeated.

    python benchmarks/on_a_gpu.py                      # nine minutes; call it again until every step is done
    python benchmarks/on_a_gpu.py --only scan --again  # the steps whose names begin so
    python benchmarks/on_a_gpu.py --rehearse           # every step at toy size, on a CPU

docs/gpu.md says what is measured, and how token shards for the last part are made.
"""

import argparse
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dmlm  # noqa: F401  # sets how idle threads wait; must come before torch
from dmlm import files
from dmlm.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "gpu"
PACKAGES = ("torch", "transformers", "triton", "numpy", "safetensors", "accelerate", "mamba_ssm", "mambapy")
PARTS = ("right", "fast", "useful")
SHORTEST_S = 30.0  # no step begins with less time than this
GRACE_S = 15.0  # after its time is over, a step is asked to end, and a training writes a checkpoint


def machine() -> dict[str, Any]:
    """Describe the GPU, or the CPU of a rehearsal, and the software."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    found: dict[str, Any] = {"device": "cpu", "python": platform.python_version(), **versions}
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")
        properties = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split()[0]
        except (OSError, IndexError, subprocess.TimeoutExpired):
            driver = None
        found |= {
            "device": properties.name,
            "count": torch.cuda.device_count(),
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "driver": driver,
            "cuda": torch.version.cuda,
        }
    return found


def code_digest() -> str:
    """Return a digest of the engine and of the benchmarks: results of other code are measured again."""
    sources = sorted([*(ROOT / "dmlm").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


class Results:
    """The results of one device, in one file for each part: read from `docs/results/gpu`, written to a folder."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.files: dict[str, dict[str, Any]] = {}
        for part in PARTS:
            path = next((p for p in (folder / f"{part}.json", RESULTS / f"{part}.json") if p.is_file()), None)
            self.files[part] = json.loads(path.read_text()) if path else {}

    def of(self, part: str) -> dict[str, Any]:
        """Return the steps of a part by name."""
        return self.files[part].setdefault(self.device, {})

    def write(self, part: str, name: str, entry: dict[str, Any]) -> None:
        """Store a step and write the file of its part."""
        self.of(part)[name] = entry
        files.write_text(self.folder / f"{part}.json", json.dumps(self.files[part], indent=1) + "\n")


def _child(run: Any, toy: bool, rows: Connection, log: Path) -> None:
    """Run a step in this process, and send its rows."""
    from gpu.steps import LeftOut

    os.setsid()  # so that processes that it starts end with it
    output = log.open("w")
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    try:
        for row in run(toy):
            rows.send(row)
        rows.send(None)
    except BaseException as error:
        traceback.print_exc()
        left_out = isinstance(error, LeftOut)
        rows.send({"error": str(error) if left_out else traceback.format_exc()[-1500:], "left_out": left_out})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        rows.close()
        os._exit(0)


def run_step(step: Any, toy: bool, limit_s: float, log: Path, context: Any) -> dict[str, Any]:
    """Run a step in a process of its own, and return its state, its seconds and its rows."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = context.Process(target=_child, args=(step.run, toy, sender, log))
    started, rows, state, error = time.monotonic(), [], "", ""
    process.start()
    sender.close()
    try:
        while not state:
            left_s = limit_s - (time.monotonic() - started)
            if left_s <= 0 or not receiver.poll(left_s):
                state, error = "stopped", f"its time of {limit_s:.0f} s was over"
                process.terminate()
                process.join(GRACE_S)
                break
            row = receiver.recv()
            if row is None:
                state = "passed" if all(r.get("ok", True) for r in rows) else "failed"
            elif "error" in row:
                state, error = ("left out" if row["left_out"] else "failed"), row["error"]
            else:
                rows.append(row)
    except KeyboardInterrupt:
        process.terminate()
        process.join(GRACE_S)
        raise
    except EOFError:
        process.join(5)
        state, error = "failed", f"its process died ({process.exitcode}); the end of its output: {_tail(log)}"
    finally:
        if process.pid:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()
        process.join()
    entry = {"state": state, "seconds": round(time.monotonic() - started, 1), "rows": rows}
    return entry | ({"error": error[-1500:]} if error else {})


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-600:] if log.is_file() else ""


def summary(row: dict[str, Any]) -> str:
    """Return a row as a line of text."""
    if "check" in row:
        return f"{'ok   ' if row['ok'] else 'WRONG'} {row['check']}: {row['value']} (at most {row['at_most']:g})"
    if "fact" in row:
        return f"      {row['fact']}: {row['value']}"
    if row["theirs"] is None:
        return f"      {row['name']}: {row['ours']} {row['unit']}"
    return f"      {row['name']}: {row['ours']} against {row['theirs']} {row['unit']}, ratio {row['ratio']}"


def _processes() -> tuple[Any, dict[str, Any]]:
    """Return how processes are started, and the machine. A fork shares what is imported, unless that opened the GPU."""
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        try:
            with context.Pool(1) as pool:
                return context, pool.apply(machine)
        except RuntimeError:
            if method == "spawn":
                raise
    raise AssertionError


def main() -> int:
    """Run the steps that are not done, in order, until the time is over. Return 1 if a step failed or is not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all steps together")
    parser.add_argument("--only", action="append", metavar="NAME", help="only steps whose names begin so; repeatable")
    parser.add_argument("--again", action="store_true", help="also steps that have passed")
    parser.add_argument("--list", action="store_true", help="print the names of the steps")
    parser.add_argument("--rehearse", action="store_true", help="every step at toy size, on a CPU")
    parser.add_argument("--shards", type=Path, metavar="FOLDER", help="prepared token shards, for the part `useful`")
    parser.add_argument("--to", type=Path, metavar="FOLDER", default=None, help=f"for results; default: {RESULTS}")
    arguments = parser.parse_args()
    started = time.monotonic()
    if arguments.rehearse and arguments.to is None and not arguments.list:
        parser.error("--rehearse needs --to FOLDER: results at toy size do not belong to docs/results/gpu")
    target: Path = (arguments.to or RESULTS).resolve()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking for a GPU must not open one before a step is forked
    if arguments.rehearse:
        os.environ.update(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="", DMLM_HOME=str(target / "home"))

    from gpu import fast, networks, right, training_steps, useful  # loads torch and transformers once, for all steps

    if arguments.minutes <= 0:
        parser.error(f"--minutes {arguments.minutes:g}: give a time above 0")
    try:
        cells = useful.steps(arguments.shards, target, arguments.rehearse and not arguments.list)
    except UserError as error:
        parser.error(f"--shards: {error}")
    steps = [*right.STEPS, *training_steps.STEPS, *networks.STEPS, *fast.STEPS, *cells]
    chosen = [step for step in steps if not arguments.only or step.name.startswith(tuple(arguments.only))]
    if not chosen:
        parser.error(f"no step begins with {arguments.only}; see --list")
    if arguments.list:
        print("\n".join(f"{step.part:<7} {step.limit_s:>4.0f} s  {step.name}" for step in chosen))
        return 0
    import torch

    if not torch.cuda.is_available() and not arguments.rehearse:
        parser.error("there is no CUDA device here; --rehearse runs every step at toy size on a CPU")
    context, here = _processes()
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--to {target}: {error.strerror}; give a folder")
    try:
        results, digest = Results(target, here["device"]), code_digest()
    except ValueError as error:
        parser.error(f"a file of results in {target} or {RESULTS} is damaged ({error}); remove it")
    log = target / "last-step.log"
    lock = (target / ".lock").open("w")  # held until this process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        parser.error(f"another run writes to {target}; wait for it, or give another folder with --to")
    print(", ".join(f"{key} {value}" for key, value in here.items() if value), f"code {digest}", flush=True)
    outcome = {"passed": 0, "failed": 0, "stopped": 0, "left out": 0, "not reached": 0}
    never_run = [
        step for step in chosen if results.of(step.part).get(step.name, {}).get("code") != digest + step.inputs
    ]
    for step in [*never_run, *(step for step in chosen if step not in never_run)]:
        before = results.of(step.part).get(step.name, {})
        done = before.get("state") == "passed" and before.get("code") == digest + step.inputs
        left_s = arguments.minutes * 60 - GRACE_S - (time.monotonic() - started)
        if (done and not arguments.again) or left_s < SHORTEST_S:
            outcome["passed" if done else "not reached"] += 1
            continue
        entry = run_step(step, arguments.rehearse, min(step.limit_s, left_s), log, context)
        entry |= {
            "code": digest + step.inputs,
            "when": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
            "machine": here,
        }
        results.write(step.part, step.name, entry)
        outcome[entry["state"]] += 1
        print(
            f"{entry['state']:<9} {entry['seconds']:>6.1f} s  {step.name}  {''.join(entry.get('error', '').splitlines()[-1:])}",
            flush=True,
        )
        print("".join(f"    {summary(row)}\n" for row in entry["rows"]), end="", flush=True)
    log.unlink(missing_ok=True)
    print(", ".join(f"{count} {state}" for state, count in outcome.items() if count))
    return int(outcome["passed"] + outcome["left out"] < len(chosen))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nInterrupted. The same command continues from here.", file=sys.stderr)
        sys.exit(130)
