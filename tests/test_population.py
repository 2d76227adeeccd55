"""A population: every member is the run that it would be alone, and one that fails leaves the others as they are."""

from __future__ import annotations

import functools
import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runs
from test_fused import SETTINGS, state_of

import dreamer
from dreamer import agent as agents
from dreamer.errors import UserError
from dreamer.runtime.fused import envs as environments
from dreamer.runtime.fused import loop as fused
from dreamer.runtime.fused import population
from dreamer.runtime.fused.loop import Loop
from dreamer.runtime.fused.ring import Ring, Sizes
from dreamer.runtime.population import exploit, members
from dreamer.runtime.replay import columns
from dreamer.spaces import Spec
from envs import jax_probes

MEMBERS, TURNS = 4, 24

# ---- the program


@functools.cache
def parts():
    env = jax_probes.make("both")
    agent = agents.make(tiny.CONFIG, env.spec)
    plan = fused.Plan(Sizes(4, 64, 1, tiny.LENGTH), 2, Fraction(1, 4), 12)
    functions = environments.make(env)
    return env.spec, agent, functions, fused.make_run(agent, env.spec, functions, plan)


def begun(seed: int, **hyper: float) -> Loop:
    """Returns the Loop of a member before its first turn. hyper: numbers of its behavior."""
    spec, agent, functions, _ = parts()
    spaces = columns.columns_of(spec, agent.storage)
    held = {k: jnp.zeros((4, 64, *s.shape), columns.dtype_of(s)) for k, s in spaces.items()}
    key = jax.random.key(seed)
    train = init()(key)
    own = {name: jnp.float32(value) for name, value in hyper.items()}
    train = train._replace(hyper={**train.hyper, "behavior": {**train.hyper["behavior"], **own}})
    keys = fused.Keys(jax.random.fold_in(key, 1), jax.random.fold_in(key, 2))
    return Loop(
        keys, train, Ring(held, jnp.int32(0), jnp.int32(0)),
        functions.begin(environments.env_keys(seed + jnp.arange(4, dtype=jnp.uint32))), agent.initial_carry(4),
        jnp.int32(0), fused.Episodes(jnp.zeros(4), jnp.zeros(4, jnp.int32)), jnp.bool_(False), jnp.int32(0),
    )  # fmt: skip


@functools.cache
def init():
    return tiny.jit(parts()[1].init)


def all_begun() -> list[Loop]:
    return [begun(seed, entropy=(3e-4, 1e-2)[seed % 2]) for seed in range(MEMBERS)]


@functools.cache
def alone() -> list[Loop]:
    run = tiny.jit(parts()[3])
    return [run(loop, jnp.int32(TURNS))[0] for loop in all_begun()]


@functools.cache
def together(size: int):
    return tiny.jit(population.make_population(parts()[3], MEMBERS, size))


@pytest.mark.parametrize(
    ("size", "atol"), [(1, 0.0), *(pytest.param(size, 1e-5, marks=pytest.mark.slow) for size in (2, 4))]
)
def test_each_member_is_the_run_that_it_would_be_alone(size, atol):
    """One after the other to the last bit; several by vmap within rounding."""
    whole, report = together(size)(population.stack(all_begun()), jnp.int32(TURNS))
    assert report.updates.tolist() == [1 + TURNS - 9] * MEMBERS
    for number, single in enumerate(alone()):
        own = population.member(whole, number)
        for one, other in zip(jax.tree.leaves(own.train.params), jax.tree.leaves(single.train.params), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=atol)
        for name in ("action", "reward", "is_first"):
            np.testing.assert_array_equal(own.ring.columns[name], single.ring.columns[name])


@pytest.mark.parametrize("size", [1, 4])
def test_a_member_of_nan_does_not_change_the_others_by_a_bit(size):
    sick = all_begun()
    train = sick[1].train
    sick[1] = sick[1]._replace(train=train._replace(params=jax.tree.map(lambda x: x * jnp.nan, train.params)))
    well, _ = together(size)(population.stack(all_begun()), jnp.int32(TURNS))
    ill, _ = together(size)(population.stack(sick), jnp.int32(TURNS))
    assert jnp.isnan(jax.tree.leaves(population.member(ill, 1).train.params)[0]).all()
    for number in (0, 2, 3):
        for one, other in zip(*(jax.tree.leaves(population.member(x, number).train) for x in (well, ill)), strict=True):
            assert (one == other).all()


# ---- the members


def named(**overrides) -> list[str]:
    config = dreamer.load_config(overrides={"run_dir": "runs/p", **overrides})
    return [member.name for member in members.members_of(config)]


