"""Several processes train one run together."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import threading
from types import SimpleNamespace

import hosts_run
import jax
import killed_run
import numpy as np
import pytest
from test_resume import state_of
from tiny_runs import lines, tiny

import dreamer
from dreamer.apps.sweep import command, slurm
from dreamer.apps.verify import verify_run
from dreamer.config import load
from dreamer.errors import UserError
from dreamer.runtime.devices.link import Link, Server
from dreamer.runtime.files import checkpoint_files
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.files.manifest import FORMAT, Files, Manifest
from dreamer.runtime.files.sealed import Seal
from dreamer.runtime.hosts import parts as host_parts
from dreamer.runtime.hosts import settings as shared
from dreamer.runtime.hosts.host import Host
from dreamer.runtime.log.logger import Logger
from dreamer.runtime.run import process_files
from dreamer.runtime.run.process import Place
from dreamer.runtime.run.stopping import Stopped
from dreamer.runtime.workers.interface import WorkerPlan

# --- the connections between processes --------------------------------------------------------------


def side_by_side(count: int, do) -> list:
    """Calls do(index, link) in a thread for each of `count` connected links, and returns their results."""
    server, results, lost = Server(["localhost"]), [None] * count, [[] for _ in range(count)]

    def run(index):
        link = Link(index, f"process {index}", server if index == 0 else server.meeting, count, lost[index].append)
        results[index] = do(index, link)
        link.close()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


def test_an_exchange_gives_the_values_of_all_to_all():
    def do(index, link):
        found = [link.exchange({"round": k, "from": index}) for k in range(50)]
        link.leave()
        return found

    expected = [[{"round": k, "from": i} for i in range(3)] for k in range(50)]
    assert side_by_side(3, do) == [expected] * 3


@contextlib.contextmanager
def linked(count: int):
    """Gives links, for each an event that is set when it reports a loss, and what they have reported."""
    told, events = [""] * count, [threading.Event() for _ in range(count)]

    def lost(index):
        def report(line):
            told[index] = line
            events[index].set()

        return report

    server, links = Server(["localhost"]), [None] * count

    def connect(index):
        links[index] = Link(index, f"number {index}", server if index == 0 else server.meeting, count, lost(index))

    threads = [threading.Thread(target=connect, args=(index,)) for index in range(count)]
    [thread.start() for thread in threads]
    [thread.join(timeout=60) for thread in threads]
    try:
        yield links, events, told
    finally:
        for link in links:
            link.close()


@pytest.mark.parametrize("gone", [0, 2])
def test_all_are_told_the_name_of_the_process_that_is_gone(gone):
    others = [i for i in range(3) if i != gone]
    with linked(3) as (links, events, told):
        links[gone].close()  # without a farewell, as the kernel does when it kills a process
        assert all(events[i].wait(30) for i in others)
        assert {told[i] for i in others} == {f"number {gone} is gone"}


def test_a_process_that_fails_tells_the_others_why():
    with linked(3) as (links, events, told):
        links[1].leave("the disk is full")
        assert events[0].wait(30) and events[2].wait(30)
        assert told[0] == told[2] == "number 1: the disk is full"


def test_a_process_that_is_done_alarms_nobody():
    with linked(2) as (links, events, _):
        links[1].leave()
        links[1].close()
        links[0]._threads[0].join(timeout=30)  # it has read the end of the connection
        assert not events[0].is_set()


def test_a_stranger_cannot_connect():
    server, links = Server(["localhost"]), []
    thread = threading.Thread(target=lambda: links.append(Link(0, "number 0", server, 2, print)))
    thread.start()
    with pytest.raises(UserError, match="process 0 at localhost ended before all processes had connected"):
        Link(1, "stranger", server.meeting._replace(token="guessed"), 2, print)
    links.append(Link(1, "number 1", server.meeting, 2, print))
    thread.join(timeout=60)
    for link in links:
        link.leave()
        link.close()


# --- agreeing ---------------------------------------------------------------------------------------


def hosts_of(every: list, index: int = 0) -> Host:
    """Returns a Host whose exchanges return `every`."""
    host = Host.__new__(Host)
    host.agreed, host.failed, host.place = None, False, Place(index, len(every))
    host._link = SimpleNamespace(names=[f"process {i}" for i in range(len(every))])
    host.exchange = lambda value: every
    return host


def test_an_error_of_one_process_is_raised_in_all_with_its_name():
    every = [{"value": 1}, {"error": "no disk"}]
    with pytest.raises(UserError, match="process 1 failed: no disk"):
        hosts_of(every).together(lambda: 1)
    own = UserError("no disk")

    def fail():
        raise own

    with pytest.raises(UserError) as caught:
        hosts_of(every, 1).together(fail)
    assert caught.value is own


def test_a_signal_to_one_process_stops_all():
    with pytest.raises(Stopped) as stop:
        hosts_of([{}, {"signal": signal.SIGTERM}]).check([{}, {"signal": signal.SIGTERM}])
    assert stop.value.code == 143


def test_processes_that_were_not_started_alike_are_refused_by_name():
    told = []
    host = hosts_of([])
    host.exchange = lambda value: told.append(value) or [value]
    shared.compare(host, tiny(pathlib.Path("run")), "probes:both", {"resume": "no"})
    other = {**told[0], "the version of jax": "0.1", "replay.batch_size": "8"}
    with pytest.raises(UserError) as caught:
        shared.compare(hosts_of([told[0], told[0], other]), tiny(pathlib.Path("run")), "probes:both", {"resume": "no"})
    expected = [
        f"the version of jax is {jax.__version__} in process 0 and 1, 0.1 in process 2",
        "replay.batch_size is 2 in process 0 and 1, 8 in process 2",
    ]
    assert str(caught.value) == f"the processes differ: {'; '.join(expected)}"


def test_processes_may_differ_in_their_number():
    config = load(overrides={"devices.coordinator": "a:1", "devices.processes": 2, "devices.process_id": 1})
    told = []
    host = hosts_of([])
    host.exchange = lambda value: told.append(value) or [value]
    shared.compare(host, config, "x", {})
    assert not {"devices.process_id", "devices.coordinator"} & told[0].keys()


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"loop": "device"}, "loop device is not possible with devices.coordinator"),
        ({"collect": "thread"}, "collect thread is not possible with devices.coordinator"),
        ({"replay.on_device": True}, "replay.on_device is not possible with devices.coordinator"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(given, expected):
    with pytest.raises(UserError, match=expected):
        shared.check(load(overrides=given))


def test_a_population_in_several_processes_is_refused():
    devices = {"devices.coordinator": "a:1", "devices.processes": 2, "devices.process_id": 1}
    config = load(overrides={**devices, "population.seeds": 2})
    with pytest.raises(UserError, match="a population trains in one process; leave out devices.coordinator"):
        dreamer.train(config)


# --- shares -----------------------------------------------------------------------------------------


def test_the_environments_of_all_processes_are_those_of_one():
    alone = WorkerPlan("x", {}, 1, 7, None, 6)
    shares = [WorkerPlan("x", {}, 1, 7, None, 2, first=Place(p, 3).envs(6).start, total=6) for p in range(3)]
    for resets in (0, 1, 5):
        seeds = [share.seed_of(number, resets) for share in shares for number in range(2)]
        assert seeds == [alone.seed_of(number, resets) for number in range(6)]
    assert [share.named(1) for share in shares] == ["x #1", "x #3", "x #5"]


def test_a_share_has_its_part_of_everything():
    config = load(overrides={"workers.envs": 8, "workers.processes": 3, "replay.batch_size": 16, "env_steps": 101})
    own = Place(1, 2).config(config)
    assert (own.workers.envs, own.workers.processes, own.replay.batch_size, own.env_steps) == (4, 2, 8, 51)
    assert Place(0, 1).config(config) == config


def piece(first: int, envs: int, agents: int = 1) -> process_files.Piece:
    """Returns the state of a process with `envs` environments, in which every value tells where it belongs."""
    streams = np.arange(first * agents, (first + envs) * agents)
    head = {
        "envs": [None if env % 2 else f"lost {env}" for env in range(first, first + envs)],
        "macs": [f"mac {env}" for env in range(first, first + envs)], "limiter": "8", "logger": {}, "loop": {},
        "replay": {"counts": (streams + 100).tolist(), "queue": [[s, int(stream)] for s, stream in enumerate(streams)]},
    }  # fmt: skip
    states = {f"envs/state/{e:05d}": np.array([first + e], np.uint8) for e in range(envs) if (first + e) % 2}
    arrays = {
        "envs/ready": np.arange(len(streams))[1:], "envs/row/reward": np.float32(streams[1:]),
        "envs/resets": np.arange(first, first + envs), "collector/carry/0000": np.float32(streams)[:, None],
        "collector/count": np.int64(5), "tracker/returns": np.float64(streams), **states,
    }  # fmt: skip
    return head, arrays


@pytest.mark.parametrize("agents", [1, 2])
@pytest.mark.parametrize("before, after", [(1, 3), (3, 1), (2, 3), (3, 2), (6, 2)])
def test_everything_moves_with_its_stream_to_another_number_of_processes(before, after, agents):
    pieces = [piece(p * (6 // before), 6 // before, agents) for p in range(before)]
    for process in range(after):
        envs = Place(process, after).envs(6)
        streams = np.arange(envs.start * agents, envs.stop * agents)
        head, arrays = process_files.regroup(pieces, envs, agents)
        assert head["envs"] == [None if env % 2 else f"lost {env}" for env in envs]
        assert head["macs"] == [f"mac {env}" for env in envs]
        assert [[s + streams[0], start] for s, start in head["replay"]["queue"]] == [[s, s] for s in streams]
        assert arrays["envs/resets"].tolist() == list(envs)
        assert arrays["collector/carry/0000"][:, 0].tolist() == arrays["tracker/returns"].tolist() == streams.tolist()
        np.testing.assert_array_equal(arrays["envs/row/reward"], arrays["envs/ready"] + streams[0])
        states = {int(k.rpartition("/")[2]): v[0] for k, v in arrays.items() if k.startswith("envs/state")}
        assert states == {env - envs.start: env for env in envs if env % 2}


def test_a_manifest_names_the_files_of_every_process(tmp_path):
    def files(number):
        seal = Seal("state-1.dreamer", number, 1)
        return Files("a" * 32, (Seal("rows-1.dreamer", number, 1),), (), seal, (0,), 8)

    parts = [Manifest(1, 2, FORMAT, files(number), (0, 0)).to_json() for number in range(3)]
    joined = process_files.join(parts, tmp_path)
    assert joined.hosts == tuple(files(number) for number in range(3))
    assert Manifest.from_json(json.loads(json.dumps(joined.to_json())), tmp_path) == joined
    wrong = {**joined.to_json(), "others": [{**joined.to_json()["others"][0], "run": "b" * 32}]}
    with pytest.raises(UserError, match="was not written by this program: 'others'"):
        Manifest.from_json(wrong, tmp_path)


def test_the_metrics_of_all_processes_are_averaged(tmp_path):
    config = load(overrides={"log.tensorboard": False}).log
    first, other = Logger(tmp_path, config), host_parts.Collected()
    first.add({"episode/return": 1.0, "loss/x": 5.0})
    for value in (2.0, 6.0):
        other.add({"episode/return": value, "loss/x": 5.0})
    host_parts.add_others(first, [host_parts.for_first(other)])
    assert other.write(1, 1) == {} and other.position()["sums"] == {}
    assert first.write(1, 1) == {"episode/return": 3.0, "loss/x": 5.0}
    first.close()


def test_a_sweep_starts_one_process_on_each_node_of_a_job(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    several, one = (slurm._executor(tmp_path, slurm.Config(nodes=nodes)).parameters for nodes in (4, 1))
    assert (several["nodes"], several["ntasks_per_node"]) == (4, 1)
    assert not {"nodes", "ntasks_per_node"} & one.keys()
    flags = command.SweepFlags(on="slurm", slurm=slurm.Config(nodes=4))
    assert "--slurm.nodes 4 --index" in " ".join(command.words_of("mine.yaml", tmp_path, flags))


@pytest.mark.parametrize(
    "flags, expected",
    [({}, "slurm.nodes is for jobs"), ({"on": "slurm", "pack": "on"}, "a population trains in one process")],
)
def test_several_nodes_without_a_job_are_refused(flags, expected):
    with pytest.raises(UserError, match=expected):
        command.sweep("mine.yaml", command.SweepFlags(**flags, slurm=slurm.Config(nodes=2)))


# --- whole runs -------------------------------------------------------------------------------------

FAST = {"checkpoint.every": 0.2, "replay.flush": 0.02}


@pytest.mark.parametrize(
    "count, agent",
    [(2, "plain"), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((4, "plain"), (2, "real"), (4, "real")))],
)
def test_several_processes_learn_the_parameters_of_one_with_the_same_batches(tmp_path, count, agent):
    batches = tmp_path / "batches"
    batches.mkdir()
    settings = {"env_steps": 88, "replay_ratio": 8}
    hosts_run.trained(count, tmp_path / "several", settings, agent=agent, record=str(batches))
    hosts_run.trained(1, tmp_path / "one", settings, agent=agent, given=str(batches))
    several, one = (leaves(tmp_path / name) for name in ("several", "one"))
    made = len({path.name.partition("-")[0] for path in batches.iterdir()})
    assert made == int(one["step"]) == int(several["step"]) > 3
    assert several.keys() == one.keys()
    for name in one:
        if name != "key":
            scale = max(1.0, np.abs(one[name].astype(np.float64)).max())
            np.testing.assert_allclose(several[name], one[name], rtol=1e-3, atol=1e-5 * scale, err_msg=name)
    differs = max(np.abs(np.float64(several[name]) - one[name]).max() for name in one if name != "key")
    print(f"{count} processes, {made} updates: largest difference {differs:.2g}")


def leaves(run_dir: pathlib.Path) -> dict[str, np.ndarray]:
    with Checkpoints(run_dir) as checkpoints:
        return checkpoints.leaves()


def test_a_job_of_one_process_trains(tmp_path):
    """As on a cluster that gives a job a single node."""
    devices = {"coordinator": f"localhost:{hosts_run.free_port()}", "processes": 1, "process_id": 0}
    settings = {"env_steps": 88, "replay_ratio": 8} | {f"devices.{key}": value for key, value in devices.items()}
    hosts_run.trained(1, tmp_path / "run", settings)
    assert {len(one["reward"]) for one in hosts_run.rows_of(tmp_path / "run").values()} == {22}
    assert int(leaves(tmp_path / "run")["step"]) > 3


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    run_dir = tmp_path / "run"
    for count, steps in ((2, 64), (1, 96), (4, 128), (2, 160)):
        (output, *_) = hosts_run.trained(count, run_dir, {"env_steps": steps, **FAST})
        assert "not resumed" not in output
        rows = hosts_run.rows_of(run_dir)
        assert {len(one["reward"]) for one in rows.values()} == {steps // 4} and len(rows) == 4
        for one in rows.values():  # an episode begins only where another has ended
            np.testing.assert_array_equal(one["is_first"][1:], one["is_last"][:-1])
        assert verify_run(str(run_dir)) == 0
    assert sorted(path.name for path in (run_dir / "hosts").iterdir()) == ["1", "2", "3"]
    assert not [*(run_dir / "hosts" / "3" / "rows").iterdir()] or len(checkpoint_files.steps(run_dir)) > 1
    found = lines(run_dir)
    assert [line["env_steps"] for line in found] == sorted(line["env_steps"] for line in found)


def kill(run_dir: pathlib.Path, count: int, who: int, at: int) -> tuple[list[int], list[str]]:
    """Trains with `count` processes, of which number `who` kills itself at event `at`; 0: none does."""
    settings = {"workers__envs": 4, "replay__batch_size": 4}
    call = (
        "import killed_run; killed_run.main("
        f"{str(run_dir)!r}, {at} if DEVICES.get('devices.process_id') == {who} else 0, "
        f"{{**{settings!r}, **{{k.replace('.', '__'): v for k, v in DEVICES.items()}}}})"
    )
    found = hosts_run.ended(hosts_run.begun(count, call), seconds=240)
    return [code for code, _ in found], [output for _, output in found]


def killed_and_resumed(run_dir: pathlib.Path, whole: pathlib.Path, kills: int, seed: int) -> list[tuple[int, int]]:
    """Kills processes of runs at random events `kills` times, lets the runs finish, and compares them with `whole`."""
    rng, made = np.random.default_rng(seed), []

    def attempt() -> bool:
        who, at = int(rng.integers(2)), int(rng.integers(1, 150))
        codes, outputs = kill(run_dir, 2, who, at)
        if codes == [0, 0]:
            return False
        assert codes[who] == -signal.SIGKILL and codes[1 - who] != 0, outputs
        line = rf"dreamer: error: process {who} \(pid \d+ on .*\) is gone; this process ends too"
        gone = re.findall(line, outputs[1 - who])
        assert len(gone) == 1, outputs[1 - who]
        made.append((who, at))
        return True

    def ended() -> None:
        assert state_of(run_dir) == state_of(whole)
        ours, theirs = hosts_run.rows_of(run_dir), hosts_run.rows_of(whole)
        for stream in theirs:
            for name in theirs[stream]:
                assert name.startswith("latent/") or ours[stream][name].tobytes() == theirs[stream][name].tobytes()
        assert verify_run(str(run_dir)) == 0
        shutil.rmtree(run_dir)

    killed_run.repeat(kills, attempt, ended)
    codes, outputs = kill(run_dir, 2, 0, 0)
    assert codes == [0, 0], outputs
    ended()
    return made


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_of_which_one_process_is_killed_ends_bit_identical(tmp_path, kills):
    whole = tmp_path / "whole"
    codes, outputs = kill(whole, 2, 0, 0)
    assert codes == [0, 0], outputs
    made = killed_and_resumed(tmp_path / "run", whole, kills, seed=kills)
    print(f"killed (process, event): {made}")


def test_a_signal_to_one_process_saves_the_run_and_stops_all(tmp_path):
    call = (
        "import os, signal; from dreamer.runtime.run.loop import Run; tend = Run.tend; turns = iter(range(999))\n"
        "def tending(run):\n"
        "    if DEVICES.get('devices.process_id') == 1 and next(turns) == 10: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    tend(run)\n"
        "Run.tend = tending\n"
        f"sys.exit(hosts_run.main({str(tmp_path / 'run')!r}, {{'env_steps': 400, **DEVICES}}))"
    )
    found = hosts_run.ended(hosts_run.begun(2, call))
    assert [code for code, _ in found] == [143, 143], found
    assert "stopped at 48 env_steps; to continue: dreamer train --resume" in found[0][1]
    assert checkpoint_files.steps(tmp_path / "run")[-1] == 48


def test_processes_with_different_settings_are_refused_before_anything_is_written(tmp_path):
    call = (
        f"sys.exit(hosts_run.main({str(tmp_path / 'run')!r}, {{'seed': DEVICES['devices.process_id'], **DEVICES}}))"
    )
    found = hosts_run.ended(hosts_run.begun(2, call))
    assert [code for code, _ in found] == [2, 2], found
    for _, output in found:
        assert "dreamer: error: the processes differ: seed is 0 in process 0, 1 in process 1" in output
    assert not os.listdir(tmp_path)
