"""An axis of a population changes what its members learn, or is refused. It is never silently without an effect."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runs

import dreamer
from dreamer import agent as agents
from dreamer.config import Config, overlay
from dreamer.errors import UserError
from dreamer.fields import get, keys
from dreamer.layers import layer
from dreamer.runtime.population.hyper import own_hypers, program_of
from dreamer.runtime.population.members import Member
from envs import jax_probes

SPEC = jax_probes.make("both").spec  # a vector, discrete actions, no masks
BASE = dataclasses.replace(dreamer.load_config(), agent=tiny.CONFIG)
NUMBERS = {
    "agent.horizon", "agent.optimizer.learning_rate",
    *(f"agent.behavior.{name}" for name in ("lam", "entropy", "slow_rate", "slow_scale")),
    *(f"agent.behavior.{name}_scale" for name in ("policy", "value", "repval")),
    *(f"agent.world_model.{name}_scale" for name in ("rec", "reward", "cont", "dyn", "rep")),
    "agent.world_model.free_nats",
}  # fmt: skip
UNUSED = {
    *(f"agent.world_model.{name}" for name in ("minstd", "depth", "kernel", "mask_scale")),
    *(f"agent.behavior.{name}" for name in ("minstd", "maxstd")),
    *(f"agent.optimizer.{name}" for name in ("anneal",)),
}
# One of each kind; the others are tested by hand, because each test traces two programs.
GATE = {
    "agent.optimizer.learning_rate", "agent.behavior.entropy", "agent.behavior.minstd", "agent.world_model.deter",
}  # fmt: skip
NAMES = [f"agent.{key}" for key in keys(BASE.agent) if isinstance(get(BASE.agent, key), int | float)]
FIELDS = [pytest.param(name, marks=[] if name in GATE else pytest.mark.slow, id=name) for name in NAMES]


def changed(key: str) -> Config:
    """Returns BASE with another valid value of the number `key`."""
    value = get(BASE, key)
    for other in (not value,) if isinstance(value, bool) else (value / 2, 2 * value, value + 1, value + 2, 0.5):
        try:
            config = overlay(BASE, layer({key: other}, origin="test"))
        except UserError:
            continue
        if get(config, key) != value:
            return config
    raise AssertionError(f"no other value of {key} is valid")


def hypers(key: str, config: Config, shared: agents.Agent):
    members = [Member(name, own, {key: get(own, key)}) for name, own in (("first", BASE), ("other", config))]
    return own_hypers(members, shared, SPEC)


@functools.cache
def shared():
    return agents.make(BASE.agent, SPEC)


@functools.cache
def compiled():
    batch = tiny.make_batch(SPEC, batch_size=2)
    state = shared().init(jax.random.key(0))
    return tiny.jit(lambda hyper, state: shared().update(state._replace(hyper=hyper), batch)[0]), state


def learned(hyper) -> list:
    """Returns what three updates have learned."""
    update, state = compiled()
    for _ in range(3):
        state = update(hyper, state)
    return jax.tree.leaves((state.params, state.extra))


@pytest.mark.parametrize("key", FIELDS)
def test_an_axis_changes_what_a_member_learns_or_is_refused(key):
    config = changed(key)
    if key not in NUMBERS:
        words = "would have no effect" if key in UNUSED else "member other needs a program of its own"
        with pytest.raises(UserError, match=words):
            hypers(key, config, shared())
        return
    own = hypers(key, config, shared())
    one, other = learned(own["first"]), learned(own["other"])
    assert any(bool((a != b).any()) for a, b in zip(one, other, strict=True))


def part_of(name: str) -> agents.Agent:
    """Returns a plain agent that differs from others only in the function, or the constant, called `name`."""
    base = tiny_runs.plain_agent(SPEC)
    constant = np.array([1.0, 2.0, 3.0, 5.0 if name == "constant" else 4.0], np.float32)

    def init(key):
        return base.init(key)._replace(params={"w": jnp.full(4, 1.0 if name == "init" else 0.0)})

    def act(variables, key, carry, obs, is_first, mode):
        carry, action = base.act(variables, key, carry, obs, is_first, mode)
        return carry, jnp.roll(action, 1, -1) if name == mode else action

    def update(state, batch):
        state, out = base.update(state, batch)
        return state._replace(params={"w": state.params["w"] + constant}), out

    return base._replace(init=init, act=act, update=update)


@pytest.mark.parametrize("name", ["init", "collect", "sample", "mode", "constant"])
def test_a_program_differs_in_any_function_and_in_the_values_of_constants(name):
    assert program_of(part_of(""), SPEC) == program_of(part_of(""), SPEC) != program_of(part_of(name), SPEC)


def test_members_with_other_functions_are_refused(monkeypatch):
    monkeypatch.setattr(agents, "make", lambda config, spec, **_: part_of("init"))
    with pytest.raises(UserError, match="other needs a program of its own"):
        hypers("agent.horizon", changed("agent.horizon"), part_of(""))


def test_members_that_differ_in_their_seeds_only_have_numbers_of_their_own_that_an_update_may_donate():
    members = [Member(name, BASE, {}) for name in ("one", "two")]
    one, two = (jax.tree.leaves(hyper) for hyper in own_hypers(members, shared(), SPEC).values())
    assert one == two and not {id(x) for x in one} & {id(x) for x in two}
