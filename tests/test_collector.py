"""The collector stores the observations, rewards, actions and latents that belong together, row by row."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import recording_agent

from dreamer.runtime import workers
from dreamer.runtime.devices import programs
from dreamer.runtime.learning.collector import Collecting, Collector
from dreamer.runtime.learning.learner import Learner, PolicyParams
from dreamer.runtime.replay.replay import Config, Replay

ENVS, TURNS = 3, 40
NOTHING_LEARNED = PolicyParams(0, [jnp.zeros(4)])


def collected(seed: int = 0, backend: str = "inline") -> Replay:
    """Returns a replay collected in the counter, whose reward is the previous action; episodes have 4 steps."""
    with workers.make_workers(
        workers.Config(backend=backend, envs=ENVS, processes=2), "probes:counter", {"steps": 4}, seed=seed
    ) as crew:
        agent = recording_agent(crew.spec)
        sizes = Config(capacity_steps=ENVS * TURNS, batch_length=4)
        replay = Replay(crew.spec, agent.storage, sizes, streams=ENVS, seed=seed, env_steps=ENVS * TURNS)
        collector = Collector(agent, programs.policy_part(agent, crew.spec), crew, replay, seed=seed)
        for _ in range(TURNS):
            _, step = collector.collect(NOTHING_LEARNED)
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


def test_the_policy_receives_its_previous_action(columns):
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
    assert compiled.count("jit(act)") == 1


class Partly:
    """Workers with a given list of ready environments for each receive."""

    envs = streams = 4

    def __init__(self, crew, turns):
        self.crew, self.spec, self.turns, self.held = crew, crew.spec, iter(turns), {}

    def receive(self, min_ready, max_wait):
        if len(self.held) < self.envs:
            missing = [env for env in range(self.envs) if env not in self.held]
            envs, step = self.crew.receive(min_ready=len(missing))
            for place, env in enumerate(envs):
                self.held[int(env)] = jax.tree.map(lambda x, place=place: x[place], step)
        envs = np.array(next(self.turns))
        rows = [self.held.pop(env) for env in envs]
        return workers.Ready(envs, jax.tree.map(lambda *xs: np.stack(xs), *rows))

    def send(self, envs, actions):
        self.crew.send(envs, actions)


def test_the_policy_is_compiled_once_for_the_parameters_of_a_learner():
    with workers.make_workers(workers.Config(backend="inline", envs=2), "probes:counter", {"steps": 4}, seed=0) as crew:
        agent = recording_agent(crew.spec)
        learner = Learner(agent, crew.spec, seed=0, batch_size=2, lockstep=True)
        replay = Replay(crew.spec, agent.storage, Config(batch_length=4), streams=2, seed=0, env_steps=100)
        collector = Collector(agent, learner.part, crew, replay, seed=0)
        for _ in range(3):
            collector.collect(learner.snapshot())
        collector.load(collector.state())
        collector.collect(learner.snapshot())
        assert collector.policy._cache_size() == 1


def test_ready_environments_continue_without_the_others_and_keep_their_own_latents():
    turns = [[0, 1, 2, 3], [2], [0, 2], [1, 2, 3], [2], [0, 1, 2, 3], [3], [0, 1]]
    four = workers.Config(backend="inline", envs=4)
    with workers.make_workers(four, "probes:counter", {"steps": 30}, seed=0) as crew:
        agent, partly = recording_agent(crew.spec), Partly(crew, turns)
        sizes = Config(capacity_steps=40, batch_length=4)
        replay = Replay(crew.spec, agent.storage, sizes, streams=4, seed=0, env_steps=40)
        collector = Collector(agent, programs.policy_part(agent, crew.spec), partly, replay, seed=0)
        for envs in turns:
            assert collector.collect(NOTHING_LEARNED, 1, 0.0).streams.tolist() == envs
    counts = [sum(env in turn for turn in turns) for env in range(4)]
    assert replay.counts.tolist() == counts
    for env, count in enumerate(counts):
        assert replay.columns["latent/count"][env, :count, 0].tolist() == list(range(1, count + 1))
        inside = replay.columns["latent/previous"][env, 1:count]
        assert np.array_equal(inside, replay.columns["action"][env, : count - 1])


def test_the_acting_state_is_saved_and_restored():
    with workers.make_workers(workers.Config(backend="inline", envs=2), "probes:counter", {}, seed=0) as crew:
        agent = recording_agent(crew.spec)
        sizes = Config(batch_length=4)
        replays = [Replay(crew.spec, agent.storage, sizes, streams=2, seed=0, env_steps=80) for _ in "ab"]
        part = programs.policy_part(agent, crew.spec)
        one, other = (Collector(agent, part, crew, replay, seed=0) for replay in replays)
        for _ in range(3):
            one.collect(NOTHING_LEARNED)
        other.load(one.state())
        other.collect(NOTHING_LEARNED)
    assert replays[1].columns["latent/count"][:, 0, 0].tolist() == [4, 4]


def test_a_thread_collects_until_the_turn_returns_false():
    turns: list[int] = []

    def turn():
        turns.append(len(turns))
        return len(turns) < 50

    with Collecting(turn) as collecting:
        collecting._thread.join(10)
    assert turns == list(range(50))


def test_every_pause_is_granted_and_no_turn_falls_into_one():
    standing, done, overlaps = threading.Event(), threading.Event(), []

    def turn():
        if standing.is_set():
            overlaps.append("a turn in a pause")
        return not done.is_set()

    with Collecting(turn) as collecting:
        for _ in range(100):
            with collecting.paused():
                standing.set()
                standing.clear()
        done.set()
    assert not overlaps


def test_the_next_check_raises_the_error_that_ended_the_thread():
    def turn():
        raise ValueError("the cable")

    with Collecting(turn) as collecting:
        collecting._thread.join(10)
        with pytest.raises(ValueError, match="the cable"):
            collecting.check()
