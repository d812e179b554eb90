"""Grids on a real Ray cluster of three nodes: the results of `inline`, through a lost node and a signal too. Row R3."""

import json
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from grids import ONE, run_grid, start_grid
from test_survival import HANGS_S, LONG, newest_checkpoint, steps, texts, trial_of, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]  # one cluster at a time
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
BLOCKER = "import sys; sys.modules['ray'] = None"  # no such package


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of one core each on this machine, which ask for a token; drivers find it in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")  # these and what follows are read at Ray's import
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
        pytest.importorskip("ray")
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        for _ in range(2):
            nodes.add_node(**NODE)
        yield nodes
        nodes.shutdown()


@pytest.fixture(scope="module")
def elsewhere(finished, home, tmp_path_factory) -> Path:
    """Another home with the same corpus and noise, but no tokens and no models."""
    folder = tmp_path_factory.mktemp("shared folder ü")
    for part in ("corpora", "noise"):
        shutil.copytree(home / part, folder / part)
    return folder


@pytest.fixture
def start():
    """Start drivers, and leave none behind."""
    drivers = []

    def begin(*arguments):
        drivers.append(start_grid(*arguments))
        return drivers[-1]

    yield begin
    for driver in drivers:
        driver.kill()


def tables(printed: str, home: Path) -> str:
    """What a run printed, less where and how long."""
    return printed.replace(str(home), "HOME").rpartition("\nGrid ")[0]


def log(trial: Path) -> list[str]:
    return (trial / "train.jsonl").read_text().splitlines()


def node_of(cluster, pid: int):
    """The node whose raylet started a worker."""
    parent = int(subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True).stdout or 0)
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.list_all_nodes()}
    return raylets.get(parent)


def test_three_nodes_give_the_tokens_the_models_and_the_tables_of_inline(finished, home, cluster, elsewhere):
    result = run_grid(elsewhere, "--engine", "ray", "--address", cluster.address)
    assert result.returncode == 0, result.stderr[-2000:]
    assert tables(result.stdout, elsewhere) == tables(finished.stdout, home)
    assert texts(elsewhere, "smoke") == texts(home, "smoke")
    weights = list(elsewhere.glob("runs/trials/*/model/model.safetensors"))
    tokens = [path for path in (elsewhere / "tokens").rglob("*") if path.is_file()]
    assert len(weights) == 5
    assert any(path.parent.name == "codebooks" for path in tokens)
    for path in (*weights, *tokens):
        assert path.read_bytes() == (home / path.relative_to(elsewhere)).read_bytes(), path
    assert not list(elsewhere.rglob("*.lease"))


def test_r3_a_lost_node_costs_one_attempt_and_no_result(finished, home, cluster, elsewhere, start):
    changes = (*ONE, "train.steps=200", "snr_db.test=[clean]", "axes.seed=[40, 41]", "name=lost")
    ray = ("--engine", "ray", "--address", cluster.address)
    driver = start(elsewhere, *changes, *ray, "--checkpoint-every", "0.5")

    def removable():
        """A training with a checkpoint whose worker is not on the head, and its node."""
        for lease in elsewhere.glob("runs/trials/*_seed4?-*/train.lease"):
            node = node_of(cluster, json.loads(lease.read_text())["pid"])
            if node in cluster.worker_nodes and newest_checkpoint(lease.parent) > 20:
                return lease.parent, node
        return None

    trial, node = wait_for(removable, "a training on a node that is not the head")
    before = newest_checkpoint(trial)
    kept = [line for line in log(trial) if json.loads(line)["step"] <= before]
    cluster.remove_node(node, allow_graceful=False)
    try:
        _, said = driver.communicate(timeout=HANGS_S)
    finally:
        cluster.add_node(**NODE)
    assert driver.returncode == 0, said[-2000:]
    failures = [json.loads(line) for line in (trial / "failures.jsonl").read_text().splitlines()]
    assert [(failure["kind"], failure["again"]) for failure in failures] == [("lost_worker", True)]
    assert [json.loads(line)["step"] for line in log(trial)] == list(range(10, 201, 10))
    assert log(trial)[: len(kept)] == kept  # with their times: these steps were not done again
    assert len(list(elsewhere.glob("runs/trials/*_seed4?-*/failures.jsonl"))) == 1  # the other trial went on
    undisturbed = run_grid(home, *changes)
    assert undisturbed.returncode == 0, undisturbed.stderr[-2000:]
    assert texts(elsewhere, "lost") == texts(home, "lost")


@pytest.mark.parametrize(("where", "seed"), [("cluster", 50), ("machine", 51)])
def test_sigterm_leaves_a_checkpoint_and_inline_goes_on_from_there(finished, home, cluster, start, where, seed):
    options = ["--address", cluster.address] if where == "cluster" else ["--workers", "1"]
    changes = (*LONG, f"name=ray-{where}", f"seed={seed}")
    driver = start(home, *changes, "--engine", "ray", *options)
    trial = wait_for(lambda: trial_of(home, f"ray-{where}"), "the index")
    wait_for(lambda: steps(trial) > 20, "training")
    driver.send_signal(signal.SIGTERM)
    wait_for(lambda: newest_checkpoint(trial), "a checkpoint")
    _, said = driver.communicate(timeout=HANGS_S)
    assert driver.returncode == 128 + signal.SIGTERM, said[-2000:]
    assert "same command continues" in said
    assert "Traceback" not in said
    assert not list(trial.glob("*.lease"))
    reached, kept = newest_checkpoint(trial), log(trial)
    assert reached > 20
    again = start(home, *changes)
    wait_for(lambda: steps(trial) > reached, "more training")
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=HANGS_S)
    assert log(trial)[: len(kept)] == kept


def test_a_mistake_is_one_sentence(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    without = {"PYTHONPATH": str(tmp_path)}
    # the reason, [Errno ...], is that of a refused connection, not of a cluster that was waited for in vain
    nowhere, inline = ("--engine", "ray", "--address", "127.0.0.1:9"), ("--address", "127.0.0.1:9")
    for options, more, said in (
        (nowhere, {}, "error: There is no Ray cluster to be had at 127.0.0.1:9: [Errno"),
        (inline, {}, "error: --address is for --engine ray; leave it out, or choose that engine."),
        (nowhere, without, 'error: The engine `ray` needs the package ray: pip install -e ".[ray]"'),
    ):
        result = run_grid(tmp_path / "home", *options, **more)
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith(said)
        assert result.stderr.count("\n") == 1
