"""Populations whose loop runs on the host: every member is the run that it would be alone, in turns."""

from __future__ import annotations

import collections
import json
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import killed_run
import numpy as np
import pytest
import tiny_runs
from broken_envs import Sound
from test_fused import SETTINGS, state_of

import dreamer
from dreamer.errors import UserError
from dreamer.runtime.fused.spread import Spread
from dreamer.runtime.population import train
from dreamer.runtime.population.host_loop import HostPopulation
from dreamer.runtime.population.updates import States
from dreamer.runtime.run.loop import Run
from dreamer.runtime.run.stopping import Stopped

# ---- the runs

HOST = {**SETTINGS, "env": "probes:both", "env_steps": 96, "lockstep": False, "collect": "turns"}


@pytest.fixture(autouse=True)
def agent_that_compiles_at_once(monkeypatch):
    monkeypatch.setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))


def config_of(run_dir, **overrides):
    return tiny_runs.tiny(run_dir, **{**HOST, "population__seeds": 2, **overrides})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))
        return dreamer.train(config_of(tmp_path_factory.mktemp("population") / "run"))


def equal(one, other) -> None:
    for a, b in zip(state_of(one), state_of(other), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def steps_of(run_dir) -> list[int]:
    return [line["env_steps"] for line in tiny_runs.lines(run_dir)]


def test_a_member_is_the_run_of_its_seed(trained, tmp_path):
    alone = dreamer.train(tiny_runs.tiny(tmp_path / "alone", **HOST, seed=1))
    assert steps_of(trained / "seed1") == steps_of(alone)
    named = [name for name in tiny_runs.lines(alone)[-2] if not name.startswith(("time", "speed/", "wait/"))]
    for ours, theirs in zip(tiny_runs.lines(trained / "seed1"), tiny_runs.lines(alone), strict=True):
        assert [ours.get(name) for name in named] == [theirs.get(name) for name in named]
    equal(trained / "seed1", alone)


def test_members_that_are_updated_together_collect_the_same(trained, tmp_path):
    run_dir = dreamer.train(config_of(tmp_path / "run", population__together=2))
    for name in ("seed0", "seed1"):
        (rows, state), (others, other) = state_of(run_dir / name), state_of(trained / name)
        for key in ("action", "reward", "is_first"):
            np.testing.assert_array_equal(rows[key], others[key])
        for a, b in zip(state, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_environment_written_in_jax_can_be_trained_on_the_host(tmp_path):
    jax_env = {**HOST, "env": "jax_probes:both", "loop": "host"}
    run_dir = dreamer.train(config_of(tmp_path / "run", **jax_env))
    equal(run_dir / "seed1", dreamer.train(tiny_runs.tiny(tmp_path / "alone", **jax_env, seed=1)))


def stopped_at(run_dir, steps, **overrides):
    dreamer.train(
        config_of(run_dir, **overrides), callbacks=[lambda line: "stop" if line.env_steps >= steps else None]
    )
    assert steps_of(run_dir / "seed1")[-1] < 96


def test_a_population_that_is_resumed_is_the_same_to_the_last_bit(trained, tmp_path):
    run_dir = tmp_path / "run"
    stopped_at(run_dir, 60)
    dreamer.train(config_of(run_dir), resume="yes")
    for name in ("seed0", "seed1"):
        equal(run_dir / name, trained / name)


def test_a_member_can_be_resumed_alone(trained, tmp_path):
    run_dir = tmp_path / "run"
    stopped_at(run_dir, 60)
    dreamer.train(dreamer.load_config(run_dir / "seed1" / "config.yaml"), resume="yes")
    equal(run_dir / "seed1", trained / "seed1")
    with pytest.raises(UserError, match="member seed1 was resumed alone"):
        dreamer.train(config_of(run_dir), resume="yes")


@pytest.mark.parametrize("error", [Stopped(signal.SIGTERM), OSError("no more")], ids=["signal", "failure"])
def test_a_population_that_ended_between_two_checkpoints_is_resumed(trained, tmp_path, monkeypatch, error):
    """The failure is in the middle of a turn: one member has a row more than the other."""
    name = "tend" if isinstance(error, Stopped) else "collect"
    real, calls = getattr(Run, name), iter(range(10**9))

    def ends(run):
        if next(calls) == 61:
            raise error
        real(run)

    run_dir = tmp_path / "run"
    monkeypatch.setattr(Run, name, ends)
    with pytest.raises((KeyboardInterrupt, UserError)):
        dreamer.train(config_of(run_dir))
    monkeypatch.setattr(Run, name, real)
    dreamer.train(config_of(run_dir), resume="yes")
    for name in ("seed0", "seed1"):
        equal(run_dir / name, trained / name)


class Sick(Sound):
    """Fails in its third episode if its seed is 0, which only the member seed0 has."""

    def __init__(self):
        super().__init__()
        self.episodes = self.seed = -1

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        self.seed = self.seed if seed is None else seed
        return super().reset(seed=seed)

    def step(self, action):
        if self.seed == 0 and self.episodes == 2:
            raise OSError("out of order")
        return super().step(action)


def test_a_member_whose_environment_fails_stops_and_the_others_stay_the_same(tmp_path, capsys):
    run_dir = dreamer.train(config_of(tmp_path / "run", workers__restarts=0), make_env=Sick)
    assert "seed0 has stopped, the others continue: " in capsys.readouterr().out
    assert "out of order" in (run_dir / "seed0" / "error.txt").read_text()
    alone = dreamer.train(tiny_runs.tiny(tmp_path / "alone", **HOST, workers__restarts=0, seed=1), make_env=Sick)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamer.plugins.make_env", lambda *_: Sick())
        equal(run_dir / "seed1", alone)


def test_a_member_whose_environment_is_replaced_goes_on_and_counts_it(tmp_path):
    run_dir = dreamer.train(config_of(tmp_path / "run"), make_env=Sick)
    counts = [tiny_runs.lines(run_dir / name)[-1]["collect/incidents"] for name in ("seed0", "seed1")]
    assert counts[0] > 0 and counts[1] == 0
    assert steps_of(run_dir / "seed0")[-1] == 96


@pytest.mark.parametrize("together", [1, 2])
def test_a_member_that_diverges_stops_and_the_others_stay_the_same(trained, tmp_path, monkeypatch, capsys, together):
    update, updates = States.update, iter(range(10**9))

    def diverges(states, batches):
        if next(updates) == 3:
            states.inherit(0, 0, {})
            ill = states.state(0)
            ill = ill._replace(params=jax.tree.map(lambda x: x * jnp.nan, ill.params))
            states._groups[0] = states._put(states._groups[0], 0, states._placed(ill))
        return update(states, batches)

    monkeypatch.setattr(States, "update", diverges)
    run_dir = dreamer.train(config_of(tmp_path / "run", population__together=together))
    monkeypatch.setattr(States, "update", update)
    said = capsys.readouterr().out
    assert "the parameters are no longer finite and are not saved" in said
    assert "seed0 has stopped, the others continue" in said
    assert steps_of(run_dir / "seed0")[-1] < 96
    if together == 1:
        equal(run_dir / "seed1", trained / "seed1")


def test_members_inherit_what_others_have_learned_and_a_resume_repeats_it(tmp_path):
    settings = {"eval__every": 60, "eval__episodes": 1}
    settings |= {"population__exploit_every": 60, "population__exploit_share": 0.5}
    whole = dreamer.train(config_of(tmp_path / "whole", **settings))
    (one,) = [json.loads(line) for line in (whole / "lineage.jsonl").read_text().splitlines()]
    assert one["env_steps"] == 60 and one["member"] != one["parent"] and one["score"] <= one["parent_score"]
    stopped_at(tmp_path / "run", 70, **settings)
    dreamer.train(config_of(tmp_path / "run", **settings), resume="yes")
    assert (tmp_path / "run" / "lineage.jsonl").read_text() == (whole / "lineage.jsonl").read_text()
    for name in (one["member"], one["parent"]):
        equal(whole / name, tmp_path / "run" / name)


def test_the_programs_of_all_members_are_compiled_once(tmp_path, monkeypatch):
    traces = collections.Counter()

    def counting(name, function):
        def counted(*arguments):
            traces[name] += 1
            return function(*arguments)

        return counted

    def counted_agent(config, spec, **_):
        agent = tiny_runs.plain_agent(spec)
        return agent._replace(**{name: counting(name, getattr(agent, name)) for name in ("init", "act", "update")})

    monkeypatch.setattr("dreamer.agent.make", counted_agent)
    evaluated = {**HOST, "eval__every": 48, "eval__episodes": 1}
    dreamer.train(tiny_runs.tiny(tmp_path / "alone", **evaluated))
    alone = dict(traces)
    traces.clear()
    dreamer.train(config_of(tmp_path / "run", **evaluated, population__seeds=3))
    assert traces["update"] == alone["update"] and traces["act"] == alone["act"]


@pytest.mark.slow
def test_a_population_that_is_killed_ends_bit_identical(tmp_path):
    rng, run_dir = np.random.default_rng(0), tmp_path / "run"
    settings = {"population__seeds": 2, "lockstep": False, "collect": "turns"}
    whole = dreamer.train(tiny_runs.tiny(tmp_path / "whole", **killed_run.SETTINGS, seed=1))

    def ended() -> None:
        equal(run_dir / "seed1", whole)
        shutil.rmtree(run_dir)

    killed_run.repeat(2, lambda: killed_run.killed(run_dir, int(rng.integers(1, 400)), settings), ended)
    assert not killed_run.killed(run_dir, 0, settings)
    ended()


# ---- what is refused


def test_a_thread_that_collects_is_refused(tmp_path):
    with pytest.raises(UserError, match="a population collects and trains in turns: leave out --collect thread"):
        dreamer.train(config_of(tmp_path / "run", collect="thread"))


def test_the_loop_on_the_device_still_needs_an_environment_written_in_jax(tmp_path):
    with pytest.raises(UserError, match="loop device: the environment is not written in JAX.*use loop host"):
        dreamer.train(config_of(tmp_path / "run", loop="device"))
    assert not (tmp_path / "run").exists()


def test_train_states_that_do_not_fit_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamer.runtime.population.room.free_memory", lambda: 40)
    with pytest.raises(UserError, match="the train states of 2 members take .* enough for 1; train fewer members"):
        dreamer.train(config_of(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("env", ["probes:both", "jax_probes:both"])
def test_the_replays_of_all_members_share_the_free_memory(tmp_path, monkeypatch, env):
    monkeypatch.setattr("dreamer.runtime.replay.memory.free_memory", lambda: 400_000)
    sizes = []

    def look(population, *_):
        sizes.extend(run.parts.replay.size for run in population._runs.values())

    monkeypatch.setattr("dreamer.runtime.population.base.Population.train", look)
    dreamer.train(config_of(tmp_path / "run", env=env, env_steps=10**6, replay__capacity_steps=10**6))
    assert len(sizes) == 2 and sizes[0] == sizes[1]
    assert sizes[0].bound.startswith("half of the free memory") and 90_000 < sizes[0].nbytes <= 100_000
    assert "free for each of 2 runs" in sizes[0].describe()


def test_several_devices_are_refused():
    with pytest.raises(UserError, match="runs on the host learns on one device: set devices.count to 1"):
        train.check_first(SimpleNamespace(way="turns"), Spread([None, None], 1), 2, 1)


def test_members_of_different_loops_are_refused():
    with pytest.raises(UserError, match="the loop of one runs on the device, that of other on the host: choose"):
        train.check_way("other", "turns", "one", "device")


def test_members_at_different_steps_are_named(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    stopped_at(run_dir, 60)
    start = Run.start

    def unequal(run):
        start(run)
        if run.parts.config.seed:
            run.parts.replay.counts += 1

    monkeypatch.setattr(Run, "start", unequal)
    monkeypatch.setattr(HostPopulation, "_exploit_if_due", lambda population: None)
    with pytest.raises(UserError, match="members seed0 and seed1 have collected different rows"):
        dreamer.train(config_of(run_dir), resume="yes")
