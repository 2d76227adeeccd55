"""Agents small enough to compile in seconds: three kinds of environment, random batches, and what is made of them once.

Kinds: "vector" (continuous actions), "image" (discrete actions), "mixed" (two pictures, two vectors, one class;
continuous actions). Compiled functions are cached, so that the tests of one process share them.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer import agent as agents
from dreamer.behaviors import actor_critic
from dreamer.interfaces import Agent, Behavior, TrainState, WorldModel
from dreamer.ops import optimizers
from dreamer.runtime.steps import Batch
from dreamer.spaces import Space, Spec
from dreamer.world_models import rssm

SPECS = {
    "vector": Spec({"vector": Space((3,), "float32")}, Space((2,), "float32")),
    "image": Spec({"image": Space((48, 48, 3), "uint8")}, Space((), "int32", classes=4)),
    "mixed": Spec(
        {
            "camera": Space((48, 48, 3), "uint8"),
            "depth": Space((48, 48, 1), "uint8"),
            "position": Space((3,), "float32"),
            "velocity": Space((2, 2), "float32"),
            "mode": Space((), "int32", classes=3),
        },
        Space((2,), "float32"),
    ),
}
KINDS = tuple(SPECS)
HORIZON = 333.0
WORLD_MODEL = rssm.Config(
    deter=16, hidden=8, stoch=4, classes=3, blocks=2, units=8, depth=2, mults=(1, 1, 1, 2), kernel=3,
    encoder_layers=1, bins=15,
)  # fmt: skip
BEHAVIOR = actor_critic.Config(units=8, actor_layers=1, critic_layers=1, bins=15, imagine_length=3)
FEAT = WORLD_MODEL.deter + WORLD_MODEL.stoch * WORLD_MODEL.classes
# With a large eps, gradients of 0 with rounding errors do not become updates of full size.
OPTIMIZER = optimizers.Config(learning_rate=1e-3, warmup=2, eps=1e-3)
CONFIG = agents.Config("float32", HORIZON, True, WORLD_MODEL, BEHAVIOR, OPTIMIZER)
BATCH, LENGTH = 8, 6
# The program is as right as with the costly passes, and compiles five times faster.
QUICK = {
    "xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True, "xla_cpu_use_fusion_emitters": False,
}  # fmt: skip
jit = functools.partial(jax.jit, compiler_options=QUICK)
TRACES: collections.Counter[tuple[str, str]] = collections.Counter()  # of `update`, by its arguments


def make_batch(
    spec: Spec, *, batch_size: int = BATCH, length: int = LENGTH, context: int = 1, seed: int = 0,
    dtype: str = "float32", world_model: rssm.Config = WORLD_MODEL,
) -> Batch:  # fmt: skip
    """Random sequences as the replay gives them (numpy), `context` rows included, with episode starts and both ends.

    dtype: of the stored deter. The flags agree with each other: a first row follows each last row.
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
    """Random values of a space [*lead, *shape]."""
    if space.discrete:
        return rng.integers(0, space.classes, (*lead, *space.shape)).astype(space.dtype)
    if space.image:
        return rng.integers(0, 256, (*lead, *space.shape)).astype(np.uint8)
    return rng.normal(size=(*lead, *space.shape)).astype(space.dtype)


def make_actions(rng: np.random.Generator, spec: Spec, lead: tuple[int, ...]) -> np.ndarray:
    """Random action vectors [*lead, A]."""
    if spec.action.discrete:
        return np.eye(spec.action_width, dtype=np.float32)[rng.integers(0, spec.action_width, lead)]
    return rng.uniform(-1, 1, (*lead, spec.action_width)).astype(np.float32)


def argmax_onehot(key: jax.Array, logits: jax.Array) -> jax.Array:
    """A sampler of posterior and prior that needs no key."""
    return jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1])


@functools.cache
def parts(kind: str, dtype: str = "float32") -> tuple[WorldModel, Behavior]:
    """World model (argmax instead of sampling) and behavior of a kind."""
    world_model = rssm.make(
        WORLD_MODEL, SPECS[kind], dtype=jnp.dtype(dtype), horizon=HORIZON, sample=argmax_onehot
    )
    behavior = actor_critic.make(BEHAVIOR, SPECS[kind], feat_width=FEAT, dtype=jnp.dtype(dtype), horizon=HORIZON)
    return world_model, behavior


@functools.cache
def make_agent(kind: str, dtype: str = "float32") -> Agent:
    """The agent of a kind, from its config, as users get it."""
    return agents.make(dataclasses.replace(CONFIG, compute_dtype=dtype), SPECS[kind])


@functools.cache
def init(kind: str, dtype: str = "float32") -> Callable[[jax.Array], TrainState]:
    """`Agent.init`, compiled."""
    return jit(make_agent(kind, dtype).init)


@functools.cache
def update(kind: str, dtype: str = "float32") -> Callable[..., Any]:
    """`Agent.update`, compiled; nothing is donated. `TRACES` counts how often it was traced."""
    agent = make_agent(kind, dtype)

    def counted(state: TrainState, batch: Batch) -> Any:
        TRACES[kind, dtype] += 1
        return agent.update(state, batch)

    return jit(counted)


@functools.cache
def state(kind: str, dtype: str = "float32", seed: int = 0) -> TrainState:
    """The first train state of a seed."""
    return init(kind, dtype)(jax.random.key(seed))


@functools.cache
def trained(kind: str, dtype: str = "float32", updates: int = 3) -> tuple[TrainState, Any, Any]:
    """(state, latent, metrics) after some updates on one batch, so that heads which start at 0 do not stay there."""
    current, batch = state(kind, dtype), make_batch(SPECS[kind], dtype=dtype)
    for _ in range(updates):
        current, latent, metrics = update(kind, dtype)(current, batch)
    return current, latent, metrics
