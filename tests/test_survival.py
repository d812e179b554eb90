"""What a whole run survives: signals, killed processes, a second driver, a full disk. R numbers: docs/guarantees.md."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from grids import ONE, environment, run_grid, run_here, start_grid

LONG = (*ONE, "train.steps=1000000", "snr_db.test=[clean]", "--checkpoint-every", "1000")
HANGS_S = 600  # what takes so long, on however busy a machine, would never end; by itself LONG takes an hour or more
AT_ONCE = 2000  # steps that LONG does in the 10 s or so that a signal may take; it counts steps since seconds hang on the load


def wait_for(condition, what: str, limit_s: float = HANGS_S):
    """The condition's value once it is true."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come in {limit_s} s")


def steps(trial: Path) -> int:
    """How far a training says that it is."""
    try:
        return int(json.loads((trial / "train.jsonl").read_text().splitlines()[-1])["step"])
    except (OSError, IndexError, ValueError):
        return 0


def further(trial: Path, step: int) -> bool:
    return steps(trial) > step


def newest_checkpoint(trial: Path) -> int:
    found = sorted((trial / "checkpoints").glob("step-*.sha256"))
    return int(found[-1].stem.removeprefix("step-")) if found else 0


def ended(process: int) -> bool:
    """Whether a process is over, even if nobody has asked how: in a container that may be so for long."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True


def trial_of(home: Path, name: str) -> Path | None:
    index = home / "runs" / name / "grid.json"
    return (index.parent / json.loads(index.read_text())["cells"][0]["trial"]).resolve() if index.is_file() else None


def texts(home: Path, name: str) -> dict[str, str]:
    """What was recognised in every evaluation of a grid."""
    index = home / "runs" / name / "grid.json"
    folders = [e["folder"] for cell in json.loads(index.read_text())["cells"] for e in cell["evaluations"]]
    return {folder: (index.parent / folder / "utterances.jsonl").read_text() for folder in folders}


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGINT, signal.SIGTERM), pytest.param((signal.SIGUSR1, signal.SIGUSR1), marks=pytest.mark.slow)],
)
def test_r21_every_signal_leaves_a_checkpoint_and_the_same_command_goes_on(finished, home, signals):
    reached, name = 0, signals[0].name
    for number in signals:
        driver = start_grid(home, *LONG, f"name={name}", f"seed={100 + signals[0]}")
        trial = wait_for(lambda: trial_of(home, name), "the index")
        wait_for(partial(further, trial, reached + 20), "training")
        asked = steps(trial)
        driver.send_signal(number)
        _, said = driver.communicate(timeout=HANGS_S)
        assert driver.returncode == 128 + number, said[-2000:]
        assert "same command continues" in said
        assert "Traceback" not in said
        assert newest_checkpoint(trial) >= reached + 20
        reached = newest_checkpoint(trial)
        assert asked <= reached < asked + AT_ONCE
        assert steps(trial) <= reached  # it was the last thing that was done
        assert not list(trial.glob("*.lease"))


def test_a_killed_driver_leaves_a_checkpoint_and_no_process_behind(finished, home):
    driver = start_grid(home, *LONG, "name=orphan", "seed=4")
    trial = wait_for(lambda: trial_of(home, "orphan"), "the index")
    wait_for(lambda: steps(trial) > 20, "training")
    (lease,) = trial.glob("*.lease")
    worker = json.loads(lease.read_text())["pid"]
    driver.kill()
    driver.wait()
    wait_for(lambda: ended(worker) and not lease.exists(), "the end of the worker")
    assert newest_checkpoint(trial) > 20


@pytest.mark.slow
def test_a_signal_to_the_whole_group_leaves_a_checkpoint_too(finished, home):
    driver = start_grid(home, *LONG, "name=group", "seed=1")
    trial = wait_for(lambda: trial_of(home, "group"), "the index")
    wait_for(lambda: steps(trial) > 20, "training")
    os.killpg(driver.pid, signal.SIGTERM)  # as a batch system does
    _, said = driver.communicate(timeout=HANGS_S)
    assert driver.returncode == 128 + signal.SIGTERM, said[-2000:]
    assert newest_checkpoint(trial) > 20


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(finished, home):
    driver = start_grid(home, *LONG, "name=twice", "seed=2")
    trial = wait_for(lambda: trial_of(home, "twice"), "the index")
    wait_for(lambda: steps(trial) > 20, "training")
    (worker,) = [json.loads(path.read_text())["pid"] for path in trial.glob("*.lease")]
    os.kill(worker, signal.SIGSTOP)  # it will leave no checkpoint
    driver.send_signal(signal.SIGINT)
    said = iter(driver.stderr.readline, "")
    assert any("Once more ends at once" in line for line in said)  # the first is noticed
    assert driver.poll() is None
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=HANGS_S)
    assert driver.returncode == 128 + signal.SIGINT
    assert not newest_checkpoint(trial)  # so it did not wait for one
    wait_for(lambda: ended(worker), "the end of the worker")


@pytest.mark.slow
def test_the_time_limit_leaves_a_checkpoint_and_its_own_exit_code(finished, home):
    for limit in ("10", "20", "40"):  # a busy machine has not begun to train so soon
        result = run_grid(home, *LONG, "name=limit", "seed=3", "--time-limit", limit)
        assert result.returncode == 75, result.stderr[-2000:]
        assert "The time limit is over" in result.stderr
        if newest_checkpoint(trial_of(home, "limit")):
            break
    else:
        raise AssertionError("no checkpoint was left")


def test_r2_a_killed_worker_is_replaced_and_the_others_go_on(finished, home):
    changes = (*ONE, "train.steps=300", "snr_db.test=[clean]", "axes.seed=[10, 11]", "name=killed", "--workers", "2")
    driver = start_grid(home, *changes, "--checkpoint-every", "0.5")
    trial = wait_for(lambda: trial_of(home, "killed"), "the index")
    wait_for(lambda: newest_checkpoint(trial) > 20, "a checkpoint")
    before = newest_checkpoint(trial)
    (worker,) = [json.loads(path.read_text())["pid"] for path in trial.glob("*.lease")]
    os.kill(worker, signal.SIGKILL)
    _, said = driver.communicate(timeout=HANGS_S)
    assert driver.returncode == 0, said[-2000:]
    records = [json.loads(line) for line in (trial / "failures.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["again"]) for r in records] == [("lost_worker", True)]
    seen = [json.loads(line)["step"] for line in (trial / "train.jsonl").read_text().splitlines()]
    assert seen == list(range(10, 301, 10))
    assert before > 20
    other = [path for path in trial.parent.glob("*_seed11-*") if path.name.split("_seed")[0] == "opt-nano_A"]
    assert not any((path / "failures.jsonl").exists() for path in other)


def test_r4_r30_two_drivers_share_a_folder_and_give_the_table_of_one(finished, home, tmp_path):
    changes = (*ONE, "train.steps=60", "snr_db.test=[clean, 0]", "axes.seed=[20, 21, 22]")
    drivers = [start_grid(home, *changes, f"name=driver{number}", "--workers", "1") for number in range(2)]
    for driver in drivers:
        _, said = driver.communicate(timeout=HANGS_S)
        assert driver.returncode == 0, said[-2000:]
        assert "Traceback" not in said
    shared = texts(home, "driver0")
    assert shared == texts(home, "driver1")
    assert len(shared) == 6
    for folder in {folder.split("/evals/")[0] for folder in shared}:
        trial = (home / "runs" / "driver0" / folder).resolve()
        seen = [json.loads(line)["step"] for line in (trial / "train.jsonl").read_text().splitlines()]
        assert seen == list(range(10, 61, 10))  # one writer
        assert not (trial / "failures.jsonl").exists()
        assert not list(trial.glob("*.lease"))
        shutil.rmtree(trial)
    again = run_grid(home, *changes, "name=driver0", "--workers", "2")
    assert again.returncode == 0, again.stderr[-2000:]
    assert texts(home, "driver0") == shared


@pytest.mark.slow
def test_r4_two_drivers_begin_with_nothing(tmp_path):
    """Corpus, codebook and tokens too are made by one of them, while the other waits."""
    drivers = [start_grid(tmp_path, *ONE, "train.steps=4", "snr_db.test=[clean]", f"name=d{n}") for n in range(2)]
    said = [driver.communicate(timeout=HANGS_S) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert sum("waiting for it" in out for out, _ in said) == 1
    assert texts(tmp_path, "d0") == texts(tmp_path, "d1")


def test_r16_a_lost_or_damaged_index_is_made_again(finished, home):
    assert run_here(home).returncode == 0  # other tests have changed grids of this name
    index = home / "runs" / "smoke" / "grid.json"
    before = index.read_text()
    for damage in (index.unlink, lambda: index.write_text("{")):
        damage()
        assert run_here(home).returncode == 0
        assert index.read_text() == before


def test_r19_the_exit_code_and_the_last_lines_name_what_is_missing(finished, home):
    result = run_grid(
        home, *ONE, "train.steps=12", "axes.train.lr=[0.001, 1.0e+30]", "train.clip_norm=1.0e+30", "name=nan"
    )
    assert result.returncode == 1
    assert "1 of 2 cells are missing" in result.stderr
    assert "the loss became" in result.stderr.strip().splitlines()[-1]
    status = subprocess.run(
        [Path(sys.executable).with_name("dmlm"), "grid", "status", "nan"],
        env=environment(home),
        capture_output=True,
        text=True,
    )
    assert status.returncode == 1
    assert "not_finite" in status.stdout
    assert "1 done, 1 failed" in status.stdout


def test_r19_what_failed_in_one_cell_is_named_although_another_of_the_same_model_succeeds(finished, home):
    changes = (*ONE, "train.steps=4", "snr_db.test=[clean]", "axes.decode.max_new_tokens=[64, 66]", "name=dec")
    assert run_here(home, *changes).returncode == 0
    first, second = (home / "runs" / "dec" / folder for folder in texts(home, "dec"))
    for folder in (first, second):
        shutil.rmtree(folder)
    (first / "utterances.jsonl").mkdir(parents=True)  # where a file is to be
    result = run_here(home, *changes)
    assert result.returncode == 1, result.stderr[-2000:]
    assert "1 of 2 cells are missing" in result.stderr
    assert "Is a directory" in result.stderr.strip().splitlines()[-1]
    assert (second / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="needs to mount a small tmpfs")
def test_r14_a_full_disk_is_a_sentence_and_nothing_is_lost(finished, home, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    used = sum(
        p.stat().st_size for part in ("corpora", "noise", "tokens") for p in (home / part).rglob("*") if p.is_file()
    )
    size = used // 1024 + 2600  # kB: room for some checkpoints, not for the model too
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(small)]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        for part in ("corpora", "noise", "tokens"):
            shutil.copytree(home / part, small / part)
        changes = (*ONE, "train.steps=60", "snr_db.test=[clean]", "name=full", "--checkpoint-every", "0")
        full = run_grid(small, *changes)
        assert full.returncode == 1, full.stderr[-2000:]
        assert "no space is left" in full.stderr or "No space left on device" in full.stderr
        assert "Traceback" not in full.stderr
        assert not list(small.rglob("*.part"))
        subprocess.run(["mount", "-o", f"remount,size={size + 60000}k", str(small)], check=True)
        after = run_grid(small, *changes)
        assert after.returncode == 0, after.stderr[-2000:]
        whole = run_grid(home, *changes)
        assert whole.returncode == 0, whole.stderr[-2000:]
        assert texts(small, "full") == texts(home, "full")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


KILLER = """
import os, signal
_left = [int(os.environ["KILL_AFTER"])]
def _mortal(function):
    def called(*args, **kwargs):
        if os.environ["KILL_IN"] in repr(args):
            _left[0] -= 1
            if _left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return called
for _name in ("replace", "fsync", "link", "unlink"):
    setattr(os, _name, _mortal(getattr(os, _name)))
"""


@pytest.mark.slow
def test_r1_r9_killed_at_every_write_until_done_it_loses_nothing(finished, home, tmp_path):
    """SIGKILL before the n-th file operation of any process, for n = 0, 1, 2 ..., on one folder, until a run survives."""
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    changes = (*ONE, "train.steps=40", "snr_db.test=[clean]", "name=mortal", "--checkpoint-every", "0.2")
    whole = run_grid(home, *changes)
    assert whole.returncode == 0, whole.stderr[-2000:]
    expected = texts(home, "mortal")
    trial = trial_of(home, "mortal")
    shutil.rmtree(trial)
    reached, kills = 0, 0
    for number in range(200):
        mortal = {"PYTHONPATH": str(tmp_path), "KILL_AFTER": str(number), "KILL_IN": str(trial)}
        result = run_grid(home, *changes, **mortal)
        assert newest_checkpoint(trial) >= reached or (trial / "result.json").exists()
        reached = newest_checkpoint(trial)
        if result.returncode == 0:
            break
        kills += 1
    assert result.returncode == 0
    assert kills > 5
    assert texts(home, "mortal") == expected
