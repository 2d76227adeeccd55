"""The whole program solves each probe with vectors; a failing probe names the broken part."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_runs import check_solved, fails, trained

from dreamer.apps.acting import restore
from dreamer.nets.adapters import from_flax
from dreamer.nets.heads import ScalarHead
from dreamer.ops.distributions import twohot_bins, twohot_mean
from dreamer.runtime.env.adapter import spec_of
from dreamer.world_models import rssm
from envs.probes import PROBES, make

GATE = {"counter"}  # the gate trains on the one that needs memory of the action


def slow_ones(names: Iterable[str], quick: Collection[str]) -> list[Any]:
    """Returns parameters of a test, marked slow except for those in `quick`."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in sorted(names)]


@pytest.mark.parametrize("name", slow_ones(set(PROBES) - {"pixel"}, GATE))
def test_probe_is_solved(name: str):
    check_solved(name)


@pytest.mark.parametrize("name", slow_ones({"delayed", "both", "action_continuous"}, ()))
def test_probe_in_jax_is_solved_by_the_fused_loop(name: str):
    check_solved(name, ("env", f"jax_probes:{name}"))


def predictions(name: str, cue: float, chosen: int = 0, samples: int = 65) -> tuple[float, float]:
    """Returns an agent's predictions for two rows: the value at the first, and the reward at the second after `chosen`.

    These are medians over samples of the latent, because its uniform mixture randomizes a group in 8 % of the samples.
    """
    run = restore(trained(name))
    config, variables = run.config, run.variables
    spec = spec_of(make(name))
    world_model = rssm.make(config.agent.world_model, spec)
    behavior = config.agent.behavior
    critic = from_flax(ScalarHead(behavior.critic_layers, behavior.units, behavior.bins))
    obs = {"vector": jnp.full((samples, 2, 1), cue, jnp.float32)}
    action = jnp.zeros((samples, 2, spec.action_width)).at[:, 1, chosen].set(1.0)
    is_first = jnp.tile(jnp.array([[True, False]]), (samples, 1))
    _, latent = world_model.observe(
        variables["world_model"], jax.random.key(0), world_model.initial(samples), obs, action, is_first
    )
    feat = world_model.feat(latent)
    value = twohot_mean(critic.apply(variables["behavior"].params["val"], feat[:, 0]), twohot_bins(behavior.bins))
    reward = world_model.predict(variables["world_model"], feat)["reward"]
    return float(jnp.median(value)), float(jnp.median(reward[:, 1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cue", "reward"), [("constant", 0, 1), ("observation", -1, -1), ("observation", 1, 1)]
)
def test_reward_head_and_critic_know_the_reward_of_a_one_step_probe(name: str, cue: int, reward: int):
    value, predicted = predictions(name, cue)
    np.testing.assert_allclose([predicted, value], reward, atol=0.1, err_msg=fails(name))


@pytest.mark.slow
@pytest.mark.parametrize("action", range(4))
def test_reward_of_the_counter_is_predicted_from_the_previous_action(action: int):
    # Includes actions that the trained policy no longer takes: a model that is off by one row knows only its habit.
    _, predicted = predictions("counter", 0, action)
    np.testing.assert_allclose(predicted, action, atol=0.5, err_msg=fails("counter"))
