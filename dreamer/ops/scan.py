"""Scans over time whose forward and backward loops contain only the operations that depend on the carry.

The equations of a step are of three kinds. Those that depend on the weights alone are computed once. Those that depend
on the inputs, such as random numbers or a layer on observations, are computed for all steps together before the loop.
The rest stays in the loop.

The gradient is divided in the same way. The forward loop stores only the carries, and the backward loop computes only
the gradients of the carries. The intermediate values for the backward loop, and afterwards the gradients of weights and
inputs, are computed for all steps together: dW = sum_t x_t^T dy_t is one product. With `jax.lax.scan`, each step would
add to an array as large as W, and devices that share a batch would sum their parts in each step. The cost is a second
evaluation of the steps, in large products. In return, the loops store no intermediate values: `jax.lax.scan` writes and
reads an array for each intermediate value in every step, and on a GPU each such access starts a kernel.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var, jaxpr_as_fun

ONCE, BEFORE, WITHIN = range(3)


def scan_time(step: Callable[..., tuple[Any, Any]], carry: Any, inputs: Any, keys: Any = None) -> tuple[Any, Any]:
    """Applies `scan` over the time axis 1 of batch-major inputs [B, T, ..]. The outputs are [B, T, ..], too.

    step(carry, inputs) -> carry, outputs | keys [T]: passed to step as its third argument, one for each time step
    Without keys, step has two arguments.
    """
    shared = () if keys is None else (keys,)
    carry, outputs = scan(lambda carry, xs: step(carry, *xs), carry, (_swap_time(inputs), *shared))
    return carry, _swap_time(outputs)


def scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: Any) -> tuple[Any, Any]:
    """Computes `jax.lax.scan(step, carry, inputs)`, but may add numbers in another order.

    inputs: a tree with leaves [T, ..]. The result is differentiable in all values that the step reads, but only in
    reverse mode (`jax.grad`, `jax.vjp`).
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


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """A step whose equations are sorted by when they are computed.

    once: equations that are computed once | before: computed for all steps before the loop | within: in the loop
    carry, inputs: the arguments of the step | results: the carry after the step, then its outputs
    """

    once: Jaxpr
    before: Jaxpr
    within: Jaxpr
    carry: tuple[Var, ...]
    inputs: tuple[Var, ...]
    results: tuple[Any, ...]


def divide(step: Jaxpr, carries: int) -> Loop:
    """Sorts the equations of a step. Its first `carries` arguments are the carry, and the others are inputs."""
    carry, inputs = step.invars[:carries], step.invars[carries:]
    level = dict.fromkeys(step.constvars, ONCE) | dict.fromkeys(carry, WITHIN) | dict.fromkeys(inputs, BEFORE)
    sorts: tuple[list[JaxprEqn], ...] = ([], [], [])
    repeated = []  # equations that only repeat a value: cheaper to repeat at each use than to store
    for eqn in step.eqns:
        at = WITHIN if eqn.effects else max((level[v] for v in _variables(eqn.invars)), default=ONCE)
        level |= dict.fromkeys(eqn.outvars, at)
        sorts[at].append(eqn)
        if at != WITHIN and (eqn.primitive.name in ("broadcast_in_dim", "iota") or not _variables(eqn.invars)):
            repeated.append(eqn)
    results = _variables(step.outvars)
    within = _part(step, [*repeated, *sorts[WITHIN]], results)
    before = _part(step, [*repeated, *sorts[BEFORE]], [v for v in within.invars if level[v] == BEFORE])
    needed = [v for v in [*within.invars, *before.invars] if level[v] == ONCE]
    return Loop(_part(step, sorts[ONCE], needed), before, within, tuple(carry), tuple(inputs), tuple(step.outvars))


def _part(step: Jaxpr, eqns: Sequence[JaxprEqn], results: Iterable[Var]) -> Jaxpr:
    """Returns a jaxpr of the equations in `eqns` that the results need. Values of other equations are its arguments."""
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


# --- the loop and its gradient ----------------------------------------------------------------------


