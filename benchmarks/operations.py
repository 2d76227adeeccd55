"""Counts the operations of matrix products and convolutions in a program's jaxpr. Imports nothing but jax.

The jaxpr is the same on every platform, unlike the compiled program: XLA's cost_analysis counts the body of a loop
once, and its optimized text calls the same product `dot`, `__cublas$gemm` or a Triton fusion. Dead code is eliminated
first, as by jit. A scan counts its body `length` times, a Pallas kernel once per grid point, and a cond its most
expensive branch. A multiply-add is 2 operations. Zeros from padding and dilation count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

try:
    from jax.interpreters.partial_eval import dce_jaxpr
except ImportError:  # not public in every version
    from jax._src.interpreters.partial_eval import dce_jaxpr

import jax


class Operations(NamedTuple):
    """matmul, conv: operations | in_loops: both inside scans | unknown: loops of unknown length, counted once."""

    matmul: int = 0
    conv: int = 0
    in_loops: int = 0
    unknown: int = 0

    @property
    def total(self) -> int:
        """The operations of matrix products and convolutions together."""
        return self.matmul + self.conv

    def __add__(self, other: tuple) -> Operations:
        return Operations(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> Operations:
        """The operations of `count` repetitions."""
        return Operations(self.matmul * count, self.conv * count, self.in_loops * count, self.unknown)


def of_function(fun: Callable[..., Any], *args: Any) -> Operations:
    """Operations of `fun(*args)`; args may be ShapeDtypeStructs."""
    return of_closed(jax.make_jaxpr(fun)(*args))


def of_closed(closed: Any) -> Operations:
    """Operations of a closed jaxpr after dead code elimination."""
    jaxpr = getattr(closed, "jaxpr", closed)
    live, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return of_jaxpr(live)


def carried_bytes(closed: Any) -> int:
    """Bytes of the carries of all scans in a closed jaxpr, summed over their steps, nested scans included."""
    jaxpr = getattr(closed, "jaxpr", closed)
    live, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _carried(live)


def _carried(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        inner, steps = sum(_carried(body) for body in called(eqn.params)), 1
        if eqn.primitive.name == "scan":
            first, steps = eqn.params["num_consts"], eqn.params["length"]
            carry = eqn.invars[first : first + eqn.params["num_carry"]]
            inner += sum(v.aval.size * v.aval.dtype.itemsize for v in carry)
        total += steps * inner
    return total


def of_jaxpr(jaxpr: Any) -> Operations:
    """Operations of a jaxpr, dead code included."""
    total = Operations()
    for eqn in jaxpr.eqns:
        total += of_equation(eqn)
    return total


def of_equation(eqn: Any) -> Operations:
    """Operations of one equation and of the jaxprs that it calls."""
    name = eqn.primitive.name
    if name == "dot_general":
        return Operations(matmul=dot(eqn))
    if name == "conv_general_dilated":
        return Operations(conv=convolution(eqn))
    bodies = [of_jaxpr(body) for body in called(eqn.params)]
    if not bodies:
        return Operations()
    if name == "cond":
        return max(bodies, key=lambda body: body.total)
    inner = sum(bodies[1:], start=bodies[0])
    if name == "scan":
        inner = inner.times(eqn.params["length"])
        return inner._replace(in_loops=inner.total)
    if name == "while":
        return inner._replace(in_loops=inner.total, unknown=inner.unknown + bool(inner.total))
    if name == "pallas_call":
        return inner.times(math.prod(eqn.params["grid_mapping"].grid))
    return inner


def called(params: dict) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation, including those inside tuples."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def dot(eqn: Any) -> int:
    """Operations of a matrix product: 2 x outputs x length of the contraction."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)


def convolution(eqn: Any) -> int:
    """Operations of a convolution: 2 x outputs x kernel elements per output."""
    kernel, outputs = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec[0]
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // kernel[outputs]
