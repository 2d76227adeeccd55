"""Both sets of workers do the same; what fails in a worker process is told here, and nothing is left behind."""

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
from dreamer.runtime.workers import Config, make_workers

ROOT = pathlib.Path(__file__).parent.parent


class Facts(gymnasium.Env):
    """Shows what a worker can know: its seed, its process, whether jax is imported, and the last action."""

    action_space = gymnasium.spaces.Discrete(4)
    observation_space = gymnasium.spaces.Dict(
        {
            "seed": gymnasium.spaces.Box(-1, 1e6, (1,)),
            "pid": gymnasium.spaces.Discrete(1 << 24),
            "jax": gymnasium.spaces.Discrete(2),
            "action": gymnasium.spaces.Discrete(5),
            "picture": gymnasium.spaces.Box(0, 255, (5, 3, 3), np.uint8),
        }
    )

    def __init__(self, fail="", steps=3):
        self.fail, self.steps = fail, steps

    def reset(self, *, seed=None, options=None):
        self.seed = self.seed if seed is None else seed
        self.time = 0
        return self.observe(4), {}

    def step(self, action):
        self.time += 1
        if self.fail == "raise" and self.seed == 11:
            raise KeyError("lost")
        if self.fail == "nan" and self.seed == 11:
            return self.observe(action), float("nan"), False, False, {}
        if self.fail == "exit" and self.seed == 11:
            os._exit(7)
        if self.fail == "kill" and self.seed == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fail == "hang":
            threading.Event().wait()
        return self.observe(action), float(action), self.time >= self.steps, False, {}

    def observe(self, action):
        picture = np.arange(45, dtype=np.uint8).reshape(5, 3, 3) + self.seed % 100
        seed, jax = np.full(1, self.seed, np.float32), int("jax" in sys.modules)
        return {"seed": seed, "pid": os.getpid(), "jax": jax, "action": action, "picture": picture}


def facts(**options):
    return Facts(**options)


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


def actions(*indices):
    return np.eye(4, dtype=np.float32)[list(indices)]


@both
def test_first_receive_gives_the_reset_rows(config):
    with facts_workers(config) as crew:
        rows = crew.receive()
        assert rows.is_first.all() and not rows.is_last.any() and not rows.reward.any()
        assert rows.obs["action"].tolist() == [4] * 5
        assert rows.action.shape == (5, 4) and not rows.action.any()


@both
def test_every_environment_has_its_own_seed_and_action(config):
    with facts_workers(config) as crew:
        crew.receive()
        crew.send(actions(0, 1, 2, 3, 1))
        rows = crew.receive()
        assert rows.obs["seed"].ravel().tolist() == [10, 11, 12, 13, 14]
        assert rows.obs["action"].tolist() == rows.reward.tolist() == [0, 1, 2, 3, 1]
        assert rows.obs["picture"][:, 0, 0, 0].tolist() == [10, 11, 12, 13, 14]


@both
def test_rows_are_of_the_spec(config):
    with facts_workers(config) as crew:
        rows = crew.receive()
        assert sorted(rows.obs) == sorted(crew.spec.obs)
        for key, space in crew.spec.obs.items():
            assert rows.obs[key].shape == (crew.envs, *space.shape) and rows.obs[key].dtype == space.dtype


def play(config, steps):
    rng = np.random.default_rng(0)
    with make_workers(config, "CartPole-v1", {}, seed=3) as crew:
        out = [crew.receive()]
        for _ in range(steps):
            crew.send(np.eye(2, dtype=np.float32)[rng.integers(2, size=config.envs)])
            out.append(crew.receive())
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
        first = crew.receive()
        crew.send(actions(0, 0, 0, 0, 0))
        crew.receive()
        assert first.is_first.all() and first.obs["action"].tolist() == [4] * 5


@both
@pytest.mark.parametrize(
    "fail, message",
    [
        ("nan", r"test_workers:facts #1', episode 1, step 1: reward is nan"),
        ("raise", r"test_workers:facts #1' failed: KeyError: 'lost' \(.*test_workers.py, line"),
    ],
)
def test_error_of_an_environment_arrives_as_one_line(config, fail, message):
    with facts_workers(config, fail=fail) as crew:
        crew.receive()
        crew.send(actions(0, 0, 0, 0, 0))
        with pytest.raises(UserError, match=message) as caught:
            crew.receive()
        assert "\n" not in str(caught.value)


