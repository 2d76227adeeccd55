"""Scans over time whose loop holds only what depends on the carry.

The equations of a step are of three sorts. What the weights alone give is worked out once. What the inputs give, such
as random numbers or a layer on observations, is worked out for all steps together before the loop. The rest stays.

The gradient of a weight is a sum over the steps: dW = sum_t x_t^T dy_t of a product y_t = x_t W. The loop back in time
only keeps x_t and dy_t; one product over all steps follows it. `jax.lax.scan` would add to an array as large as W in
each step, and devices that share a batch would add up their shares of it in each step, too.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, JaxprEqn, Var, jaxpr_as_fun

ONCE, BEFORE, WITHIN = range(3)


def scan_time(step: Callable[..., tuple[Any, Any]], carry: Any, inputs: Any, keys: Any = None) -> tuple[Any, Any]:
    """`scan` over axis 1 of batch-major inputs [B, T, ..]; outputs [B, T, ..], too.

    step(carry, inputs) -> carry, outputs; with keys [T] step(carry, inputs, key).
    """
    shared = () if keys is None else (keys,)
    carry, outputs = scan(lambda carry, xs: step(carry, *xs), carry, (_swap_time(inputs), *shared))
    return carry, _swap_time(outputs)


def scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan(step, carry, inputs)`, equal but for the order of sums.

    inputs: leaves [T, ..]. Gradients go into whatever the step reads, by `jax.grad` and `jax.vjp` only.
    """
    first = jax.tree.map(lambda x: x[0], inputs)
    traced, shapes = jax.make_jaxpr(step, return_shape=True)(carry, first)
    carry, tree = jax.tree.flatten(carry)
    loop = divide(traced.jaxpr, len(carry))
    weights = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
    fixed = _evaluate(loop.once, weights)
    leaves = jax.tree.leaves(inputs)

    def before(xs: list[Any]) -> list[Any]:
        return list(_evaluate(loop.before, fixed | dict(zip(loop.inputs, xs, strict=True))).values())

    carry, outputs = _run(loop, len(leaves[0]), list(fixed.values()), carry, jax.vmap(before)(leaves))
    return jax.tree.unflatten(tree, carry), jax.tree.unflatten(jax.tree.structure(shapes[1]), outputs)


def _swap_time(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)


# --- which equation goes where ----------------------------------------------------------------------


