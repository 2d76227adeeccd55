"""Dreams long films: observes the rows of the starts, then dreams in chunks, each one call of a compiled program."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamer import plugins
from dreamer.apps.dreams import dream_rows
from dreamer.apps.imagine.starts import Starts
from dreamer.errors import UserError
from dreamer.interfaces import Agent, Array, Key, Mode, Variables
from dreamer.runtime.log.images import as_bytes, to_bytes
from dreamer.spaces import Space, Spec, for_device

FRAMES = 256  # decoded by one call of the program


def image_of(spec: Spec, agent: Agent, asked: str, run: str) -> str:
    """Returns the key of the image to show: `asked`, or the only or first one that the model decodes if it is "".

    Raises UserError if the run observes no image, or if its world model decodes none.
    """
    images = sorted(key for key, space in spec.obs.items() if space.image)
    if not images:
        raise UserError(f"{run} observes no image, which imagine shows, only {', '.join(sorted(spec.obs))}")
    if asked and asked not in images:
        raise UserError(f"--image: {run} observes no image {asked!r}, its images are {', '.join(images)}")
    model = agent.world_model
    decoded = jax.eval_shape(
        lambda key: model.decode(model.init(key), model.latent(model.initial(1))), jax.random.key(0)
    )
    shown = [key for key in images if key in decoded]
    if not shown or (asked and asked not in shown):
        named = f" {asked!r}" if asked else ""
        raise UserError(f"the world model of {run} decodes no image{named}: it has nothing to show")
    return asked or shown[0]


def with_random_actions(
    agent: Agent, variables: Mapping[str, Variables], spec: Spec
) -> tuple[Agent, dict[str, Variables]]:
    """Returns the agent, and its variables, with the behavior `random`."""
    module = plugins.load("random", "dreamer.behaviors")
    behavior = module.make(module.Config(), spec)
    return agent._replace(behavior=behavior), {**variables, "behavior": behavior.init(jax.random.key(0))}


def generate(
    agent: Agent, variables: Mapping[str, Variables], spec: Spec, key: Key, starts: Starts, actions: np.ndarray | None,
    steps: int, image: str, mode: Mode, frames: int = FRAMES,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Dreams from N starts. Returns frames [N, 1 + steps, H, W, C] uint8, and the actions taken [N, steps, A].

    The first frame is the reconstruction of the start. Row t has a key of its own, so a longer dream begins with the
    frames of a shorter one.
    actions [N, steps, A]: the actions to take; None: the behavior chooses them in the dream.
    frames: how many are decoded by one call
    """
    obs = for_device(spec.obs, starts.obs)
    dreams = len(starts.is_first)
    chunk = min(steps, max(1, frames // dreams))
    keys = jax.random.split(key, 2)
    carry, first = jax.jit(functools.partial(_begin, agent, image))(
        variables, keys[0], obs, starts.prev_action, starts.is_first
    )
    chunks = jax.jit(functools.partial(_chunk, agent, image), static_argnames=("rows", "mode"))
    shown, taken = [_in_bytes(spec.obs[image], first)[:, None]], []
    for begin in range(0, steps, chunk):
        # The last chunk has as many rows as the others, so that one program is compiled.
        given = None if actions is None else _filled(actions[:, begin : begin + chunk], chunk)
        carry, decoded, acted = chunks(variables, keys[1], jnp.int32(begin), carry, given, rows=chunk, mode=mode)
        left = min(chunk, steps - begin)
        shown.append(_in_bytes(spec.obs[image], decoded[:, :left]))
        taken.append(np.asarray(acted[:, :left]))
    whole = np.concatenate(shown, 1)
    chex.assert_shape(whole, (dreams, steps + 1, *spec.obs[image].shape))
    return whole, np.concatenate(taken, 1)


def mean_of(frames: np.ndarray, count: int) -> np.ndarray:
    """Returns the mean of `count` dreams from each of N starts: [N * count, T, H, W, C] -> [N, T, H, W, C] uint8."""
    several = frames.reshape(-1, count, *frames.shape[1:])
    return np.stack([np.rint(dreams.mean(0)).astype(np.uint8) for dreams in several])


def _begin(
    agent: Agent, image: str, variables: Mapping[str, Variables], key: Key, obs: Any, prev_action: Array,
    is_first: Array,
) -> tuple[Any, Array]:  # fmt: skip
    """Observes the starts. Returns the carry of `dream_rows` and the decoded images [N, H, W, C] of the last rows."""
    model, v, dreams = agent.world_model, variables["world_model"], len(is_first)
    state, _ = model.observe(v, key, model.initial(dreams), obs, prev_action, is_first)
    return (state, agent.behavior.initial(dreams)), model.decode(v, model.latent(state))[image]


def _chunk(
    agent: Agent, image: str, variables: Mapping[str, Variables], key: Key, begin: Array, carry: Any,
    actions: Array | None, *, rows: int, mode: Mode,
) -> tuple[Any, Array, Array]:  # fmt: skip
    """Dreams the rows from `begin` [] on. Returns the next carry, images [N, rows, H, W, C], actions [N, rows, A]."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(begin + jnp.arange(rows))
    carry, latents, taken = dream_rows(agent, variables, keys, carry, actions, mode)
    return carry, agent.world_model.decode(variables["world_model"], latents)[image], taken


def _filled(actions: np.ndarray, rows: int) -> np.ndarray:
    """Returns actions [N, T, A] as [N, rows, A], with zeros after them."""
    return np.pad(actions, ((0, 0), (0, rows - actions.shape[1]), (0, 0)))


def _in_bytes(space: Space, images: Array) -> np.ndarray:
    return as_bytes(to_bytes(space, np.asarray(images)))