def test_members_are_named_by_their_differences():
    assert named(**{"population.seeds": 3, "seed": 5}) == ["seed5", "seed6", "seed7"]
    axes = {"agent.optimizer.learning_rate": [1e-4, 3e-4], "agent": {"horizon": [100]}}
    assert named(**{"population.axes": axes}) == [
        "learning_rate=0.0001-horizon=100", "learning_rate=0.0003-horizon=100",
    ]  # fmt: skip
    assert named(**{"population.axes": {"agent.horizon": [100, 333]}, "population.seeds": 2}) == [
        "horizon=100-seed0", "horizon=100-seed1", "horizon=333-seed0", "horizon=333-seed1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"agent.horizn": [1]}, "did you mean 'agent.horizon'"),
        ({"replay_ratio": [16, 32]}, "dreamer sweep varies it"),
        ({"seed": [1, 2]}, "population.seeds"),
        ({"agent.horizon": 100}, "must be a list of values"),
        ({"agent.horizon": [100, 100]}, "names a value twice"),
        ({"agent.horizon": ["far"]}, "agent.horizon must be a number"),
    ],
)
def test_an_axis_that_members_cannot_vary_is_named(axes, words):
    with pytest.raises(UserError, match=words):
        named(**{"population.axes": axes})


def test_an_axis_that_changes_a_shape_is_left_to_a_sweep(tmp_path):
    settings = {**SETTINGS, "population__axes": {"agent.world_model.hidden": [8, 16]}}
    with pytest.raises(UserError, match="hidden=16 needs a program of its own.*dreamer sweep"):
        dreamer.train(tiny_runs.tiny(tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


# ---- population-based training


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 1), (0.5, 2)])
def test_the_worst_members_continue_from_the_best(share, expected):
    scores = {"a": 3.0, "b": 1.0, "c": 9.0, "d": float("nan")}
    found = exploit.pairs(scores, share, np.random.default_rng(0))
    assert [worst for worst, _ in found] == ["d", "b"][:expected]
    assert {parent for _, parent in found} <= {"c", "a"}


def test_numbers_are_multiplied_or_divided_and_stay_in_their_range():
    rng = np.random.default_rng(0)
    found = [exploit.explored({"agent.horizon": 100.0}, 1.25, rng)["agent.horizon"] for _ in range(20)]
    assert set(found) == {80.0, 125.0}
    config, values = exploit.with_values(dreamer.load_config(), {"agent.horizon": 0.5}, {"agent.horizon": 1.0})
    assert values == {"agent.horizon": 1.0} and config.agent.horizon == 1.0


AXES = {"agent.optimizer.learning_rate": [1e-4, 3e-4, 1e-3, 3e-3]}


def rated_agent(config: agents.Config, spec: Spec, **_: bool) -> agents.Agent:
    """Returns a plain agent that compiles fast, with a learning rate in `hyper` and a state of its optimizer."""
    base = tiny_runs.plain_agent(spec)

    def init(key):
        hyper = {"learning_rate": {"": jnp.float32(config.optimizer.learning_rate)}}
        return base.init(key)._replace(hyper=hyper, opt_state={"moved": jnp.zeros(4)})

    def update(state, batch):
        after, out = base.update(state, batch)
        moved = 100 * state.hyper["learning_rate"][""] * (after.params["w"] - state.params["w"])
        optimizer = {"moved": 0.9 * state.opt_state["moved"] + moved}
        return after._replace(params={"w": state.params["w"] + optimizer["moved"]}, opt_state=optimizer), out

    return base._replace(init=init, update=update)


def test_members_inherit_what_others_have_learned_and_a_resume_repeats_it(tmp_path, monkeypatch):
    monkeypatch.setattr(agents, "make", rated_agent)
    settings = {**SETTINGS, "population__axes": AXES, "population__exploit_every": 80, "env_steps": 128}
    settings |= {"eval__every": 40, "eval__episodes": 1}
    whole = dreamer.train(tiny_runs.tiny(tmp_path / "whole", **settings))
    lineage = [json.loads(line) for line in (whole / "lineage.jsonl").read_text().splitlines()]
    assert [one["env_steps"] for one in lineage] == [80]
    (one,) = lineage
    assert one["score"] <= one["parent_score"] and one["member"] != one["parent"]
    rate = float(one["parent"].partition("=")[2])
    assert one["values"]["agent.optimizer.learning_rate"] in (pytest.approx(rate * 1.2), pytest.approx(rate / 1.2))
    config = tiny_runs.tiny(tmp_path / "run", **settings)
    dreamer.train(config, callbacks=[lambda line: "stop" if line.env_steps >= 90 else None])
    dreamer.train(config, resume="yes")
    assert (tmp_path / "run" / "lineage.jsonl").read_text() == (whole / "lineage.jsonl").read_text()
    for name in (one["member"], one["parent"]):
        for ours, theirs in zip(state_of(whole / name), state_of(tmp_path / "run" / name), strict=True):
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_members_that_are_never_evaluated_cannot_be_compared(tmp_path):
    settings = {**SETTINGS, "population__axes": AXES, "population__exploit_every": 80, "eval__every": 0}
    with pytest.raises(UserError, match="exploit_every 80 compares the members by their evaluations: set eval.every"):
        dreamer.train(tiny_runs.tiny(tmp_path / "run", **settings))
