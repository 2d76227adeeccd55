"""Several updates in one call of the device: the same as one after the other, and as many as with single calls."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from fractions import Fraction

import jax
import pytest
import tiny
import tiny_runs
from rigs import turn
from test_devices import environment
from test_learner import ROWS, SPEC, batch
from test_priorities import rating_agent
from test_resume import state_of
from tiny_runs import bits, lines, plain_agent, recording_agent

import dreamer
from dreamer import agent as agents
from dreamer.config import load
from dreamer.errors import UserError
from dreamer.runtime.learning.learner import Learner
from dreamer.runtime.learning.limiter import Limiter
from dreamer.runtime.run import calls, start
from dreamer.runtime.run.build import open_run, open_session
from dreamer.runtime.run.loop import Run
from dreamer.runtime.run.stopping import Stopped

# Four updates of 2 x 8 rows are due after each turn of two environments.
FOUR = {
    "env": "probes:both", "eval__episodes": 0, "replay_ratio": 32, "lockstep": False, "collect": "turns",
    "replay__online": False,
}  # fmt: skip
SHARDED = """
import jax, numpy as np
import tiny
from dreamer.runtime.devices import mesh as meshes, placement
from dreamer.runtime.learning.learner import Learner

placement.SMALLEST_SPLIT = 64  # the tiny agent has no large leaf
agent, spec = tiny.make_agent("vector"), tiny.SPECS["vector"]
batches = [tiny.make_batch(spec, seed=seed) for seed in range(2)]
for fsdp in (1, 2):
    each, together = (
        Learner(agent, spec, seed=0, batch_size=tiny.BATCH, lockstep=False, config=meshes.Config(count=2, fsdp=fsdp))
        for _ in range(2)
    )
    expected = [each.fetch(each.step(each.place(one), None)) for one in batches]
    placed = jax.tree.map(lambda x: x.sharding, together.state)
    pending = together.step_several([together.place(one) for one in batches], [None, None])
    assert pending.out.latent[1]["deter"].addressable_shards[0].data.shape[0] == tiny.BATCH // 2
    assert jax.tree.map(lambda x: x.sharding, together.state) == placed
    found = together.fetch_several(pending)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)
    for one, other in zip(jax.tree.leaves(each.state.params), jax.tree.leaves(together.state.params), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)
