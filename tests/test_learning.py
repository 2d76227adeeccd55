"""Each probe of envs/probes.py is solved by the whole program; one that fails names the broken part.

`dreamer train experiments/probe.yaml --env probes:NAME` is the same by hand.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import compiled_once

import dreamer
from dreamer.apps.evaluate import restore
from dreamer.nets.adapters import from_flax
from dreamer.nets.heads import ScalarHead
from dreamer.ops.distributions import twohot_bins, twohot_mean
from dreamer.runtime.readers import spec_of
from dreamer.world_models import rssm
from envs.probes import PROBES, make

PRESET = Path(__file__).parents[1] / "experiments" / "probe.yaml"
SETTINGS: dict[str, dict] = {
    "delayed": {"env_steps": 6000},
    "action_continuous": {"env_steps": 6000},
    "both": {"env_steps": 5000},
    # Pictures are dear on a CPU: small batches, more of them. Two groups learned sooner than eight; a guess at why: the
    # prior draws its groups independently, and cannot dream a random side that the posterior spelled in many of them.
    "pixel": {
        "env_steps": 2500,
        "replay_ratio": 32,
        "replay.batch_size": 8,
        "replay.batch_length": 8,
        "agent.world_model.stoch": 2,
    },
}


@pytest.fixture(autouse=True, scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with compiled_once(tmp_path_factory):
        yield


@functools.cache
def trained(name: str) -> Path:
    """The run directory of an agent trained on the probe."""
    run_dir = Path(tempfile.mkdtemp()) / name
    overrides = {"env": f"probes:{name}", "run_dir": str(run_dir), "log.tensorboard": False, "env_steps": 3000}
    overrides["lockstep"] = True  # a probe that fails fails again
    overrides |= SETTINGS.get(name, {})
    return dreamer.train(dreamer.load_config(PRESET, overrides=overrides))


def fails(name: str) -> str:
    return f"probe {name} fails ({PROBES[name].description}): look at {PROBES[name].broken}"


@pytest.mark.parametrize("name", PROBES)
def test_probe_is_solved(name: str):
    lines = [json.loads(line) for line in (trained(name) / "metrics.jsonl").read_text().splitlines()]
    returned = next(line["eval/return"] for line in reversed(lines) if "eval/return" in line)
    assert returned >= PROBES[name].solved_return, fails(name)


def predictions(name: str, cue: float, chosen: int = 0, samples: int = 65) -> tuple[float, float]:
    """What an agent expects of two rows: the critic's value at the first, the reward at the second after `chosen`.

    Medians over samples of the latent: its uniform mixture makes one group of eight random in 8 % of them.
    """
    config, _, params, _ = restore(trained(name))
    spec = spec_of(make(name))
    world_model = rssm.make(config.agent.world_model, spec)
    behavior = config.agent.behavior
    critic = from_flax(ScalarHead(behavior.critic_layers, behavior.units, behavior.bins))
    obs = {"vector": jnp.full((samples, 2, 1), cue, jnp.float32)}
    action = jnp.zeros((samples, 2, spec.action_width)).at[:, 1, chosen].set(1.0)
    is_first = jnp.tile(jnp.array([[True, False]]), (samples, 1))
    latent = world_model.observe(
        params["world_model"], jax.random.key(0), world_model.initial(samples), obs, action, is_first
    )
    feat = world_model.feat(latent)
    value = twohot_mean(critic.apply(params["behavior"]["val"], feat[:, 0]), twohot_bins(behavior.bins))
    reward, _ = world_model.predict(params["world_model"], feat)
    return float(jnp.median(value)), float(jnp.median(reward[:, 1]))


@pytest.mark.parametrize(
    ("name", "cue", "reward"), [("constant", 0, 1), ("observation", -1, -1), ("observation", 1, 1)]
)
def test_reward_head_and_critic_know_the_reward_of_a_one_step_probe(name: str, cue: int, reward: int):
    value, predicted = predictions(name, cue)
    np.testing.assert_allclose([predicted, value], reward, atol=0.1, err_msg=fails(name))


@pytest.mark.parametrize("action", range(4))
def test_reward_of_the_counter_is_told_from_the_previous_action(action: int):
    # Also of actions that the trained policy no longer takes: a row that is one off knows only its habit.
    _, predicted = predictions("counter", 0, action)
    np.testing.assert_allclose(predicted, action, atol=0.5, err_msg=fails("counter"))