def _step(loop: Loop, fixed: list[Any], carry: list[Any], ready: list[Any]) -> tuple[list[Any], list[Any]]:
    """Computes carry, outputs of one step. fixed: values of loop.once | ready: the step's values of loop.before."""
    names = [*loop.once.outvars, *loop.carry, *loop.before.outvars]
    values = _evaluate(loop.within, dict(zip(names, [*fixed, *carry, *ready], strict=True)))
    results = [values[v] if isinstance(v, Var) else jnp.asarray(v.val, v.aval.dtype) for v in loop.results]
    return results[: len(carry)], results[len(carry) :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(loop: Loop, length: int, fixed: list[Any], carry: list[Any], ready: list[Any]) -> Any:
    """Returns the last carry and the outputs [T, ..].

    fixed: values of loop.once | ready [T, ..]: values of loop.before
    """
    return jax.lax.scan(lambda carry, ready: _step(loop, fixed, carry, ready), carry, ready, length)


def _run_forward(loop: Loop, length: int, fixed: list[Any], carry: list[Any], ready: list[Any]) -> Any:
    """Like `_run`; also returns what the gradient needs: fixed, the carry [T, ..] before each step, and ready."""
    after, shown = loop.results[: len(carry)], loop.results[len(carry) :]
    hidden = [i for i, v in enumerate(after) if v not in shown]

    def step(carry: list[Any], ready: list[Any]) -> Any:
        carry, outputs = _step(loop, fixed, carry, ready)
        return carry, [*outputs, *(carry[i] for i in hidden)]

    last, kept = jax.lax.scan(step, carry, ready, length)
    places = [shown.index(v) if v in shown else len(shown) + hidden.index(i) for i, v in enumerate(after)]
    carries = [jnp.concatenate([first[None], kept[place][:-1]]) for first, place in zip(carry, places, strict=True)]
    return (last, kept[: len(shown)]), (fixed, carries, ready)


def _run_backward(loop: Loop, length: int, kept: Any, cotangents: Any) -> Any:
    fixed, carries, ready = kept
    dlast, douts = map(_reals, cotangents)

    def pullback_of(carry: list[Any], ready: list[Any]) -> Any:
        return jax.vjp(lambda real: _real_step(loop, fixed, _replace(carry, real), ready), _reals(carry))[1]

    pullback, stacked = _for_all_steps(pullback_of, length, carries, ready)

    def back(dcarry: list[Any], xs: Any) -> tuple[list[Any], list[Any]]:
        arrays, douts = xs
        return pullback(arrays)((dcarry, douts))[0], dcarry

    dcarry, dcarries = jax.lax.scan(back, dlast, (stacked, douts), length, reverse=True)

    def all_steps(reals: Any) -> Any:
        now_fixed, now_ready = map(_replace, (fixed, ready), reals)
        return jax.vmap(functools.partial(_real_step, loop, now_fixed), axis_size=length)(carries, now_ready)

    ((dfixed, dready),) = jax.vjp(all_steps, (_reals(fixed), _reals(ready)))[1]((dcarries, douts))
    first = [x[0] for x in carries]
    return tuple(_replace(map(_zero, x), dx) for x, dx in ((fixed, dfixed), (first, dcarry), (ready, dready)))


_run.defvjp(_run_forward, _run_backward)



def _for_all_steps(pullback_of: Callable[..., Any], length: int, *xs: Any) -> tuple[Callable[[list[Any]], Any], Any]:
    """Calls pullback_of(*xs[t]) for all steps t together. Each call returns a pullback (a function from jax.vjp).

    Returns (restore, arrays [T, ..]). The arrays are the residuals of the pullbacks, and restore(arrays of step t) is
    the pullback of step t. Residuals that are the same at each step, such as weights, are kept inside `restore`.
    """
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    traced, shapes = jax.make_jaxpr(pullback_of, return_shape=True)(*first)
    own = set(traced.jaxpr.invars)
    for eqn in traced.jaxpr.eqns:
        own |= {*eqn.outvars} if own.intersection(_variables(eqn.invars)) else set()
    each = [isinstance(v, Var) and v in own for v in traced.jaxpr.outvars]
    evaluate = jax.vmap(jaxpr_as_fun(traced), out_axes=[0 if own else None for own in each], axis_size=length)
    arrays = evaluate(*jax.tree.leaves(xs))

    def pullback(now: list[Any]) -> Any:
        mine = iter(now)
        leaves = [next(mine) if own else x for own, x in zip(each, arrays, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return pullback, [x for own, x in zip(each, arrays, strict=True) if own]


def _real_step(loop: Loop, fixed: list[Any], carry: list[Any], ready: list[Any]) -> tuple[list[Any], list[Any]]:
    """Computes one step, and returns only the results that can have a gradient."""
    after, outputs = _step(loop, fixed, carry, ready)
    return _reals(after), _reals(outputs)


def _reals(xs: Iterable[Any]) -> list[Any]:
    """Returns the arrays in `xs` that can have a gradient: those of an inexact dtype."""
    return [x for x in xs if jnp.issubdtype(x.dtype, jnp.inexact)]


def _replace(xs: Iterable[Any], reals: Iterable[Any]) -> list[Any]:
    """Returns `xs` with the arrays of `_reals(xs)` replaced by `reals`, in this order."""
    others = iter(reals)
    return [next(others) if jnp.issubdtype(x.dtype, jnp.inexact) else x for x in xs]


def _zero(x: Any) -> Any:
    """Returns a placeholder for the gradient of x: x itself if x can have a gradient, else zeros of dtype float0."""
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else np.zeros(x.shape, jax.dtypes.float0)
