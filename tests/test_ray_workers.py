"""Environments on other machines: a Ray cluster of several nodes on this machine, some of which are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from auditor import act, play
from faulty_envs import FAULTS
from ray.cluster_utils import Cluster
from test_parallel import equal, played
from tiny_runs import plain_agent, tiny

import dreamer
from dreamer import agent as agents
from dreamer.errors import UserError
from dreamer.runtime.workers import Config, make_workers

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of ray's own modules
ROOT = Path(__file__).parent.parent
ALL = np.arange(3)
APART, TOGETHER = Config("ray", envs=3, timeout=1.0), Config("ray", envs=3, processes=1, timeout=1.0)
ways = pytest.mark.parametrize("config", [APART, TOGETHER], ids=["apart", "together"])


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    """A cluster with a head without actors, to which this process is connected, and two machines for actors."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def another(cluster) -> Iterator[None]:
    """After the test, adds a machine to replace the one that was killed."""
    yield
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder in which environments record their rows."""
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def crew_of(config: Config, folder: Path, **options):
    return make_workers(config, "faulty_envs:witness", {"folder": str(folder), **options}, seed=10)


def advance(crew, rng: np.random.Generator, count: int) -> list:
    out = []
    for _ in range(count):
        envs, step = crew.receive()
        out.append(step)
        crew.send(envs, np.eye(2, dtype=np.float32)[rng.integers(2, size=len(envs))])
    return out


def same(some: list, others: list) -> None:
    for a, b in zip(some, others, strict=True):
        np.testing.assert_equal(a._asdict(), b._asdict())


def homes() -> set[str]:
    """Returns the machines that run actors."""
    return {info["Address"]["NodeID"] for info in ray._private.state.actors().values() if info["State"] == "ALIVE"}


def kill_machine(cluster: Cluster) -> None:
    """Kills a machine that runs actors."""
    node = next(node for node in cluster.worker_nodes if node.node_id in homes())
    cluster.remove_node(node, allow_graceful=False)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def eventually(condition) -> bool:
    """Waits until a condition is true. Returns False after a generous limit."""
    for _ in range(600):
        if condition():
            return True
        threading.Event().wait(0.1)
    return False


@ways
def test_rows_are_those_of_inline_workers_to_the_bit(config):
    rows = []
    for where in (config, Config("inline", envs=3)):
        with make_workers(where, "CartPole-v1", seed=3) as crew:
            rows.append(advance(crew, np.random.default_rng(0), 60))
    same(*rows)
    assert sum(step.is_last.sum() for step in rows[0]) > 2


@ways
def test_restored_workers_continue_bit_for_bit(config):
    with make_workers(config, "CartPole-v1", seed=5) as crew:
        advance(crew, np.random.default_rng(1), 13)
        snapshot = crew.states()
        later = advance(crew, np.random.default_rng(2), 40)
    with make_workers(config, "CartPole-v1", seed=77) as crew:
        assert crew.restore(*snapshot) == {}
        same(later, advance(crew, np.random.default_rng(2), 40))


def test_actors_lie_on_several_machines_share_environments_and_import_no_jax():
    with make_workers(Config("ray", envs=8, processes=4), "test_workers:facts", seed=10) as crew:
        obs = crew.receive().step.obs
        nodes = homes()
        assert "8 environments in 4 actors of a Ray cluster" in crew.describe()
    pids, threads = obs["pid"].tolist(), obs["thread"].ravel().tolist()
    assert pids[::2] == pids[1::2] and len(set(pids)) == 4 and threads[0] != threads[1]
    assert len(nodes) > 1 and not obs["jax"].any()
    assert eventually(lambda: all(map(gone, pids))), "actors are left after close"


def test_an_environment_that_blocks_delays_only_itself(tmp_path):
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    with make_workers(Config("ray", envs=3, processes=1), "test_workers:facts", {"wait_for": fifo}, seed=10) as crew:
        crew.receive()
        crew.send(ALL, np.eye(4, dtype=np.float32)[:3])
        seen: list[int] = []
        while len(seen) < 20:
            ready = crew.receive(min_ready=1)
            seen += ready.streams.tolist()
            crew.send(ready.streams, np.eye(4, dtype=np.float32)[ready.streams])
        assert set(seen) == {0, 2}
        open(fifo, "w").close()
        while 1 not in (ready := crew.receive(min_ready=1)).streams:
            crew.send(ready.streams, np.eye(4, dtype=np.float32)[ready.streams])


@ways
@pytest.mark.parametrize(
    "how, kind, text",
    [
        ("raise", "raised", "env 'faulty_envs:witness #1' failed: KeyError: 'lost' ("),
        ("nan", "broke its space", "env 'faulty_envs:witness #1', episode 1, step 1: reward is nan"),
        ("exit", "killed", "the Ray actor of env 'faulty_envs:witness #"),
        ("kill", "killed", "the Ray actor of env 'faulty_envs:witness #"),
        ("hang", "hung", "env 'faulty_envs:witness #1' has not answered for 1 seconds (workers.timeout)"),
    ],
)
def test_an_environment_that_fails_is_replaced_and_reported(config, folder, how, kind, text):
    with crew_of(config, folder, faults=[how], rate=1.0, only=11) as crew:
        first = crew.receive()
        crew.send(first.streams, act(first))
        ready, (incident,) = crew.receive(), crew.incidents()
    alone = config is APART or kind in ("raised", "broke its space")
    assert incident.envs == ((1,) if alone else (0, 1, 2)) and incident.kind == kind
    assert incident.text.startswith(text) and "\n" not in incident.text
    lives = ready.step.obs["life"].ravel().tolist()
    assert lives[1] == 14 and all(life in (seed, seed + 3) for life, seed in zip(lives, (10, 11, 12), strict=True))
    assert not alone or lives == [10, 14, 12]


def test_no_row_is_lost_repeated_or_mixed_under_failures_and_a_killed_machine(cluster, another, folder):
    config = Config("ray", envs=6, timeout=30.0, restarts=10)
    faults = [how for how in FAULTS if how != "hang"]
    with crew_of(config, folder, faults=faults, rate=0.002, spared=1) as crew:
        audit, incidents = play(crew, 2000, 2, 0.005, halfway=lambda: kill_machine(cluster))
    assert any("node" in incident.text for incident in incidents), [incident.text for incident in incidents]
    died = sum(len(incident.envs) for incident in incidents if incident.kind == "killed")
    audit.check(folder, lost_with_others=died)


@pytest.mark.slow
def test_a_run_continues_when_a_machine_is_killed(cluster, another, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(agents, "make", lambda config, spec, **_: plain_agent(spec))
    options = {"workers__backend": "ray", "workers__envs": 4, "lockstep": False, "env_steps": 1500}
    metrics = tmp_path / "run" / "metrics.jsonl"

    def kill():
        assert eventually(lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
        kill_machine(cluster)

    killer = threading.Thread(target=kill)
    killer.start()
    dreamer.train(tiny(tmp_path / "run", **options))
    killer.join()
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert 1500 <= lines[-1]["env_steps"] < 1504  # rows of several environments come at once
    assert sum(line.get("collect/incidents", 0) for line in lines) >= 1
    assert "is gone" in capfd.readouterr().out


@pytest.mark.parametrize("name, message", [("test_workers:refuses", "cannot be made"), ("Cartpol-v1", "CartPole-v1")])
def test_environment_that_cannot_be_made_ends_the_start(name, message):
    with pytest.raises(UserError, match=message):
        make_workers(APART, name)


def test_too_many_failures_end_the_run_with_the_traceback_of_the_environment(folder):
    with crew_of(Config("ray", envs=1, restarts=1), folder, faults=["raise"], rate=1.0) as crew:
        with pytest.raises(UserError, match="incident 2 in a row") as caught:
            while ready := crew.receive():
                crew.send(ready.streams, act(ready))
    assert 'raise KeyError("lost")' in caught.value.__notes__[0]


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs the package 'ray': pip install .*\[distributed\]"):
        make_workers(APART, "CartPole-v1")


@pytest.mark.parametrize(
    "address, message", [("127.0.0.1:9", "no Ray cluster answers"), ("here:abc", "is not 'auto'")]
)
def test_an_address_where_no_cluster_is_ends_the_start_at_once(monkeypatch, address, message):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=message):
        make_workers(Config("ray", envs=1, address=address), "CartPole-v1")


SCRIPT = """
import os, signal
from dreamer.runtime.workers import Config, make_workers
crew = make_workers(Config("ray", envs=2, processes=1, address="local"), "test_workers:facts")
import psutil
print(*(child.pid for child in psutil.Process().children(recursive=True) if "Agent" not in child.name()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_cluster_started_by_a_killed_run_ends_with_it(tmp_path):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    pids = [int(pid) for pid in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(pids) > 2
    # Ray's two agents (DashboardAgent, RuntimeEnvAgent) look for their dead cluster for a minute before they end.
    assert eventually(lambda: all(map(gone, pids)))


@ways
def test_agents_of_an_environment_come_together_as_inline(config):
    equal(played(config, 12), played(Config("inline", envs=3), 12))
