"""Dreams on two time scales: a manager chooses a goal every K steps, and a worker acts to reach it.

b blocks of K steps make a dream of H = b K steps. The worker sees the blocks as b dreams of K steps each, whose border
states belong to both neighbours. The manager sees one dream of b steps. Source: Director (Hafner et al. 2022).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dreamer.interfaces import Array, Dream, Key, State
from dreamer.ops.scan import scan

sg = jax.lax.stop_gradient
TINY = 1e-12  # added to norms


class Blocks(NamedTuple):
    """Dreams of b blocks: feat [N, H+1, F] | action [N, H, A] | code [N, b, S, C] and goal [N, b, G] of each block."""

    feat: Array
    action: Array
    code: Array
    goal: Array


def dream_blocks(
    dream: Dream, choose: Callable[[Key, Array], tuple[Array, Array]], work: Callable[[Key, Array, Array], Array],
    key: Key, start: State, blocks: int, steps: int,
) -> Blocks:  # fmt: skip
    """Dreams `blocks` times `steps` steps from start [N, ..].

    choose(key, feat [N, F]) -> code [N, S, C], goal [N, G], at the first state of each block
    work(key, feat [N, F], goal [N, G]) -> action [N, A], at every state
    """

    def step(goal: Array, state: State, key: Key) -> tuple[State, tuple[Array, Array]]:
        work_key, imagine_key = jax.random.split(key)
        feat = dream.feat(state)
        action = work(work_key, feat, goal)
        return dream.imagine(imagine_key, state, action), (feat, action)

    def block(state: State, key: Key) -> tuple[State, Blocks]:
        keys = jax.random.split(key, steps + 1)
        code, goal = choose(keys[0], dream.feat(state))
        state, (feat, action) = scan(functools.partial(step, goal), state, keys[1:])
        return state, Blocks(feat, action, code, goal)

    state, found = jax.lax.scan(block, start, jax.random.split(key, blocks))
    feat, action = (x.reshape(blocks * steps, *x.shape[2:]) for x in found[:2])
    feat = jnp.concatenate([feat, dream.feat(state)[None]], 0)
    return Blocks(*(x.swapaxes(0, 1) for x in (feat, action, found.code, found.goal)))


def split_states(x: Array, steps: int) -> Array:
    """Splits what belongs to states, [N, H+1, ..], into blocks [N, b, K+1, ..]; neighbours share their border state."""
    inner = x[:, :-1].reshape(x.shape[0], -1, steps, *x.shape[2:])
    return jnp.concatenate([inner, x[:, steps::steps, None]], 2)


def split_steps(x: Array, steps: int) -> Array:
    """Splits what belongs to steps, such as rewards [N, H, ..], into blocks [N, b, K, ..]."""
    return x.reshape(x.shape[0], -1, steps, *x.shape[2:])


def block_rewards(reward: Array, cont: Array, steps: int) -> Array:
    """Returns the manager's rewards [N, b], of rewards [N, H] and chances to continue cont [N, H+1].

    Each is the mean over a block of reward_i * product of cont from the first state of the block to the one before i.
    """
    alive = jnp.cumprod(split_steps(cont[:, :-1], steps), 2)
    return (split_steps(reward, steps) * alive).mean(2)


def block_conts(cont: Array, steps: int) -> Array:
    """Returns the manager's chances to continue [N, b+1], of cont [N, H+1]: products over blocks, after the first."""
    return jnp.concatenate([cont[:, :1], split_steps(cont[:, 1:], steps).prod(2)], 1)


def state_weights(cont: Array, discount: Array | float) -> Array:
    """Returns the weight [.., H+1] of each state in the losses, the chance that a dream gets there, discounted.

    cont [.., H+1]: the chance to continue from each state, without the discount
    """
    return sg(jnp.cumprod(discount * cont, -1) / discount)


def goal_reward(goal: Array, reached: Array) -> Array:
    """Returns the worker's reward [..] in states [.., G]: max-cosine similarity with goals [.., G], from -1 to 1.

    It is <goal, reached> / max(|goal|, |reached|)^2, which is 1 only if the two are equal: unlike a cosine, it also
    compares lengths. Source: Director, eq. 7.
    """
    chex.assert_equal_shape([goal, reached])
    goal = sg(goal)
    lengths = (jnp.sqrt(jnp.square(x).sum(-1, keepdims=True)) + TINY for x in (goal, reached))
    longest = jnp.maximum(*lengths)
    return jnp.sum((goal / longest) * (reached / longest), -1)


def novelty(decoded: Array, state: Array) -> Array:
    """Returns the exploration reward [..] in states [.., G]: the mean squared error of the autoencoder's `decoded`."""
    return jnp.square(decoded - state).mean(-1)
