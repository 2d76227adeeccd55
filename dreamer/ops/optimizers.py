"""LaProp with adaptive gradient clipping, as optax transformations. Source: DreamerV3, section on optimisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamer.fields import at_least, between
from dreamer.ops import trees

Array = jax.Array

FLOOR = 0.1  # learning rate at the end of a falling schedule, relative to its peak


@dataclasses.dataclass(frozen=True)
class Config:
    """The configuration of an optimizer: LaProp with clipping, its schedule, and when it is active."""

    learning_rate: Annotated[float, at_least(0)] = 4e-5
    "step size after the warm-up"
    warmup: Annotated[int, at_least(0)] = 1000
    "updates over which the learning rate rises linearly from 0"
    schedule: Literal["const", "linear", "cosine"] = "const"
    "how the learning rate falls to a tenth after the warm-up; const = it does not"
    anneal: Annotated[int, at_least(0)] = 0
    "update at which the learning rate reaches that tenth; required unless schedule is const"
    agc: Annotated[float, at_least(0)] = 0.3
    "adaptive gradient clipping: largest gradient norm relative to the parameter norm, per tensor; 0 = off"
    beta1: Annotated[float, between(0, 1)] = 0.9
    "decay of the momentum, which averages the normalised gradients"
    beta2: Annotated[float, between(0, 1)] = 0.999
    "decay of the second moment"
    eps: Annotated[float, at_least(0)] = 1e-20
    "added to the root of the second moment"
    weight_decay: Annotated[float, at_least(0)] = 0.0
    "decoupled weight decay of kernels; multiplied by the learning rate"
    start: Annotated[int, at_least(0)] = 0
    "first update of this optimizer: its parameters are frozen before, and its warm-up starts there"
    stop: Annotated[int, at_least(0)] = 0
    "update from which its parameters are frozen; 0 = never"

    def __post_init__(self) -> None:
        if self.stop and self.stop <= self.start:
            raise ValueError(f"stop must be above start, {self.start}, or 0")
        if self.schedule != "const" and self.anneal <= self.start + self.warmup:
            begin = f"start + warmup, {self.start + self.warmup}" if self.start else f"warmup, {self.warmup}"
            raise ValueError(f"anneal must be above {begin}, when schedule is {self.schedule}")


def clip_by_agc(clip: float = 0.3, floor: float = 1e-3) -> optax.GradientTransformation:
    """Divides each gradient tensor g by max(1, |g| / (clip * max(floor, |p|))), where p is its parameter.

    The norms are those of whole tensors, as in the reference; `optax.adaptive_grad_clip` takes norms of single units.
    """

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def one(grad: Array, size: Array, param: Array) -> Array:
            return grad / jnp.maximum(1.0, size / (clip * jnp.maximum(floor, param)))

        return jax.tree.map(one, grads, trees.norms(grads), trees.norms(params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def kernels(params: Any) -> Any:
    """Returns a tree of bools like `params`: True for kernels, which weight decay shrinks.

    These parameters are called "kernel" in Flax and "w" in Haiku.
    """

    def is_kernel(path: tuple[Any, ...], _: Array) -> bool:
        return getattr(path[-1], "key", None) in ("kernel", "w")

    return jax.tree_util.tree_map_with_path(is_kernel, params)


class PhaseState(NamedTuple):
    """The state of `within`. updates [] int32: the number of updates made | inner: the state of the inner optimizer."""

    updates: Array
    inner: Any


def within(inner: optax.GradientTransformation, start: int, stop: int) -> optax.GradientTransformation:
    """Applies `inner` to the updates start, .., stop - 1, or to all from `start` on if `stop` is 0.

    Before and after these, the updates are 0 and the state of `inner` does not change.
    """

    def init(params: Any) -> PhaseState:
        return PhaseState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(grads: Any, state: PhaseState, params: Any = None) -> tuple[Any, PhaseState]:
        updates, moved = inner.update(grads, state.inner, params)
        active = (state.updates >= start) & ((state.updates < stop) if stop else True)
        updates = jax.tree.map(lambda u: jnp.where(active, u, 0.0), updates)
        kept = jax.tree.map(lambda new, old: jnp.where(active, new, old), moved, state.inner)
        return updates, PhaseState(optax.safe_increment(state.updates), kept)

    return optax.GradientTransformation(init, update)


def make(config: Config) -> optax.GradientTransformation:
    """Returns the optimizer without the learning rate. The caller applies p <- p - learning_rate * update.

    The steps of the optimizer are, in this order: AGC, second moment, momentum (LaProp's, not Adam's), weight decay.
    """
    rms = optax.scale_by_rms(config.beta2, config.eps, eps_in_sqrt=False, bias_correction=True)
    parts = [rms, optax.ema(config.beta1)]
    if config.agc:
        parts.insert(0, clip_by_agc(config.agc))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, kernels))
    chain = optax.chain(*parts)
    return within(chain, config.start, config.stop) if config.start or config.stop else chain


def partition(configs: Mapping[str, Config], params: Any) -> tuple[optax.GradientTransformation, Any]:
    """Returns one optimizer made of several, and a tree with the prefix that belongs to each parameter.

    configs: {prefix of parameter names: Config}. Each parameter has the optimizer with the longest prefix of its name;
    "" is a prefix of all names. A single Config, whose prefix must be "", is not wrapped in `optax.partition`.
    params: a tree of the parameters or of their shapes
    """
    prefixes = prefixes_of(configs, params)
    if len(configs) == 1:
        return make(configs[""]), prefixes
    return optax.partition({prefix: make(config) for prefix, config in configs.items()}, prefixes), prefixes


def prefixes_of(configs: Mapping[str, Config], params: Any) -> Any:
    """Returns a tree like `params`: for each parameter, the longest prefix in `configs` that matches its name."""

    def longest(path: tuple[Any, ...], _: Any) -> str:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return max((p for p in configs if f"{name}/".startswith(f"{p}/" if p else "")), key=len)

    return jax.tree_util.tree_map_with_path(longest, params)


def learning_rate(config: Config, peak: Array, step: Array) -> Array:
    """Returns the learning rate [] at `step`. It rises linearly from 0 at `start` to `peak`, then follows `schedule`.

    The rise ends at `start + warmup`; with a warm-up, the first update changes nothing. The schedules linear and cosine
    reach peak / 10 at step `anneal` and stay there. peak [] float32, traced; step [] int32.
    """
    begun = jnp.maximum(0, step - config.start) if config.start else step
    rise = jnp.minimum(1.0, begun / config.warmup) if config.warmup else 1.0
    if config.schedule == "const":
        return peak * rise
    done = jnp.clip((begun - config.warmup) / (config.anneal - config.start - config.warmup), 0.0, 1.0)
    left = 1 - done if config.schedule == "linear" else (1 + jnp.cos(jnp.pi * done)) / 2
    return peak * rise * (FLOOR + (1 - FLOOR) * left)
