"""Both sets of workers behave equally, in lockstep or by readiness, and leave nothing behind."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import gymnasium
import numpy as np
import pytest

from dreamer.errors import UserError
from dreamer.runtime import workers
from dreamer.runtime.workers import Config, auto, make_workers, processes

ROOT = pathlib.Path(__file__).parent.parent


class Facts(gymnasium.Env):
    """Shows facts about its worker: seed, process, whether jax is imported, and the last action."""

    action_space = gymnasium.spaces.Discrete(4)
    observation_space = gymnasium.spaces.Dict(
        {
            "seed": gymnasium.spaces.Box(-1, 1e6, (1,)),
            "pid": gymnasium.spaces.Discrete(1 << 24),
            "thread": gymnasium.spaces.Box(0, np.inf, (1,), np.float64),
            "jax": gymnasium.spaces.Discrete(2),
            "action": gymnasium.spaces.Discrete(5),
            "picture": gymnasium.spaces.Box(0, 255, (5, 3, 3), np.uint8),
        }
    )

    def __init__(self, hang=False, steps=3, wait_for=""):
        self.hang, self.steps, self.wait_for = hang, steps, wait_for

    def reset(self, *, seed=None, options=None):
        self.seed = self.seed if seed is None else seed
        self.time = 0
        return self.observe(4), {}

    def step(self, action):
        self.time += 1
        if self.hang:
            threading.Event().wait()
        if self.wait_for and self.seed == 11:
            with open(self.wait_for) as fifo:  # waits until the other end is opened
                fifo.read()
        return self.observe(action), float(action), self.time >= self.steps, False, {}

    def observe(self, action):
        picture = np.arange(45, dtype=np.uint8).reshape(5, 3, 3) + self.seed % 100
        seed, jax = np.full(1, self.seed, np.float32), int("jax" in sys.modules)
        thread = np.full(1, threading.get_ident() % (1 << 24), np.float64)  # exact in float32
        return {"seed": seed, "pid": os.getpid(), "thread": thread, "jax": jax, "action": action, "picture": picture}


def facts(**options):
    return Facts(**options)


class Loud(Facts):
    """Prints from Python, to both streams, from a child process, and without a last newline."""

    def reset(self, *, seed=None, options=None):
        print("printed")
        os.system("echo echoed; printf half >&2")
        return super().reset(seed=seed)


class Flood(Facts):
    """Prints more than a pipe holds."""

    def reset(self, *, seed=None, options=None):
        print("x" * 1_000_000)
        return super().reset(seed=seed)


def refuses():
    raise ValueError("this one cannot be made")


BACKENDS = [
    Config(backend="inline", envs=5),
    Config(backend="processes", envs=5, processes=2),
    Config(backend="processes", envs=5, processes=1),
]
both = pytest.mark.parametrize("config", BACKENDS[:2], ids=["inline", "processes"])


def facts_workers(config, **options):
    return make_workers(config, f"{__name__}:facts", options, seed=10)


ALL = np.arange(5)


def actions(*indices):
    return np.eye(4, dtype=np.float32)[list(indices)]


@both
def test_first_receive_gives_the_reset_rows(config):
    with facts_workers(config) as crew:
        rows = crew.receive().step
        assert rows.is_first.all() and not rows.is_last.any() and not rows.reward.any()
        assert rows.obs["action"].tolist() == [4] * 5
        assert rows.action.shape == (5, 4) and not rows.action.any()


@both
def test_every_environment_has_its_own_seed_and_action(config):
    with facts_workers(config) as crew:
        crew.receive()
        crew.send(ALL, actions(0, 1, 2, 3, 1))
        rows = crew.receive().step
        assert rows.obs["seed"].ravel().tolist() == [10, 11, 12, 13, 14]
        assert rows.obs["action"].tolist() == rows.reward.tolist() == [0, 1, 2, 3, 1]
        assert rows.obs["picture"][:, 0, 0, 0].tolist() == [10, 11, 12, 13, 14]


@both
def test_rows_are_of_the_spec(config):
    with facts_workers(config) as crew:
        rows = crew.receive().step
        assert sorted(rows.obs) == sorted(crew.spec.obs)
        for key, space in crew.spec.obs.items():
            assert rows.obs[key].shape == (crew.envs, *space.shape) and rows.obs[key].dtype == space.dtype


def play(config, steps):
    rng = np.random.default_rng(0)
    with make_workers(config, "CartPole-v1", {}, seed=3) as crew:
        out = [crew.receive().step]
        for _ in range(steps):
            crew.send(ALL, np.eye(2, dtype=np.float32)[rng.integers(2, size=config.envs)])
            out.append(crew.receive().step)
    return out


def test_sets_are_interchangeable_to_the_bit():
    inline, *others = [play(config, 100) for config in BACKENDS]
    assert sum(rows.is_last.sum() for rows in inline) > 5
    for other in others:
        for a, b in zip(inline, other, strict=True):
            np.testing.assert_equal(a._asdict(), b._asdict())


@both
def test_rows_received_are_not_overwritten_later(config):
    with facts_workers(config) as crew:
        first = crew.receive().step
        crew.send(ALL, actions(0, 0, 0, 0, 0))
        crew.receive()
        assert first.is_first.all() and first.obs["action"].tolist() == [4] * 5


@both
@pytest.mark.parametrize("name, message", [(f"{__name__}:refuses", "cannot be made"), ("Cartpol-v1", "CartPole-v1")])
def test_environment_that_cannot_be_made_ends_the_start(config, name, message):
    with pytest.raises(UserError, match=message):
        make_workers(config, name, {})


def test_id_registered_by_the_script_alone_gets_advice():
    gymnasium.register("OnlyHere-v0", Facts)
    try:
        with pytest.raises(UserError, match="name it 'module:OnlyHere-v0'"):
            make_workers(BACKENDS[2], "OnlyHere-v0", {})
    finally:
        gymnasium.registry.pop("OnlyHere-v0")


def test_worker_processes_share_the_environments_and_import_no_jax():
    assert "jax" in sys.modules, "this test means something only where the parent has jax"
    with facts_workers(BACKENDS[1]) as crew:
        rows = crew.receive().step
        pids = rows.obs["pid"].tolist()
        assert pids[0] == pids[2] != pids[3] == pids[4] and os.getpid() not in pids
        assert not rows.obs["jax"].any()


@pytest.mark.parametrize("processes, expected", [(0, 5), (64, 5), (2, 2)])
def test_processes_are_one_per_environment_and_never_more(monkeypatch, processes, expected):
    asked = []
    monkeypatch.setattr(workers, "ProcessWorkers", lambda plan, processes, **_: asked.append(processes))
    facts_workers(Config(backend="processes", envs=5, processes=processes))
    assert asked == [expected]


def test_every_environment_of_a_process_stays_in_a_thread_of_its_own():
    with facts_workers(BACKENDS[2]) as crew:
        threads = crew.receive().step.obs["thread"].ravel().tolist()
        assert len(set(threads)) == 5
        crew.send(ALL, actions(0, 0, 0, 0, 0))
        assert crew.receive().step.obs["thread"].ravel().tolist() == threads


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_close_ends_the_processes_and_may_be_called_twice():
    with facts_workers(BACKENDS[1]) as crew:
        pids = set(crew.receive().step.obs["pid"].tolist())
    crew.close()
    assert len(pids) == 2 and not any(map(alive, pids))


def test_close_kills_a_worker_that_hangs(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.1)
    with facts_workers(BACKENDS[2], hang=True) as crew:
        pid = crew.receive().step.obs["pid"][0]
        crew.send(ALL, actions(0, 0, 0, 0, 0))
    assert not alive(pid)


SCRIPT = f"""
import numpy as np, os, signal, sys
from dreamer.runtime.workers import Config, make_workers
print("script runs", flush=True)
crew = make_workers(Config("processes", envs=4, processes=2), "{__name__}:facts")
print(int(crew.receive().step.obs["pid"][0]), flush=True)
"""


def run_script(tmp_path, ending):
    (tmp_path / "script.py").write_text(SCRIPT + ending)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def test_script_without_main_guard_is_run_once(tmp_path):
    done = run_script(tmp_path, "crew.close()\n")
    assert done.returncode == 0 and done.stdout.count("script runs") == 1 and done.stderr == ""


def test_workers_of_a_killed_parent_go_too(tmp_path):
    # The worker has stdout and stderr open too, so run_script returns only when it is gone, and otherwise times out.
    done = run_script(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)\n")
    assert done.returncode == -signal.SIGKILL


def test_interrupt_of_a_worker_is_ignored():
    with facts_workers(BACKENDS[2]) as crew:
        os.kill(int(crew.receive().step.obs["pid"][0]), signal.SIGINT)
        crew.send(ALL, actions(0, 0, 0, 0, 0))
        assert not crew.receive().step.is_first.any()


@both
def test_send_and_receive_take_turns(config):
    with facts_workers(config) as crew:
        with pytest.raises(RuntimeError, match="send.. was called twice"):
            crew.send(ALL, actions(0, 0, 0, 0, 0))
        crew.receive()
        with pytest.raises(RuntimeError, match="send.. was called twice"):
            crew.send(np.array([1, 1]), actions(0, 0))
        crew.send(np.array([3, 1]), actions(2, 0))
        with pytest.raises(RuntimeError, match="receive.. was called twice"):
            crew.receive()
        ready = crew.receive(min_ready=2, max_wait=60)
        assert ready.streams.tolist() == [1, 3] and ready.step.obs["action"].tolist() == [0, 2]
        with pytest.raises(RuntimeError, match="receive.. was called twice"):
            crew.receive(min_ready=1)


@both
def test_actions_of_a_diverged_agent_are_not_blamed_on_the_environment(config):
    with facts_workers(config) as crew:
        crew.receive()
        with pytest.raises(UserError, match="action is not finite"):
            crew.send(ALL, np.full((5, 4), np.nan, np.float32))
        with pytest.raises(ValueError, match=r"\[4, 4\], they must be \[5, 4\]"):
            crew.send(ALL, np.zeros((4, 4), np.float32))


@pytest.mark.parametrize(
    "config, message",
    [
        (Config(envs=0), "workers.envs must be at least 1, not 0"),
        (Config(processes=-1), "workers.processes must be at least 0, not -1"),
        (Config(backend="proceses"), "did you mean 'processes'"),
    ],
)
def test_config_that_makes_no_sense(config, message):
    with pytest.raises(UserError, match=message):
        make_workers(config, "CartPole-v1", {})


# ---- any ready environments


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return str(path)


@pytest.mark.parametrize("config", [BACKENDS[2], Config("processes", envs=5)], ids=["threads", "processes"])
def test_a_blocked_environment_delays_only_itself(config, fifo):
    with facts_workers(config, wait_for=fifo) as crew:
        crew.receive()
        crew.send(ALL, actions(0, 1, 2, 3, 0))
        others, seen = [0, 2, 3, 4], []
        while len(seen) < 40:
            ready = crew.receive(min_ready=1)
            assert 1 not in ready.streams
            seen += ready.streams.tolist()
            crew.send(ready.streams, actions(*ready.streams % 4))
        assert crew.receive(min_ready=4, max_wait=60).streams.tolist() == others
        open(fifo, "w").close()
        ready = crew.receive(min_ready=1)
        assert ready.streams.tolist() == [1] and ready.step.obs["action"].tolist() == [1]


def test_after_max_wait_a_receive_returns_the_ready_rows(fifo):
    with facts_workers(BACKENDS[1], wait_for=fifo) as crew:
        crew.receive()
        crew.send(ALL, actions(0, 0, 0, 0, 0))
        seen = set()
        while len(seen) < 4:
            ready = crew.receive(min_ready=5, max_wait=0.01)
            assert len(ready.streams)
            seen |= set(ready.streams.tolist())
        open(fifo, "w").close()
        assert seen == {0, 2, 3, 4}


def test_a_receive_waits_beyond_max_wait_for_the_first_row(fifo):
    with facts_workers(Config("processes", envs=2), wait_for=fifo) as crew:
        crew.receive()
        crew.send(np.array([1]), actions(0))
        opened = threading.Timer(0.05, lambda: open(fifo, "w").close())
        opened.start()
        assert crew.receive(min_ready=1, max_wait=0.0).streams.tolist() == [1]
        opened.join()


# ---- where they run


@pytest.mark.parametrize("round_trip, place", [(3600.0, "the main process"), (0.0, "2 processes")])
def test_auto_compares_a_step_with_the_way_to_a_process(monkeypatch, round_trip, place):
    monkeypatch.setattr(auto, "ROUND_TRIP", round_trip)
    monkeypatch.setattr(auto, "STEPS", 5)
    with make_workers(Config(envs=2), "CartPole-v1") as crew:
        assert f"2 environments in {place}: a step takes" in crew.describe()


# ---- restoring the state of another set


def state_config(backend):
    return Config(backend, envs=3, processes=2)


def advance(crew, rng, steps, width):
    """Steps in lockstep; returns every row, with the last one answered."""
    out = []
    for _ in range(steps):
        envs, step = crew.receive()
        out.append(step)
        crew.send(envs, np.eye(width, dtype=np.float32)[rng.integers(width, size=len(envs))])
    return out


@pytest.mark.parametrize("backend", ["inline", "processes"])
@pytest.mark.parametrize("env, width", [("CartPole-v1", 2), ("probes:delayed", 2), ("FrozenLake-v1", 4)])
def test_restored_workers_continue_bit_for_bit(backend, env, width):
    rng = np.random.default_rng(1)
    with make_workers(state_config(backend), env, seed=5) as crew:
        advance(crew, rng, 13, width)
        snapshot = crew.states()
        later = advance(crew, np.random.default_rng(2), 60, width)
    with make_workers(state_config(backend), env, seed=77) as crew:
        assert crew.restore(*snapshot) == {}
        again = advance(crew, np.random.default_rng(2), 60, width)
    assert sum(rows.is_last.sum() for rows in later) > 3
    for a, b in zip(later, again, strict=True):
        np.testing.assert_equal(a._asdict(), b._asdict())


@both
def test_an_environment_without_a_state_starts_over_with_a_new_seed(config):
    with facts_workers(config) as crew:
        assert crew.receive().step.obs["seed"].ravel().tolist() == [10, 11, 12, 13, 14]
        crew.send(ALL, actions(0, 0, 0, 0, 0))
        snapshot = crew.states()
        why = "Facts has no get_state and set_state"
        assert snapshot.states == [why] * 5 and not snapshot.ready.step.is_first.any()
    with facts_workers(config) as crew:
        assert crew.restore(*snapshot) == dict.fromkeys(range(5), why)
        rows = crew.receive().step
        assert rows.is_first.all() and rows.obs["seed"].ravel().tolist() == [15, 16, 17, 18, 19]
        crew.send(ALL, actions(0, 0, 0, 0, 0))
        assert crew.states().resets.tolist() == [1] * 5


@both
def test_states_are_returned_only_if_all_rows_are_answered(config):
    with facts_workers(config) as crew:
        crew.receive()
        with pytest.raises(RuntimeError, match="wait for an action"):
            crew.states()


@both
def test_reading_the_states_does_not_change_the_rows(config):
    with facts_workers(config) as crew:
        pending = crew.states().ready.step
        np.testing.assert_equal(crew.receive().step._asdict(), pending._asdict())


@both
def test_only_fresh_workers_of_the_same_number_are_restored(config):
    with facts_workers(config) as crew:
        snapshot = crew.states()
        with pytest.raises(ValueError, match="has 2 environments, not 5"):
            crew.restore(snapshot.states[:2], snapshot.ready, snapshot.resets)
        crew.receive()
        with pytest.raises(RuntimeError, match="new workers"):
            crew.restore(*snapshot)


def test_what_a_worker_process_prints_reaches_the_streams_of_this_process_in_whole_lines(capsys):
    with make_workers(Config(envs=2, backend="processes"), f"{__name__}:Loud", seed=10) as crew:
        crew.receive()
    out, err = capsys.readouterr()
    assert sorted(out.split()) == ["echoed", "echoed", "printed", "printed"]
    assert err == "half\nhalf\n"


def test_a_worker_process_does_not_wait_when_its_output_cannot_be_written(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed())
        with make_workers(Config(envs=1, backend="processes", timeout=60), f"{__name__}:Flood", seed=10) as crew:
            assert crew.receive().step.is_first.all()
