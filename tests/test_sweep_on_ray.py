"""Whole sweeps through Ray Tune, on a cluster of two nodes on this machine, with processes that train in no time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import quick_sweep
import ray
import sweep_child
import yaml
from ray.cluster_utils import Cluster

from dreamer.apps import cli
from dreamer.apps.report.sweep import read_sweep
from dreamer.apps.sweep import local, planning, ray_inherit, state

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of ray's own modules
ROOT = Path(__file__).parent.parent
GAIN, STEPS, EVERY = sweep_child.GAIN, 160, 20


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    """A cluster of two nodes, to which this process is connected."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"  # the workers have it
    os.environ["RAY_worker_niceness"] = "0"  # so that other tests do not keep them waiting
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    del os.environ["RAY_worker_niceness"]
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Programs are those of `sweep_child`, and nothing is planned."""
    monkeypatch.setattr(local, "CHILD", "sweep_child")
    monkeypatch.setattr(planning, "needs_of", quick_sweep.needs_of)


def command(tmp_path: Path, axes: dict, *words: str, **top: Any) -> list[str]:
    """Writes the file of a sweep, and returns the words that run it on Ray."""
    file = tmp_path / "sweep.yaml"
    base = {"env_steps": STEPS, "eval.every": EVERY, "eval.episodes": 1}
    file.write_text(yaml.safe_dump({"base": [base], "axes": axes, **top}))
    root = str(tmp_path / "sweep")
    return ["sweep", str(file), "--run-dir", root, "--on", "ray", "--compilation-cache", "off", *words]


def swept(tmp_path: Path, axes: dict, *words: str, **top: Any) -> int:
    """Runs a sweep on Ray, and returns its exit code."""
    return cli.main(command(tmp_path, axes, *words, **top))


def starts(root: Path) -> dict[str, int]:
    """Returns how often each trial has started."""
    return {path.parent.name: len(path.read_text().split()) for path in root.rglob("starts")}


def standings(root: Path) -> dict[str, str]:
    known = state.read(root)
    assert known
    return {name: state.standing(root, known, name, STEPS) for name in known.trials}


def evaluations(root: Path, name: str) -> list[float]:
    return [json.loads(line)["eval/return"] for line in (root / name / "metrics.jsonl").read_text().splitlines()]


def test_a_failed_trial_is_reported_and_the_others_go_on_and_nothing_is_run_twice(tmp_path, capsys):
    root = tmp_path / "sweep"
    assert swept(tmp_path, {GAIN: [9, 13, 17, 19]}) == 1
    assert standings(root) == {"entropy=9": "done", "entropy=13": "failed", "entropy=17": "done", "entropy=19": "done"}
    assert starts(root) == {"entropy=9": 1, "entropy=13": 1, "entropy=17": 2, "entropy=19": 2}
    assert state.failure(root, "entropy=13") == state.Failure("it fails", 2)
    assert "it fails" in capsys.readouterr().out
    assert swept(tmp_path, {GAIN: [9, 13, 17, 19, 7]}) == 1
    assert starts(root) == {"entropy=9": 1, "entropy=13": 1, "entropy=17": 2, "entropy=19": 2, "entropy=7": 1}
    assert not (root / "ray" / "stop").exists()


def test_asha_stops_what_is_behind_and_the_stopped_trial_stands_as_stopped_early(tmp_path, capsys):
    root = tmp_path / "sweep"
    words = ("--ray.scheduler", "asha", "--ray.grace-period", f"{EVERY}", "--ray.reduction-factor", "2", "--jobs", "1")
    assert swept(tmp_path, {GAIN: [9, 8, 2, 1]}, *words) == 0
    assert standings(root)["entropy=9"] == "done"
    assert [standings(root)[f"entropy={gain}"] for gain in (2, 1)] == ["stopped early", "stopped early"]
    assert state.early(root, "entropy=1") == state.Early("asha", EVERY, 1.0 * EVERY)
    assert "stopped early" in capsys.readouterr().out
    reported = {trial.name: (trial.status, trial.cause) for trial in read_sweep(root).trials}
    assert reported["entropy=1"] == ("stopped early", "asha stopped it at 20 steps with 20")
    before = starts(root)
    assert swept(tmp_path, {GAIN: [9, 8, 2, 1]}, *words) == 0 and starts(root) == before


def test_pbt_lets_the_worst_go_on_from_the_best_through_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "needs_of", quick_sweep.one_program)
    root = tmp_path / "sweep"
    words = ("--ray.scheduler", "pbt", "--ray.perturb-every", "60", "--ray.resample", "0")
    assert swept(tmp_path, {GAIN: [9.0, 8.0, 7.0, 6.0]}, *words) == 0
    assert set(standings(root).values()) == {"done"}
    lineage = ray_inherit.lineage(root)
    assert [one.env_steps for one in lineage] == [60, 120]
    assert lineage[0].member == "entropy=6" and lineage[0].parent == "entropy=9"
    learned = {f"entropy={gain:g}": 60.0 * gain for gain in (9, 8, 7, 6)}
    values = {f"entropy={gain:g}": gain for gain in (9.0, 8.0, 7.0, 6.0)}
    for one, steps in zip(lineage, (60, STEPS - 120), strict=True):
        learned[one.member], values[one.member] = learned[one.parent], one.values[GAIN]
        learned = {name: value + steps * values[name] for name, value in learned.items()}
    assert {name: evaluations(root, name)[-1] for name in learned} == pytest.approx(learned)


def test_tpe_suggests_values_that_are_recorded_and_nothing_is_run_twice(tmp_path):
    root, axes = tmp_path / "sweep", {GAIN: {"loguniform": [5, 9]}}
    assert swept(tmp_path, axes, search="tpe", samples=3) == 0
    first = standings(root)
    assert len(first) == 3 and set(first.values()) == {"done"}
    assert all(5 <= trial.values[GAIN] <= 9 for trial in read_sweep(root).trials)
    assert swept(tmp_path, axes, search="tpe", samples=5) == 0
    assert [*standings(root)][:3] == [*first] and len(standings(root)) == 5
    assert set(starts(root).values()) == {1}
    with contextlib.suppress(FileNotFoundError):
        assert not any((root / "failed").iterdir())


# ---- a cluster of its own


@contextlib.contextmanager
def launched(tmp_path: Path, axes: dict, *more: str) -> Iterator[subprocess.Popen]:
    """Starts a sweep in a process and, unless `more` has an address, in a cluster of its own."""
    words = [sys.executable, str(ROOT / "tests" / "quick_sweep.py"), *command(tmp_path, axes, *more)]
    folder = tmp_path / "t"
    folder.mkdir(exist_ok=True)
    own = {**os.environ, "TMPDIR": str(folder)}
    own.pop("RAY_ADDRESS", None)
    with open(tmp_path / "log", "a") as log, subprocess.Popen(words, env=own, stdout=log, stderr=log) as process:
        yield process


def wait_for(condition: Callable[[], bool], process: subprocess.Popen | None = None, within: float = 600.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.1)


def processes_of(*texts: str) -> list[str]:
    """Returns the command lines that name one of the texts."""
    found = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    return [line for line in found if any(text in line for text in texts)]


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


@pytest.mark.slow
def test_a_killed_launcher_goes_on_and_a_stopped_one_leaves_nothing_behind():
    memory = shared_memory()
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as short:  # sockets have short paths
        tmp_path = Path(short)
        root, axes = tmp_path / "sweep", {GAIN: [9, 2]}
        with launched(tmp_path, axes, "--jobs", "2") as process:
            wait_for(lambda: set(starts(root)) == {"entropy=9", "entropy=2"}, process)
            process.kill()
        wait_for(lambda: not processes_of(short))
        assert list((tmp_path / "t").glob("dreamer-ray-*"))
        with launched(tmp_path, axes, "--jobs", "2") as process:
            wait_for(lambda: starts(root)["entropy=2"] == 2, process)
            process.send_signal(signal.SIGTERM)
            process.wait(600)
        assert process.returncode == 143, (tmp_path / "log").read_text()
        assert standings(root)["entropy=2"] == "stopped"
        assert starts(root)["entropy=9"] <= 2  # it may have been killed before its end
        wait_for(lambda: not processes_of(short))
        assert not list((tmp_path / "t").glob("dreamer-ray-*")) and not (root / "ray" / "session.json").exists()
        assert shared_memory() <= memory


@pytest.mark.slow
def test_a_program_whose_node_is_killed_goes_on_on_another(tmp_path):
    """The head of the cluster runs no programs. Killing a node kills its raylet, and with it the workers of Ray."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        root = tmp_path / "sweep"
        with launched(tmp_path, {GAIN: [21, 9]}, "--ray.address", cluster.address) as process:
            wait_for(lambda: "entropy=21" in starts(root), process)
            cluster.add_node(num_cpus=1)
            cluster.remove_node(node, allow_graceful=False)
            wait_for(lambda: starts(root)["entropy=21"] == 2, process)
            assert process.wait(600) == 0, (tmp_path / "log").read_text()
        assert starts(root) == {"entropy=21": 2, "entropy=9": 1}
        assert set(standings(root).values()) == {"done"}
    finally:
        cluster.shutdown()
