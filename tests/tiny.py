"""Agents small enough to compile in seconds, for three kinds of environment, with random batches and cached results.

Kinds: "vector" (continuous actions), "image" (discrete actions), "mixed" (two pictures, two vectors, one class;
continuous actions). Compiled functions are cached, so that the tests of one process share them.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from dreamer import agent as agents
from dreamer.behaviors import actor_critic
from dreamer.interfaces import Agent, Behavior, Learned, TrainState, Update, Variables, WorldModel
from dreamer.ops import optimizers
from dreamer.runtime.env.actions import random_actions
from dreamer.spaces import Action, Space, Spec
from dreamer.steps import Batch
from dreamer.world_models import rssm
from envs.probes import Counter

SPECS = {
    "vector": Spec({"vector": Space((3,), "float32")}, Action(continuous=2)),
    "image": Spec({"image": Space((48, 48, 3), "uint8")}, Action((4,))),
    "mixed": Spec(
        {
            "camera": Space((48, 48, 3), "uint8"),
            "depth": Space((48, 48, 1), "uint8"),
            "position": Space((3,), "float32"),
            "velocity": Space((2, 2), "float32"),
            "mode": Space((), "int32", classes=3),
        },
        Action(continuous=2),
    ),
}
KINDS = tuple(SPECS)
HORIZON = 333.0
WORLD_MODEL = rssm.Config(
    deter=16, hidden=8, stoch=4, classes=3, blocks=2, units=8, depth=2, mults=(1, 2), kernel=3, encoder_layers=1,
    prior_layers=1, bins=15,
)  # fmt: skip
BEHAVIOR = actor_critic.Config(units=8, actor_layers=1, critic_layers=1, bins=15, imagine_length=3)
FEAT = WORLD_MODEL.deter + WORLD_MODEL.stoch * WORLD_MODEL.classes
# A large eps keeps rounding errors around zero gradients from becoming updates of full size.
OPTIMIZER = optimizers.Config(learning_rate=1e-3, warmup=2, eps=1e-3)
CONFIG = agents.Config("float32", HORIZON, True, WORLD_MODEL, BEHAVIOR, OPTIMIZER)
BATCH, LENGTH = 8, 6


def known_to_xla(options: dict[str, bool]) -> dict[str, bool]:
    """Returns the `options` that this version of XLA supports."""
    known = {}
    for name, value in options.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value})()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


# The program is equally correct without the costly passes, and compiles five times as fast.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    **known_to_xla({"xla_cpu_use_fusion_emitters": False}),
}
jit = functools.partial(jax.jit, compiler_options=QUICK)
TRACES: collections.Counter[tuple[str, str]] = collections.Counter()  # number of traces of `update`, by its arguments


def make_batch(
    spec: Spec, *, batch_size: int = BATCH, length: int = LENGTH, context: int = 1, seed: int = 0,
    dtype: str = "float32", world_model: rssm.Config = WORLD_MODEL,
) -> Batch:  # fmt: skip
    """Makes random sequences like those of the replay (numpy), with `context` rows, episode starts and both ends.

    dtype: of the stored deter. The flags are consistent: a first row follows each last row.
    """
    rng = np.random.default_rng(seed)
    lead = (batch_size, context + length)
    last = rng.random(lead) < 0.2
    first = np.concatenate([rng.random((batch_size, 1)) < 0.3, last[:, :-1]], 1)
    latent = {}
    if context:
        deter = rng.uniform(-1, 1, (batch_size, 1, world_model.deter)).astype(jnp.dtype(dtype))
        classes = rng.integers(0, world_model.classes, (batch_size, 1, world_model.stoch)).astype(np.uint8)
        latent = {"deter": deter, "stoch": classes}
    return Batch(
        obs={key: make_values(rng, space, lead) for key, space in spec.obs.items()},
        action=make_actions(rng, spec, lead),
        reward=rng.normal(size=lead).astype(np.float32),
        is_first=first,
        is_last=last,
        is_terminal=last & (rng.random(lead) < 0.5),
        latent=latent,
    )


def make_values(rng: np.random.Generator, space: Space, lead: tuple[int, ...]) -> np.ndarray:
    """Makes random values of a space [*lead, *shape]."""
    if space.discrete:
        return rng.integers(0, space.classes, (*lead, *space.shape)).astype(space.dtype)
    if space.image:
        return rng.integers(0, 256, (*lead, *space.shape)).astype(np.uint8)
    return rng.normal(size=(*lead, *space.shape)).astype(space.dtype)


def make_actions(rng: np.random.Generator, spec: Spec, lead: tuple[int, ...]) -> np.ndarray:
    """Makes random action vectors [*lead, A]."""
    return random_actions(spec.action, rng, math.prod(lead)).reshape(*lead, spec.action_width)


def argmax_onehot(key: jax.Array, logits: jax.Array) -> jax.Array:
    """A sampler for posterior and prior that ignores the key."""
    return jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1])


@functools.cache
def parts(kind: str, dtype: str = "float32") -> tuple[WorldModel, Behavior]:
    """Makes the world model (with argmax instead of sampling) and the behavior of a kind."""
    world_model = rssm.make(
        WORLD_MODEL, SPECS[kind], dtype=jnp.dtype(dtype), horizon=HORIZON, sample=argmax_onehot
    )
    behavior = actor_critic.make(BEHAVIOR, SPECS[kind], feat_width=FEAT, dtype=jnp.dtype(dtype), horizon=HORIZON)
    return world_model, behavior


@functools.cache
def make_agent(kind: str, dtype: str = "float32") -> Agent:
    """Makes the agent of a kind from its config, as for users."""
    return agents.make(dataclasses.replace(CONFIG, compute_dtype=dtype), SPECS[kind])


@functools.cache
def init(kind: str) -> Callable[[jax.Array], TrainState]:
    """Returns the compiled `Agent.init`."""
    return jit(make_agent(kind).init)


def update(kind: str, dtype: str = "float32") -> Callable[..., Any]:
    """Returns the compiled `Agent.update`, which donates nothing. `TRACES` counts how often it was traced."""
    return _update(kind, dtype)


@functools.cache
def _update(kind: str, dtype: str) -> Callable[..., Any]:
    agent = make_agent(kind, dtype)

    def counted(state: TrainState, batch: Batch) -> Any:
        TRACES[kind, dtype] += 1
        return agent.update(state, batch)

    return jit(counted)


@functools.cache
def state(kind: str, seed: int = 0) -> TrainState:
    """Returns the initial train state of a seed, the same for every compute dtype."""
    return init(kind)(jax.random.key(seed))


def trained(kind: str, dtype: str = "float32", updates: int = 3) -> tuple[TrainState, Any, Any]:
    """Returns (state, latent, metrics) after updates on one batch, so that heads that start at 0 are no longer 0."""
    return _trained(kind, dtype, updates)


@functools.cache
def _trained(kind: str, dtype: str, updates: int) -> tuple[TrainState, Any, Any]:
    current, batch = state(kind), make_batch(SPECS[kind], dtype=dtype)
    for _ in range(updates):
        current, out = update(kind, dtype)(current, batch)
    return current, out.latent, out.metrics


def variables(kind: str, updates: int = 3) -> dict[str, Variables]:
    """Returns the variables of both parts of a trained agent."""
    return agents.variables(trained(kind, updates=updates)[0])


# --- environments whose rows identify their position ----------------------------------------------


class Diary(Counter):
    """The counter probe (reward = previous action), which shows [episode, time].

    Even episodes terminate, odd ones are truncated by a time limit.
    """

    observation_space = gymnasium.spaces.Box(0, 1e6, (2,), np.float32)
    default_steps = 3

    def __init__(self, steps=None):
        super().__init__(steps)
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, over, _, info = super().step(action)
        return obs, reward, over and self.episode % 2 == 0, over and self.episode % 2 == 1, info

    def observe(self):
        return np.array([self.episode, self.time], np.float32)


class Throttle(Diary):
    """Takes one number from 0 to 100 and returns it as reward."""

    action_space = gymnasium.spaces.Box(0.0, 100.0, (1,), np.float32)

    def reward(self, action):
        return float(action[0])


# --- an agent that only remembers -------------------------------------------------------------------


def echo_world(spec: Spec) -> WorldModel:
    """A world model whose latent is the previous action, zero on first rows. Predicts its first element as reward."""
    width = spec.action_width

    def observe(v, key, state, obs, prev_action, is_first):
        latent = {"prev": jnp.where(is_first[..., None], 0.0, prev_action)}
        return {"prev": latent["prev"][:, -1]}, latent

    def loss(v, key, state, prev_action, batch):
        _, seen = observe(v, key, state, batch.obs, prev_action, batch.is_first)
        return {"echo": jnp.square(v.params["w"] - batch.reward)}, Learned(seen, v.extra, {})

    return WorldModel(
        init=lambda key: Variables({"w": jnp.zeros((1, 1))}, {}, {}),
        initial=lambda count: {"prev": jnp.zeros((count, width))},
        observe=observe,
        starts=lambda v, latent, prev_action, is_first: {"prev": latent["prev"].reshape(-1, width)},
        imagine=lambda v, key, state, action: {"prev": action},
        latent=lambda state: state,
        feat=lambda latent: latent["prev"],
        predict=lambda v, feat: {"reward": 5 * feat[..., 0], "cont": jnp.full(feat.shape[:-1], 0.99)},
        loss=loss,
        decode=lambda v, latent: {"vector": latent["prev"]},
        pack=lambda latent: latent,
        unpack=lambda packed: packed,
        storage={"prev": Space((width,), "float32")},
        scales={"echo": 1.0},
    )


def random_behavior(spec: Spec) -> Behavior:
    """A behavior that acts at random. Its loss is 0, and its next extra is the input of its loss."""

    def act(v, key, dream, state, carry, ask, mode):
        noise = jax.random.normal(key, (*dream.feat(state).shape[:-1], spec.action_width))
        action = jax.nn.one_hot(jnp.argmax(noise, -1), spec.action_width) if spec.action.discrete else noise
        return action, carry

    def loss(v, key, dream, start, replayed):
        return {"given": jnp.zeros(())}, ({"start": start, "replayed": replayed}, {})

    def init(key):
        return Variables({"w": jnp.zeros((1, 1))}, {}, {})

    return Behavior(init, lambda envs: (), act, loss, lambda v: v.extra, {"given": 1.0}, frozenset())


def echo_agent(spec: Spec) -> Agent:
    """An agent of these two. An update adds 1 to every parameter; acting reads the behavior's, without effect."""

    def update(state: TrainState, batch: Batch):
        params = jax.tree.map(lambda x: x + 1, state.params)
        latent = {"prev": jnp.zeros_like(batch.action[:, 1:])}
        return state._replace(step=state.step + 1, params=params), Update(latent, {})

    agent = agents.assemble(echo_world(spec), random_behavior(spec), optimizers.Config(), spec)

    def act(variables, key, carry, obs, is_first, mode="sample"):
        carry, action = agent.act(variables, key, carry, obs, is_first, mode)
        return carry, action + 0 * variables["behavior"].params["w"][0, 0]

    return agent._replace(act=act, update=update)
