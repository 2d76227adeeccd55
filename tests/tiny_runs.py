"""Runs of a few seconds for tests of the loop: one config, and trained runs that several test files share."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dreamer
from dreamer import agent as agents
from dreamer import plugins
from dreamer.config import Config, load
from dreamer.interfaces import Agent, Carry, TrainState, Update, Variables
from dreamer.runtime.env.adapter import spec_of
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.log import glossary
from dreamer.spaces import Space, Spec

# The smallest config with every part: one update of 2 x 8 rows every 8 environment steps.
TINY: dict[str, Any] = {
    "env": "broken_envs:sound",
    "env_steps": 96,
    "replay_ratio": 2,
    "lockstep": True,
    "agent": {
        "world_model": {
            "deter": 16, "hidden": 8, "stoch": 2, "blocks": 2, "units": 8, "depth": 2, "mults": [1], "kernel": 3,
            "encoder_layers": 1, "prior_layers": 1,
        },
        "behavior": {"units": 8, "actor_layers": 1, "critic_layers": 1, "imagine_length": 3},
    },
    "workers": {"backend": "inline", "envs": 2},
    "replay": {"capacity_steps": 1000, "batch_size": 2, "batch_length": 8},
    "log": {"every": 0},
    "eval": {"every": 0, "episodes": 3},
}  # fmt: skip


def tiny(run_dir: Path, **overrides: Any) -> Config:
    """Returns the tiny config. overrides: by dotted key, with "__" for the dot. Without lockstep, a thread collects."""
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    thread = {"collect": "thread"} if keys.get("lockstep") is False else {}
    return load(overrides={**flat(TINY), "run_dir": str(run_dir), **thread, **keys})


def flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Flattens nested values to dotted keys."""
    out = {}
    for key, value in values.items():
        out.update(flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value})
    return out


def trained(tmp_path_factory: pytest.TempPathFactory, **overrides: Any) -> Path:
    """Returns the run directory of the tiny config with these overrides; the first call trains it."""
    name = "-".join(f"{key}={value}" for key, value in overrides.items()).replace(":", "-")
    run_dir = tmp_path_factory.getbasetemp() / "tiny_runs" / (name or "base")
    if not (run_dir / "config.yaml").exists():
        assert dreamer.train(tiny(run_dir, **overrides)) == run_dir
    return run_dir


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl. Raises ValueError unless each line is strict JSON and the glossary explains its metrics."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    text = (run_dir / "metrics.jsonl").read_text()
    found = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    names = {name for line in found for name in line} - {"nonfinite"}
    if unexplained := sorted(name for name in names if not glossary.entry_of(name)):
        raise ValueError(f"dreamer/runtime/log/glossary.py does not explain {', '.join(unexplained)}")
    return found


@functools.cache
def state_form(env: str) -> TrainState:
    """Returns the shapes of the tiny agent's train state for an environment."""
    agent = agents.make(tiny(Path()).agent, spec_of(plugins.make_env(env)))
    return jax.eval_shape(agent.init, jax.random.key(0))


def saved(run_dir: Path, env: str = TINY["env"]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Returns the bits of every leaf of the newest checkpoint by name, and its env_steps and updates."""
    with Checkpoints(run_dir) as checkpoints:
        state, meta = checkpoints.restore(state_form(env))
    meta = {name: meta[name] for name in ("env_steps", "updates")}
    return {jax.tree_util.keystr(path): bits(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}, meta


def bits(leaf: Any) -> bytes:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()


def recording_agent(spec: Spec) -> Agent:
    """An agent without networks whose latent records its inputs, and whose discrete actions are random.

    latent: count [E, 1] of rows since the episode's first | previous [E, A] action | seen [E, ..], the key "vector"
    An update adds 1 to its one parameter, and returns the batch's rewards as latents and their mean as metric.
    """
    width = spec.action_width
    seen = spec.obs["vector"].shape
    storage = {"count": (1,), "previous": (width,), "seen": seen}

    def init(key):
        return TrainState(jnp.int32(0), key, {"w": jnp.zeros(4)}, {"slow": jnp.ones(2)}, {}, ())

    def variables(state):
        return {"world_model": Variables({}), "behavior": Variables(state.params)}

    def initial_carry(envs):
        return Carry({name: jnp.zeros((envs, *shape)) for name, shape in storage.items()}, jnp.zeros((envs, width)))

    def act(variables, key, carry, obs, is_first, mode):
        fresh = is_first[:, None]
        latent = {
            "count": jnp.where(fresh, 0, carry.state["count"]) + 1,
            "previous": jnp.where(fresh, 0, carry.prev_action),
            "seen": obs["vector"] + variables["behavior"].params["w"][0],
        }
        choice = jax.random.randint(key, is_first.shape, 0, width)
        action = jax.nn.one_hot(choice if mode != "mode" else jnp.zeros_like(choice), width)
        return Carry(latent, action), action

    def update(state, batch):
        moved = state._replace(step=state.step + 1, params={"w": state.params["w"] + 1})
        return moved, Update({"reward": batch.reward}, {"loss/reward": batch.reward.mean()})

    def report(state, batch):
        return {"truth/vector": batch.obs["vector"], "dream/vector": batch.obs["vector"] + state.params["w"][0]}

    spaces = {name: Space(shape, "float32") for name, shape in storage.items()}
    return Agent(
        init, variables, initial_carry, update, act, report, encode=lambda variables, key, obs: obs["vector"],
        pack=lambda state: state, storage=spaces, scales={"reward": 1.0}, world_model=None, behavior=None,
    )  # fmt: skip


def plain_agent(spec: Spec) -> Agent:
    """An agent without networks that compiles fast, and whose every bit depends on all of its inputs.

    Updates refresh its latents and add rewards, latents and noise to its parameters, on which its actions depend.
    """
    base = recording_agent(spec)
    storage = {name: space.shape for name, space in base.storage.items()}

    def act(variables, key, carry, obs, is_first, mode):
        carry, action = base.act(variables, key, carry, obs, is_first, mode)
        turns = jnp.int32(jnp.abs(variables["behavior"].params["w"].sum()) * 7) % action.shape[-1]
        bent = jnp.roll(action, turns, -1)
        return Carry({**carry.state, "seen": carry.state["seen"] * 0.5}, bent), bent

    def update(state, batch):
        noise = jax.random.normal(jax.random.fold_in(state.key, state.step), (4,))
        gathered = batch.reward[:, -4:].mean(0) + batch.latent["seen"].mean() + 0.01 * noise
        params = {"w": jnp.tanh(0.9 * state.params["w"] + gathered)}
        lead = batch.reward[:, 1:].shape
        latent = {name: jnp.ones((*lead, *shape)) * params["w"][0] for name, shape in storage.items()}
        return state._replace(step=state.step + 1, params=params), Update(latent, {"loss/w": params["w"].mean()})

    return base._replace(act=act, update=update)
