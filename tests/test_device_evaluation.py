"""Episodes that an evaluation plays on the device are those that it would play on the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import pytest
import tiny_runs
from tiny_runs import recording_agent

import dreamer
from dreamer.errors import UserError
from dreamer.interfaces import JaxEnv, Variables
from dreamer.jax_envs import make_jax_env
from dreamer.runtime.devices import placement, programs
from dreamer.runtime.fused import evaluation as fused
from dreamer.runtime.fused.workers import JaxWorkers
from dreamer.runtime.run import evaluation
from dreamer.runtime.run.evaluation import Result
from dreamer.spaces import Action, Space, Spec

AUTO = dataclasses.replace(evaluation.INLINE, backend="auto")


@pytest.fixture(autouse=True)
def few_turns(monkeypatch):
    monkeypatch.setattr(fused, "TURNS", 5)  # so that episodes reach over several calls
    monkeypatch.setattr(evaluation, "MOST_ENVS", 3)


def play(env: Any, options: dict | None = None, *, episodes: int = 7, record: int = 0, agent=None, **asked) -> Result:
    workers = evaluation.make_eval_workers(
        env, options or {}, episodes=episodes, action_repeat=1, seed=7, record=bool(record), config=AUTO
    )
    assert isinstance(workers, JaxWorkers)
    agent = agent or recording_agent(workers.spec)
    variables = placement.first_copy({"behavior": Variables({"w": jnp.zeros(4)})})
    return evaluation.run_episodes(
        agent, programs.jit_act(agent), variables, workers, episodes=episodes, seed=7, record=record,
        **{"mode": "sample", **asked},
    )  # fmt: skip


def on_the_host(monkeypatch, *args, **kwargs) -> Result:
    with monkeypatch.context() as patch:
        patch.setattr(evaluation.device_evaluation, "play", None)  # a call would fail
        patch.setattr(evaluation, "JaxWorkers", type(None))
        return play(*args, **kwargs)


@pytest.mark.parametrize(
    ("env", "options", "asked"),
    [
        ("jax_probes:counter", {"steps": 4}, {}),
        ("jax_probes:counter", {"steps": 17}, {"max_steps": 6}),
        ("jax_teams:make", {}, {}),
        ("jax_teams:make", {}, {"max_steps": 2}),
    ],
    ids=["episodes", "cut off", "several agents", "several agents, cut off"],
)
def test_episodes_on_the_device_are_those_of_the_host(monkeypatch, env, options, asked):
    device, host = play(env, options, **asked), on_the_host(monkeypatch, env, options, **asked)
    assert device.episodes == host.episodes and len(set(device.returns)) > 1
    assert (device.seeds, device.lines) == (host.seeds, host.lines)
    assert bool(device.lines) == bool(asked)


def test_an_evaluation_that_never_ends_can_be_stopped():
    calls = iter(range(3))

    def check():
        if next(calls, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play("jax_probes:counter", {"steps": 10**6}, check=check)


def ill() -> JaxEnv:
    """Returns an environment whose third reward is not a number."""

    def reset(key):
        return jnp.int32(0), jnp.zeros(1)

    def step(key, time, action):
        return time + 1, jnp.zeros(1), jnp.where(time == 2, jnp.nan, 1.0), time >= 7, False

    return make_jax_env(Spec({"vector": Space((1,), "float32")}, Action((2,))), reset, step)


def test_a_row_that_is_not_finite_names_its_environment():
    with pytest.raises(UserError, match="ill #0': reward is not finite"):
        play("test_device_evaluation:ill")


def test_an_evaluation_that_records_a_video_plays_on_the_host():
    result = play("jax_probes:pixel", {"steps": 4, "side": 8}, record=1, agent=seeing())
    assert [frame.shape for frame in result.frames] == [(8, 8, 3)] * 5


def seeing():
    """Returns a recording agent that sees the size of an image."""
    spec = Spec({"vector": Space((1,), "float32")}, Action((2,)))
    agent = recording_agent(spec)

    def act(variables, key, carry, obs, is_first, mode):
        vector = {"vector": jnp.float32(obs["image"]).mean((1, 2, 3))[:, None]}
        return agent.act(variables, key, carry, vector, is_first, mode)

    return agent._replace(act=act)


@pytest.mark.parametrize("env", ["jax_probes:both", "a function"])
def test_all_evaluations_of_a_population_compile_one_program(tmp_path, monkeypatch, env):
    traces = []

    def make(config, spec, **_):
        agent = tiny_runs.plain_agent(spec)

        def act(variables, key, carry, obs, is_first, mode):
            traces.append(mode)
            return agent.act(variables, key, carry, obs, is_first, mode)

        return agent._replace(act=act)

    monkeypatch.setattr("dreamer.agent.make", make)
    settings = {"eval__every": 20, "eval__episodes": 2, "env_steps": 40, "population__seeds": 2, "loop": "device"}
    config = tiny_runs.tiny(tmp_path / "run", env="jax_probes:both", **settings, log__tensorboard=False)
    dreamer.train(config, make_env=None if env == "jax_probes:both" else own_env())
    assert traces.count("sample") == 1


def own_env():
    """Returns a function that no other process can import."""

    def make() -> JaxEnv:
        from envs import jax_probes

        return jax_probes.make("both")

    return make