"""


@pytest.fixture
def quick(monkeypatch):
    """Makes the runs of a test train an agent that compiles fast and whose every bit depends on all of its inputs."""
    monkeypatch.setattr(agents, "make", lambda config, spec, **_: plain_agent(spec))


def all_bits(tree) -> list[bytes]:
    return [bits(leaf) for leaf in jax.tree.leaves(tree)]


def make_run(stack: contextlib.ExitStack, folder, **overrides) -> Run:
    config = tiny_runs.tiny(folder / "run", **{**FOUR, **overrides})
    return Run(open_run(start.decide(config), open_session(config, stack)))


def test_updates_in_one_call_are_those_of_single_calls_to_the_last_bit():
    agent, spec = tiny.make_agent("vector"), tiny.SPECS["vector"]
    each, together = (Learner(agent, spec, seed=0, batch_size=tiny.BATCH, lockstep=False) for _ in range(2))
    batches = [tiny.make_batch(spec, seed=seed) for seed in range(3)]
    expected = [each.fetch(each.step(each.place(one), ROWS)) for one in batches]
    found = together.fetch_several(together.step_several([together.place(one) for one in batches], [ROWS] * 3))
    assert all_bits(found) == all_bits(expected) and all_bits(together.state) == all_bits(each.state)
    assert together.updates == each.updates == 3
    assert all_bits(together.snapshot().leaves) == all_bits(each.snapshot().leaves)


@pytest.mark.slow
def test_several_devices_make_the_same_updates_in_one_call():
    done = subprocess.run([sys.executable, "-c", SHARDED], env=environment(2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_lockstep_the_parameters_that_act_are_one_call_old_at_most():
    ours = Learner(recording_agent(SPEC), SPEC, seed=0, batch_size=2, lockstep=False)
    for call in range(1, 4):
        ours.step_several([ours.place(batch())] * 4, [ROWS] * 4)
        assert 4 * (call - 1) <= ours.snapshot().updates <= 4 * call


def test_a_turn_makes_its_updates_in_one_call(tmp_path, monkeypatch, quick):
    made = []
    with contextlib.ExitStack() as stack:
        run = make_run(stack, tmp_path)
        learner = run.parts.learner
        for name in ("step", "step_several"):
            step = getattr(learner, name)
            monkeypatch.setattr(learner, name, lambda *args, step=step: made.append(learner.updates) or step(*args))
        while learner.updates < 13:
            turn(run)
    assert made == [0, 1, 5, 9]


def test_the_program_for_several_is_compiled_only_where_it_is_used(tmp_path, monkeypatch, quick):
    compiled = []
    monkeypatch.setattr(Learner, "compile_several", lambda ours, batches: compiled.append(len(batches)))
    for number, settings in enumerate([{"replay_ratio": 8}, {"updates_per_call": 1}, {"lockstep": True}, {}]):
        dreamer.train(tiny_runs.tiny(tmp_path / str(number), **{**FOUR, "collect": "auto", **settings}))
        assert compiled == ([4] if not settings else [])


@pytest.mark.parametrize("settings", [{"collect": "turns"}, {"collect": "thread", "updates_per_call": 4}])
def test_a_run_makes_and_logs_as_many_updates_as_with_single_calls(tmp_path, quick, settings):
    ends, means = [], []
    for number, most in enumerate([{"updates_per_call": 1}, settings]):
        run_dir = tmp_path / str(number)
        dreamer.train(tiny_runs.tiny(run_dir, **{**FOUR, **settings, **most}))
        ends.append({name: lines(run_dir)[-1][name] for name in ("env_steps", "updates")})
        means.append([line for line in lines(run_dir) if "loss/w" in line])
    assert ends[0] == ends[1] and ends[1]["updates"] > 100
    assert means[1] and means[1][-1]["updates"] == ends[1]["updates"]


def test_evaluations_and_checkpoints_fall_on_the_same_updates(tmp_path, quick):
    settings = {"eval__every": 24, "eval__episodes": 1, "eval__video": "off"}
    found = []
    for number, most in enumerate((1, 0)):
        run_dir = tmp_path / str(number)
        dreamer.train(tiny_runs.tiny(run_dir, **{**FOUR, **settings, "updates_per_call": most}))
        found.append([(line["env_steps"], line["updates"]) for line in lines(run_dir) if "eval/return" in line])
    assert found[0] == found[1] and len(found[0]) == 4


@pytest.mark.parametrize("at", [12, 31])
def test_a_run_that_is_resumed_equals_one_that_was_never_stopped(tmp_path, quick, at):
    whole = dreamer.train(tiny_runs.tiny(tmp_path / "whole", **FOUR))
    turns, tend = iter(range(10**9)), Run.tend

    def tending(run):
        if next(turns) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        tend(run)

    config = tiny_runs.tiny(tmp_path / "run", **FOUR)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Run, "tend", tending)
        dreamer.train(config)
    dreamer.train(config, resume="yes")
    assert state_of(tmp_path / "run") == state_of(whole)


def test_latents_and_priorities_of_all_updates_reach_the_replay(tmp_path, monkeypatch):
    monkeypatch.setattr(agents, "make", lambda config, spec, priorities: rating_agent(spec, priorities=priorities))
    drawn, refreshed, rated = [], [], []
    with contextlib.ExitStack() as stack:
        run = make_run(stack, tmp_path, replay__uniform=0, replay__priority=1)
        replay = run.parts.replay
        sample = replay.sample
        monkeypatch.setattr(replay, "sample", lambda *args: drawn.append(sample(*args)) or drawn[-1])
        monkeypatch.setattr(replay, "refresh", lambda rows, latent: refreshed.append((rows, latent["count"].shape)))
        monkeypatch.setattr(replay, "prioritise", lambda rows, surprise: rated.append((rows, surprise.shape)))
        while run.parts.learner.updates < 9:
            turn(run)
    rows = [rows for _, rows in drawn]
    assert len(rows) == 9
    assert [one for one, _ in refreshed] == [one for one, _ in rated] == rows
    assert {shape for _, shape in rated} == {(2, 8)} and {shape for _, shape in refreshed} == {(2, 8, 1)}


def test_the_limiter_gives_one_update_or_as_many_as_a_call_takes():
    limiter = Limiter(Fraction(1), envs=5, updates=4)
    limiter.collected(100, ready=True)
    assert limiter.at_once() == 1
    limiter.trained()
    assert limiter.at_once() == 0
    limiter.collected(105, ready=True)
    assert limiter.at_once() == 4
    limiter.trained(4)
    assert limiter.at_once() == limiter.due() == 1


def test_the_collector_lets_the_updates_of_a_call_become_due():
    assert Limiter(Fraction(1, 8), envs=4, updates=8).slack == 8
    assert Limiter(Fraction(1, 8), envs=4).slack == 2


@pytest.mark.parametrize(
    ("overrides", "way", "due", "expected"),
    [
        ({}, "turns", Fraction(1, 2), 1),
        ({}, "turns", Fraction(5, 2), 2),
        ({}, "turns", Fraction(7), 7),
        ({}, "turns", Fraction(12), 6),
        ({}, "thread", Fraction(64), 8),
        ({}, "thread", Fraction(1, 2), 1),
        ({"updates_per_call": 4}, "thread", Fraction(1, 2), 4),
        ({"updates_per_call": 4}, "turns", Fraction(1, 2), 1),
        ({"updates_per_call": 4}, "turns", Fraction(6), 3),
        ({"updates_per_call": 1}, "thread", Fraction(9), 1),
        ({"updates_per_call": 4}, "device", Fraction(9), 1),
        ({"lockstep": True}, "turns", Fraction(9), 1),
        ({"replay_ratio": 0}, "thread", Fraction(0), 1),
    ],
)
def test_a_call_makes_the_updates_of_a_turn_or_what_the_config_says(overrides, way, due, expected):
    chosen = calls.choose(load(overrides=overrides), way, due=due, batch_bytes=1, free=10**9)
    assert chosen.updates == expected
    assert (f"updates: {expected} in one call" in chosen.line) == (expected > 1)


def test_fewer_updates_are_made_in_one_call_where_their_batches_would_fill_the_memory():
    def chosen(free, **overrides):
        return calls.choose(load(overrides=overrides), "turns", due=Fraction(8), batch_bytes=10**6, free=free).updates

    assert [chosen(free * 10**6) for free in (192, 191, 95, 47)] == [8, 4, 2, 1]
    assert chosen(24 * 10**6, updates_per_call=8) == 8
    with pytest.raises(UserError, match="updates_per_call 8: the batches .* 24.0 MB, but only 23.0 MB are free"):
        chosen(23 * 10**6, updates_per_call=8)


def test_lockstep_refuses_several_updates_in_a_call():
    with pytest.raises(UserError, match="lockstep makes one update at a time; leave out updates_per_call 2"):
        calls.choose(
            load(overrides={"lockstep": True, "updates_per_call": 2}), "turns", due=Fraction(2), batch_bytes=1, free=9
        )


def test_a_population_says_that_it_makes_updates_one_at_a_time():
    config = load(overrides={"updates_per_call": 2})
    chosen = calls.choose(config, "turns", due=Fraction(2), batch_bytes=1, free=9, population=True)
    assert chosen.updates == 1 and "a population makes its updates one at a time" in chosen.line