class Piece(NamedTuple):
    """A few equations of a step. weights: those of its arguments that are worked out once, if gradients go there."""

    jaxpr: Jaxpr
    weights: tuple[Var, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """A step, sorted.

    carry, inputs: its arguments | results: the carry after it and its outputs | read: what pieces with weights read
    of the loop's own values
    """

    once: Jaxpr
    before: Jaxpr
    within: tuple[Piece, ...]
    carry: tuple[Var, ...]
    inputs: tuple[Var, ...]
    results: tuple[Any, ...]
    read: tuple[Var, ...]


def divide(step: Jaxpr, carries: int) -> Loop:
    """Sorts the equations of a step, of whose arguments the first `carries` are the carry and the others inputs."""
    carry, inputs = step.invars[:carries], step.invars[carries:]
    level = dict.fromkeys(step.constvars, ONCE) | dict.fromkeys(carry, WITHIN) | dict.fromkeys(inputs, BEFORE)
    sorts: tuple[list[JaxprEqn], ...] = ([], [], [])
    repeated = []  # equations that only repeat a value: cheaper to do again where that is used than to keep
    for eqn in step.eqns:
        at = WITHIN if eqn.effects else max((level[v] for v in _variables(eqn.invars)), default=ONCE)
        level |= dict.fromkeys(eqn.outvars, at)
        sorts[at].append(eqn)
        if at != WITHIN and (eqn.primitive.name in ("broadcast_in_dim", "iota") or not _variables(eqn.invars)):
            repeated.append(eqn)
    results = _variables(step.outvars)
    within = [_part(step, [*repeated, *eqns], _results(eqns)) for eqns in _in_chains(sorts[WITHIN], level, results)]
    within += [_part(step, repeated, [v]) for v in dict.fromkeys(results) if level[v] == ONCE]
    needed = [v for part in within for v in part.invars] + [v for v in results if level[v] == BEFORE]
    before = _part(step, [*repeated, *sorts[BEFORE]], [v for v in needed if level[v] == BEFORE])
    needed += before.invars
    once = _part(step, sorts[ONCE], [v for v in needed if level[v] == ONCE])
    weights = [tuple(v for v in part.invars if level[v] == ONCE and _has_gradient(v)) for part in within]
    pieces = tuple(map(Piece, within, weights))
    read = dict.fromkeys(v for piece in pieces if piece.weights for v in piece.jaxpr.invars if level[v] == WITHIN)
    return Loop(once, before, pieces, tuple(carry), tuple(inputs), tuple(step.outvars), tuple(read))


def _in_chains(eqns: Iterable[JaxprEqn], level: Mapping[Var, int], results: Sequence[Var]) -> list[list[JaxprEqn]]:
    """Each equation by itself, but for chains x -> x W -> x W + b, of which nothing else reads the inner values."""
    readers = collections.Counter([*results, *(v for eqn in eqns for v in _variables(eqn.invars))])
    chains: dict[Var, list[JaxprEqn]] = {}  # those that meet weights, by the one value that they end in
    order: list[list[JaxprEqn]] = []
    for eqn in eqns:
        reads = _variables(eqn.invars)
        chain = [eqn]
        if any(level[v] == ONCE and _has_gradient(v) for v in reads):
            earlier = next((v for v in reads if v in chains and readers[v] == 1), None)
            if earlier is not None:
                order = [other for other in order if other is not chains[earlier]]
                chain = [*chains.pop(earlier), eqn]
            if len(eqn.outvars) == 1:
                chains[eqn.outvars[0]] = chain
        order.append(chain)
    return order


def _part(step: Jaxpr, eqns: Sequence[JaxprEqn], results: Iterable[Var]) -> Jaxpr:
    """Those of the equations that the results need, as a jaxpr of its own; its arguments are what they lack."""
    results = list(dict.fromkeys(results))
    needed, kept = dict.fromkeys(results), []
    for eqn in reversed(eqns):
        if eqn.effects or any(v in needed for v in eqn.outvars):
            kept.append(eqn)
            needed = dict.fromkeys(v for v in [*needed, *_variables(eqn.invars)] if v not in eqn.outvars)
    effects = frozenset().union(*(eqn.effects for eqn in kept))
    info = step.debug_info._replace(arg_names=None, result_paths=None)
    return Jaxpr((), list(needed), results, kept[::-1], effects, info)


def _evaluate(part: Jaxpr, values: Mapping[Any, Any]) -> dict[Any, Any]:
    outs = jaxpr_as_fun(ClosedJaxpr(part, ()))(*(values[v] for v in part.invars))
    return dict(zip(part.outvars, outs, strict=True))


def _variables(atoms: Iterable[Any]) -> list[Var]:
    return [atom for atom in atoms if isinstance(atom, Var)]


def _results(eqns: Sequence[JaxprEqn]) -> list[Var]:
    return [v for v in eqns[-1].outvars if not isinstance(v, DropVar)]


def _has_gradient(x: Any) -> bool:
    return jnp.issubdtype(getattr(x, "aval", x).dtype, jnp.inexact)


# --- the loop and its gradient ----------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(loop: Loop, length: int, fixed: list[Any], carry: list[Any], ready: list[Any]) -> Any:
    """The loop: values of loop.once, carry, values [T, ..] of loop.before -> carry, outputs [T, ..]."""
    return _scan(loop, length, fixed, carry, ready, None)[0]


def _scan(
    loop: Loop, length: int, fixed: list[Any], carry: list[Any], ready: list[Any], taps: list[Any] | None
) -> tuple[Any, list[Any]]:
    """As `_run`; with taps, also what each piece that meets weights has read of values of the loop, each [T, ..]."""
    constants = dict(zip(loop.once.outvars, fixed, strict=True))

    def step(carry: list[Any], xs: Any) -> Any:
        ready, taps = xs
        values: dict[Any, Any] = dict(constants)
        values |= zip([*loop.before.outvars, *loop.carry], [*ready, *carry], strict=True)
        taken = iter(taps or ())
        for piece in loop.within:
            outs = _evaluate(piece.jaxpr, values)
            if taps is not None and piece.weights:
                outs = dict(zip(outs, map(_tap, outs.values(), next(taken)), strict=True))
            values |= outs
        results = [values[v] if isinstance(v, Var) else v.val for v in loop.results]
        read = [] if taps is None else [values[v] for v in loop.read]
        return results[: len(carry)], (results[len(carry) :], read)

    carry, (outputs, read) = jax.lax.scan(step, carry, (ready, taps), length)
    return (carry, outputs), read


def _run_forward(loop: Loop, length: int, fixed: list[Any], carry: list[Any], ready: list[Any]) -> Any:
    shapes = [[v.aval for v in piece.jaxpr.outvars] for piece in loop.within if piece.weights]
    taps = jax.tree.map(lambda aval: jnp.zeros((length, *aval.shape), aval.dtype), shapes)
    results, pullback, read = jax.vjp(functools.partial(_scan, loop, length, fixed), carry, ready, taps, has_aux=True)
    return results, (pullback, fixed, ready, read)


def _run_backward(loop: Loop, length: int, kept: Any, cotangents: Any) -> Any:
    pullback, fixed, ready, read = kept
    dcarry, dready, dtaps = pullback(cotangents)
    constants = dict(zip(loop.once.outvars, fixed, strict=True))
    stacked = dict(zip([*loop.before.outvars, *loop.read], [*ready, *read], strict=True))
    dfixed = {v: _zero(x) for v, x in constants.items()}
    for piece, douts in zip((piece for piece in loop.within if piece.weights), dtaps, strict=True):
        own = {v: stacked[v] for v in piece.jaxpr.invars if v in stacked}
        for v, dx in _weight_gradients(piece, length, constants, own, douts).items():
            dfixed[v] = dfixed[v] + dx
    return list(dfixed.values()), dcarry, dready


_run.defvjp(_run_forward, _run_backward)


def _weight_gradients(
    piece: Piece, length: int, constants: Mapping[Any, Any], own: Mapping[Any, Any], douts: list[Any]
) -> dict[Var, Any]:
    """{weight: its gradient} of a piece from what it read [T, ..] and the gradients of its results [T, ..]."""
    one = jaxpr_as_fun(ClosedJaxpr(piece.jaxpr, ()))
    axes = [0 if v in own else None for v in piece.jaxpr.invars]

    def all_steps(weights: list[Any]) -> list[Any]:
        values = {**constants, **own, **dict(zip(piece.weights, weights, strict=True))}
        return jax.vmap(one, axes, axis_size=length)(*(values[v] for v in piece.jaxpr.invars))

    gradients = jax.vjp(all_steps, [constants[v] for v in piece.weights])[1](douts)[0]
    return dict(zip(piece.weights, gradients, strict=True))


def _zero(x: Any) -> Any:
    return jnp.zeros_like(x) if _has_gradient(x) else np.zeros(x.shape, jax.dtypes.float0)


@jax.custom_vjp
def _tap(x: Any, tap: Any) -> Any:
    """x; the gradient of x is that of `tap`, too."""
    return x


_tap.defvjp(lambda x, tap: (x, None), lambda _, dx: (dx, dx))