def test_crash_in_a_worker_keeps_its_own_traceback():
    with facts_workers(BACKENDS[1], fail="raise") as crew:
        crew.receive()
        crew.send(actions(0, 0, 0, 0, 0))
        with pytest.raises(UserError) as caught:
            crew.receive()
        assert 'raise KeyError("lost")' in "".join(caught.value.__notes__)


@pytest.mark.parametrize("fail, message", [("exit", "exit code 7"), ("kill", "signal SIGKILL")])
def test_worker_that_dies_is_reported_with_its_exit(fail, message):
    with facts_workers(BACKENDS[1], fail=fail) as crew:
        crew.receive()
        crew.send(actions(0, 0, 0, 0, 0))
        with pytest.raises(UserError, match=f"test_workers:facts #0' to #2 died with {message}"):
            crew.receive()


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
        rows = crew.receive()
        pids = rows.obs["pid"].tolist()
        assert pids[0] == pids[2] != pids[3] == pids[4] and os.getpid() not in pids
        assert not rows.obs["jax"].any()


@pytest.mark.parametrize("processes, cores, expected", [(0, 3, 3), (0, 64, 5), (64, 2, 5), (2, 8, 2)])
def test_processes_are_one_per_core_and_never_more_than_environments(monkeypatch, processes, cores, expected):
    asked = []
    monkeypatch.setattr(workers, "_cores", lambda: cores)
    monkeypatch.setattr(workers, "ProcessWorkers", lambda plan, processes: asked.append(processes))
    facts_workers(Config(envs=5, processes=processes))
    assert asked == [expected]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_close_ends_the_processes_and_may_be_called_twice():
    with facts_workers(BACKENDS[1]) as crew:
        pids = set(crew.receive().obs["pid"].tolist())
    crew.close()
    assert len(pids) == 2 and not any(map(alive, pids))


def test_close_kills_a_worker_that_hangs(monkeypatch):
    monkeypatch.setattr(workers, "_PATIENCE", 0.1)
    with facts_workers(BACKENDS[2], fail="hang") as crew:
        pid = crew.receive().obs["pid"][0]
        crew.send(actions(0, 0, 0, 0, 0))
    assert not alive(pid)


SCRIPT = f"""
import numpy as np, os, signal, sys
from dreamer.runtime.workers import Config, make_workers
print("script runs", flush=True)
crew = make_workers(Config(envs=2, processes=1), "{__name__}:facts")
print(int(crew.receive().obs["pid"][0]), flush=True)
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
    # The worker holds stdout and stderr too: run_script returns only when it is gone, else its time runs out.
    done = run_script(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)\n")
    assert done.returncode == -signal.SIGKILL


def test_interrupt_of_a_worker_is_ignored():
    with facts_workers(BACKENDS[2]) as crew:
        os.kill(int(crew.receive().obs["pid"][0]), signal.SIGINT)
        crew.send(actions(0, 0, 0, 0, 0))
        assert not crew.receive().is_first.any()


@both
def test_send_and_receive_take_turns(config):
    with facts_workers(config) as crew:
        with pytest.raises(RuntimeError, match="send.. was called twice"):
            crew.send(actions(0, 0, 0, 0, 0))
        crew.receive()
        with pytest.raises(RuntimeError, match="receive.. was called twice"):
            crew.receive()


@both
def test_actions_of_a_diverged_agent_are_not_blamed_on_the_environment(config):
    with facts_workers(config) as crew:
        crew.receive()
        with pytest.raises(UserError, match="action is not finite"):
            crew.send(np.full((5, 4), np.nan, np.float32))
        with pytest.raises(ValueError, match=r"\[4, 4\], they must be \[5, 4\]"):
            crew.send(np.zeros((4, 4), np.float32))


@pytest.mark.parametrize(
    "config, message",
    [
        (Config(envs=0), "workers.envs is 0"),
        (Config(processes=-1), "workers.processes is -1"),
        (Config(backend="proceses"), "did you mean 'processes'"),
    ],
)
def test_config_that_makes_no_sense(config, message):
    with pytest.raises(UserError, match=message):
        make_workers(config, "CartPole-v1", {})
