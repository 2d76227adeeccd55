"""The RSSM without reward and continue heads, which learns from observations and actions alone."""

from __future__ import annotations

import dataclasses
import functools

import agent_laws
import jax
import pytest
import tiny

from dreamer import agent as agents
from dreamer.behaviors import actor_critic, controller, random, reach
from dreamer.errors import UserError
from dreamer.spaces import MASK, Action, Space, Spec

SPEC = tiny.SPECS["vector"]
WORLD_MODEL = dataclasses.replace(tiny.WORLD_MODEL, rewarded=False)
CONFIG = dataclasses.replace(tiny.CONFIG, world_model=WORLD_MODEL, behavior=random.Config())


@functools.cache
def agent():
    return agents.make(CONFIG, SPEC)


@functools.cache
def update():
    return tiny.jit(agent().update)


@functools.cache
def start():
    return tiny.jit(agent().init)(jax.random.key(0))


def test_it_has_no_reward_and_no_continue_head():
    state = start()
    assert set(agent().scales) == {"dyn", "rep", "rec/vector"} == set(state.hyper["scale"])
    assert set(state.params["world_model"]) == {"enc", "dyn", "dec"} and "live_label" not in state.hyper["world_model"]
    model, v = agent().world_model, agent().variables(state)["world_model"]
    assert model.predict(v, model.feat(model.latent(model.initial(2)))) == {}
    _, out = update()(state, tiny.make_batch(SPEC))
    assert not {"loss/rew", "loss/con"} & set(out.metrics) and "loss/rec/vector" in out.metrics


def test_rewards_and_true_ends_teach_it_nothing():
    batch = tiny.make_batch(SPEC)
    other = batch._replace(reward=batch.reward + 7, is_terminal=~batch.is_terminal)
    states = [update()(update()(start(), one)[0], one)[0] for one in (batch, other)]
    one, two = map(agent_laws.bits, states)
    assert one == two and agent_laws.bits(states[0].params) != agent_laws.bits(start().params)


def test_an_update_is_a_pure_function_that_keeps_the_form_of_the_state():
    out = agent_laws.check_pure(update(), start(), tiny.make_batch(SPEC))
    assert set(out.latent) == {"deter", "stoch"}


def test_updates_scanned_and_vmapped_over_seeds_are_those_of_a_loop_over_each_and_traced_once():
    batches = [tiny.make_batch(SPEC, seed=seed) for seed in range(2)]
    agent_laws.check_scan_and_vmap(agent(), update(), batches, rtol=1e-3, atol=1e-5)


def for_devices():
    """The agent, its spec and a batch, for `agent_laws.check_devices`."""
    return agent(), SPEC, tiny.make_batch(SPEC, batch_size=8)


def test_eight_devices_make_the_update_of_one():
    agent_laws.check_devices("test_rewardless", updates=1, rtol=2e-3, atol=2e-4)


def test_action_masks_are_still_predicted():
    mask = Space((2,), "int32", classes=2)
    spec = Spec({"vector": Space((3,), "float32"), MASK: mask}, Action((2,)))
    made = agents.make(CONFIG, spec)
    assert set(made.scales) == {"dyn", "rep", "rec/vector", "mask"}


@pytest.mark.parametrize("behavior", [actor_critic.Config(), controller.Config()], ids=lambda config: config.name)
def test_behaviors_that_need_rewards_are_refused(behavior):
    with pytest.raises(UserError) as caught:
        agents.make(dataclasses.replace(CONFIG, behavior=behavior), SPEC)
    assert str(caught.value) == (
        f"the behavior {behavior.name!r} needs cont, reward, which the world model does not predict with "
        "agent.world_model.rewarded: false; set it to true, or agent.behavior.name to random"
    )


def test_behaviors_that_need_none_are_taken():
    assert agents.make(dataclasses.replace(CONFIG, behavior=reach.Config()), SPEC).behavior.needs == frozenset()
