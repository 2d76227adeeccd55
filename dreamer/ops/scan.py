"""The only place where time comes to the front, and where a batch that several devices share is kept in its parts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Parts(NamedTuple):
    """A batch in `number` equal parts; place(tree) puts part i of leaves [number, ..] where the batch's part i lies."""

    number: int
    place: Callable[[Any], Any]


_PARTS: ContextVar[Parts | None] = ContextVar("parts", default=None)


@contextlib.contextmanager
def in_parts(number: int, place: Callable[[Any], Any]) -> Iterator[None]:
    """While this lasts `scan_time` treats every part of the batch by itself, with weights of its own.

    The gradient of a weight is a sum over the batch. Of one weight for all parts XLA would add up the parts, between
    devices, in every step of the scan; the weights of each part collect their own share, and meet once afterwards.
    """
    token = _PARTS.set(Parts(number, place) if number > 1 else None)
    try:
        yield
    finally:
        _PARTS.reset(token)


def scan_time(step: Callable[..., tuple[Any, Any]], carry: Any, inputs: Any, keys: Any = None) -> tuple[Any, Any]:
    """`jax.lax.scan` over axis 1 of batch-major inputs [B, T, ..]; outputs [B, T, ..], too.

    step(carry, inputs) -> carry, outputs; with keys [T] step(carry, inputs, key). It must treat each row of the batch
    as if there were no other, but for what `of_whole_batch` draws.
    """
    shared = () if keys is None else (keys,)
    parts = _PARTS.get()
    if parts is None:
        carry, outputs = jax.lax.scan(lambda carry, xs: step(carry, *xs), carry, (_swap_time(inputs), *shared))
        return carry, _swap_time(outputs)
    return _scan_parts(parts, step, carry, inputs, shared)


def of_whole_batch(sample: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`sample(key, x [B, ..]) -> [B, ..]` that draws the same for a batch in parts as for the whole one.

    Inside `scan_time`'s steps; where a batch has no parts it is `sample` itself, which any vmap may map.
    """
    if _PARTS.get() is None:
        return sample
    sample_parts = jax.custom_batching.custom_vmap(sample)

    @sample_parts.def_vmap
    def rule(number: int, batched: Any, key: Any, x: Any) -> tuple[Any, bool]:
        if batched[0]:  # not the parts, but seeds: each has a key and draws for itself
            return jax.vmap(sample, (0, 0 if batched[1] else None))(key, x), True
        out = sample(key, x.reshape(-1, *x.shape[2:]))
        return out.reshape(number, -1, *out.shape[1:]), True

    return sample_parts


def _scan_parts(parts: Parts, step: Callable[..., Any], carry: Any, inputs: Any, shared: tuple[Any, ...]) -> Any:
    def split(x: Any) -> Any:
        return x.reshape(parts.number, -1, *x.shape[1:])

    def join(x: Any) -> Any:
        return x.reshape(-1, *x.shape[2:])

    carry, inputs = parts.place(jax.tree.map(split, (carry, inputs)))
    times = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), inputs)
    first = jax.tree.map(lambda x: x[0, 0], times)
    own_step, weights = jax.closure_convert(step, jax.tree.map(lambda x: x[0], carry), first, *(x[0] for x in shared))
    weights = parts.place([jnp.broadcast_to(w, (parts.number, *w.shape)) for w in weights])

    def step_parts(carry: Any, xs: tuple[Any, ...]) -> tuple[Any, Any]:
        def one(weights: Any, carry: Any, x: Any) -> tuple[Any, Any]:
            return own_step(carry, x, *xs[1:], *weights)

        return jax.vmap(one)(weights, carry, xs[0])

    carry, outputs = jax.lax.scan(step_parts, carry, (times, *shared))
    outputs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), outputs)
    return jax.tree.map(join, (carry, outputs))


def _swap_time(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)
