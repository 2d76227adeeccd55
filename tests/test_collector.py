"""The collector: what is stored is what was seen, felt and done, row by row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import recording_agent

from dreamer.runtime import devices, workers
from dreamer.runtime.collector import Collector
from dreamer.runtime.replay import Config, Replay

ENVS, TURNS = 3, 40


def collected(seed: int = 0, backend: str = "inline") -> Replay:
    """The replay after some turns in the counter, whose reward is the previous action; episodes of 4 steps."""
    with workers.make_workers(
        workers.Config(backend=backend, envs=ENVS, processes=2), "probes:counter", {"steps": 4}, seed=seed
    ) as crew:
        agent = recording_agent(crew.spec)
        sizes = Config(capacity_steps=ENVS * TURNS, batch_length=4)
        replay = Replay(crew.spec, agent.storage, sizes, envs=ENVS, seed=seed, env_steps=ENVS * TURNS)
        collector = Collector(agent, crew, replay, seed=seed)
        params = devices.first_copy({"w": jnp.zeros(4)})
        for _ in range(TURNS):
            step = collector.collect(params)
            assert np.array_equal(step.action, replay.columns["action"][:, replay.counts[0] - 1])
    return replay


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    return collected().columns


def test_every_turn_stores_one_row_of_every_environment():
    assert collected().counts.tolist() == [TURNS] * ENVS


def test_last_rows_hold_no_action_and_all_others_one(columns):
    assert np.array_equal(columns["action"].sum(-1), 1.0 - columns["is_last"])
    assert columns["is_last"].sum() == ENVS * TURNS // 5


def test_the_action_stored_is_the_one_the_environment_answered(columns):
    answered = ~columns["is_first"][:, 1:]
    chosen = columns["action"].argmax(-1)[:, :-1]
    assert np.array_equal(columns["reward"][:, 1:][answered], chosen[answered])


def test_the_latent_stored_is_that_of_the_row(columns):
    assert np.array_equal(columns["latent/seen"], columns["obs/vector"])


def test_the_policy_begins_afresh_where_an_episode_does(columns):
    first = np.flatnonzero(columns["is_first"][0])
    assert first.tolist() == list(range(0, TURNS, 5))
    assert np.array_equal(columns["latent/count"][:, :, 0], np.tile([1, 2, 3, 4, 5], (ENVS, TURNS // 5)))
    assert not columns["latent/previous"][columns["is_first"]].any()


def test_the_policy_is_told_its_previous_action(columns):
    inside = ~columns["is_first"][:, 1:]
    assert np.array_equal(columns["latent/previous"][:, 1:][inside], columns["action"][:, :-1][inside])


def test_actions_differ_between_rows_environments_and_seeds(columns):
    chosen = columns["action"][:, ~columns["is_last"][0]].argmax(-1)
    assert len({tuple(row) for row in chosen}) == ENVS
    assert all(len(set(row)) > 1 for row in chosen)
    assert not np.array_equal(collected(seed=1).columns["action"], columns["action"])


@pytest.mark.parametrize("backend", ["inline", "processes"])
def test_the_same_seed_collects_the_same_rows(columns, backend):
    again = collected(backend=backend).columns
    assert all(np.array_equal(again[name], columns[name]) for name in columns)


def test_the_policy_is_compiled_once():
    compiled = []

    def listen(event, duration, *, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        collected()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled.count("jit(policy)") == 1
