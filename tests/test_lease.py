"""Leases: one holder at a time, an abandoned one is found, a living one is left alone. R numbers: docs/guarantees.md."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from dmlm.engines.lease import Busy, HeldLease, Leases, _machine, live

on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def foreign(path, beat: int) -> None:
    """A lease of another machine."""
    record = {"token": "theirs", "host": "elsewhere", "machine": "another", "pid": 1, "beat": beat}
    path.write_text(json.dumps(record))


def contend(path, log, rounds: int) -> None:
    """Take the lease `rounds` times, and log when it is taken and released."""
    leases = Leases(beat_s=0.01)
    won = 0
    while won < rounds:
        try:
            with leases.hold(path):
                won += 1
                with open(log, "a") as file:
                    file.write("in\n")
                    file.flush()
                    time.sleep(0.002)
                    file.write("out\n")
        except Busy:
            time.sleep(0.001)


def hold_for_ever(path) -> None:
    with Leases(beat_s=0.01).hold(path):
        time.sleep(600)


def test_r4_many_processes_and_never_two_holders(tmp_path):
    context = multiprocessing.get_context("fork")
    path, log = tmp_path / "x.lease", tmp_path / "log"
    crowd = [context.Process(target=contend, args=(path, log, 15)) for _ in range(4)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
    assert log.read_text().split() == ["in", "out"] * 60
    assert not path.exists()
    assert list(tmp_path.iterdir()) == [log]


def test_a_second_holder_is_told_who_has_it(tmp_path):
    path = tmp_path / "trial" / "x.lease"
    with Leases().hold(path), pytest.raises(Busy, match=f"worked on by process {os.getpid()} on"), Leases().hold(path):
        pass
    assert not path.exists()


def test_r6_a_lease_that_stands_still_is_taken_over_after_the_grace_and_a_beating_one_is_not(tmp_path):
    path = tmp_path / "x.lease"
    leases = Leases(grace_s=0.15)
    foreign(path, 0)
    for beat in range(1, 8):  # 0.35 s in all, longer than the grace
        with pytest.raises(Busy, match="process 1 on elsewhere"), leases.hold(path):
            pass
        time.sleep(0.05)
        foreign(path, beat)
    with pytest.raises(Busy), leases.hold(path):
        pass
    time.sleep(0.2)
    with leases.hold(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_r34_a_clock_that_jumps_steals_nothing(tmp_path):
    path = tmp_path / "x.lease"
    leases = Leases(grace_s=5)
    foreign(path, 0)
    for jump in (-1e6, 1e6):  # the file looks ages old, then as if from the future
        os.utime(path, (time.time() + jump,) * 2)
        with pytest.raises(Busy), leases.hold(path):
            pass
    assert json.loads(path.read_text())["token"] == "theirs"


def test_what_a_dead_process_of_this_machine_held_is_free_at_once(tmp_path):
    path = tmp_path / "x.lease"
    child = multiprocessing.get_context("fork").Process(target=lambda: None)
    child.start()
    child.join()
    path.write_text(json.dumps({"token": "t", "host": "here", "machine": _machine(), "pid": child.pid, "beat": 3}))
    assert not live(path)
    with Leases().hold(path):
        assert live(path)


@on_linux
def test_a_stopped_process_of_this_machine_keeps_its_lease_until_it_dies(tmp_path):
    path = tmp_path / "x.lease"
    child = multiprocessing.get_context("fork").Process(target=hold_for_ever, args=(path,))
    child.start()
    while not path.exists():
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGSTOP)
    leases = Leases(grace_s=0.1)
    try:
        for _ in range(5):  # 0.3 s without a beat
            with pytest.raises(Busy, match=f"process {child.pid} on"), leases.hold(path):
                pass
            time.sleep(0.06)
    finally:
        child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # the child is not reaped yet, so its number stays in use
    assert not live(path)
    with leases.hold(path):
        pass
    child.join()


@on_linux
def test_another_process_that_got_the_number_of_a_dead_one_holds_nothing(tmp_path):
    path = tmp_path / "x.lease"
    record = {"token": "t", "host": "here", "machine": _machine(), "pid": os.getpid(), "started": "1", "beat": 3}
    path.write_text(json.dumps(record))
    assert not live(path)
    with Leases().hold(path):
        assert live(path)


def test_work_under_a_lease_that_was_taken_over_stops_and_says_so(tmp_path):
    path = tmp_path / "x.lease"
    with Leases().hold(path):
        held = HeldLease(path)
        held.confirm()
        foreign(path, 0)
        held.confirm_if_due()  # not due yet
        with pytest.raises(Busy, match="taken over by process 1 on elsewhere"):
            held.confirm()
    path.unlink()
    with pytest.raises(Busy, match="taken over by process 1 on elsewhere"), Leases().hold(path):
        fail_after_it(path)


def fail_after_it(path) -> None:
    foreign(path, 0)
    raise FileNotFoundError("what the other has moved")


def test_a_holder_that_lost_its_lease_does_not_take_the_new_one_away(tmp_path):
    path = tmp_path / "x.lease"
    with Leases(beat_s=0.01).hold(path):
        foreign(path, 0)
        time.sleep(0.05)
        assert json.loads(path.read_text())["token"] == "theirs"
    assert json.loads(path.read_text())["token"] == "theirs"


@pytest.mark.parametrize("content", ["", "{", "5", "[1]", '{"pid": 1}'])
def test_a_lease_that_a_loss_of_power_has_emptied_or_torn_is_abandoned_after_the_grace(tmp_path, content):
    path = tmp_path / "x.lease"
    path.write_text(content)
    leases = Leases(grace_s=0.0)
    leases.is_abandoned(path)  # seen for the first time
    assert leases.is_abandoned(path)
    with leases.hold(path):
        assert "token" in path.read_text()
