"""The controller C of World Models (Ha and Schmidhuber 2018): a linear map of the features, then tanh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from dreamer.errors import UserError
from dreamer.interfaces import Array
from dreamer.nets.layers import add_bias
from dreamer.spaces import Action

Discrete = Literal["argmax", "threshold"]
THRESHOLD = 0.3333  # beyond which an output presses one of two buttons


class LinearPolicy(NamedTuple):
    """A policy whose parameters are one vector.

    size: n, its parameters | act(theta [n], feat [.., F]) -> action [.., A]
    """

    size: int
    act: Callable[[Array, Array], Array]


def make(
    feat: int, action: Action, *, bias: bool = True, discrete: Discrete = "argmax", one_sided: Sequence[int] = ()
) -> LinearPolicy:
    """Makes the policy a = tanh(W feat + b) for features of width `feat`.

    Its vector begins with b, if there is a `bias`; then W [F, outputs] follows, row after row.
    discrete, one_sided: see `to_action`. Raises UserError when they do not suit the action.
    """
    outputs = len(action.classes) if discrete == "threshold" else action.onehots
    outputs += action.continuous
    if discrete == "threshold" and (wrong := [n for n in action.classes if n != 3]):
        raise UserError(f"discrete threshold needs actions of 3 classes, none or one of two buttons, not of {wrong[0]}")
    if wrong := [i for i in one_sided if not 0 <= i < action.continuous]:
        raise UserError(f"one_sided {wrong[0]}: the action has {action.continuous} numbers, counted from 0")

    def act(theta: Array, feat: Array) -> Array:
        return to_action(linear(theta, feat, outputs, bias), action, discrete, one_sided)

    return LinearPolicy((feat + bias) * outputs, act)


def linear(theta: Array, feat: Array, outputs: int, bias: bool) -> Array:
    """Returns tanh(W feat + b) [.., outputs] of theta [n] and feat [.., F]."""
    offset, weights = (theta[:outputs], theta[outputs:]) if bias else (jnp.zeros(outputs), theta)
    return jnp.tanh(add_bias(feat.astype(jnp.float32) @ weights.reshape(-1, outputs), offset))


def to_action(outs: Array, action: Action, discrete: Discrete, one_sided: Sequence[int]) -> Array:
    """Converts outputs [.., outputs] from -1 to 1 to an action [.., A].

    discrete: how one-hots are chosen: argmax of as many outputs as there are classes, or threshold, one output for each
    one-hot of 3 classes: class 1 above 0.3333, class 2 below -0.3333, else class 0.
    one_sided: the numbers, counted from 0, whose range begins where the output is 0: a brake that is never below 0.
    """
    parts, used = [], 0
    for classes in action.classes:
        count = 1 if discrete == "threshold" else classes
        own = outs[..., used : used + count]
        pressed = jnp.where(own[..., 0] > THRESHOLD, 1, jnp.where(own[..., 0] < -THRESHOLD, 2, 0))
        index = pressed if discrete == "threshold" else jnp.argmax(own, -1)
        parts.append(jax.nn.one_hot(index, classes))
        used += count
    return jnp.concatenate([*parts, one_side(outs[..., used:], one_sided)], -1)


def one_side(numbers: Array, one_sided: Sequence[int]) -> Array:
    """Lets the range of the `one_sided` ones of numbers [.., continuous] begin where they are 0: see `to_action`."""
    for i in one_sided:
        numbers = numbers.at[..., i].set(2 * jnp.maximum(numbers[..., i], 0) - 1)
    return numbers
