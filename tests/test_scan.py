"""`dreamer.ops.scan` is `jax.lax.scan`, values and gradients, with only carry-dependent operations in the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from dreamer.ops.scan import scan

T, B, N = 7, 2, 5  # steps, rows, width


def layer(weights: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ weights["kernel"] + weights["bias"]) * weights["scale"]


def steps_of(kind: str, weights: Any) -> Callable[[Any, Any], Any]:
    """Returns a step (carry, (x, key)) -> carry, outputs of the given kind."""

    def recurrent(carry, inputs):
        carry = layer(weights, carry + inputs[0])
        return carry, carry

    def random(carry, inputs):
        x, key = inputs
        carry = layer(weights, carry) + layer(weights, x) + jax.random.normal(key, x.shape)
        return carry, jax.nn.silu(carry)

    def two_products(carry, inputs):
        hidden = layer(weights, carry)
        return layer(weights, hidden) * hidden, (hidden @ weights["kernel"].T, inputs[0] * weights["scale"])

    def jitted(carry, inputs):
        carry = jax.jit(layer)(weights, carry + inputs[0])
        return carry, carry

    def outputs_of_every_sort(carry, inputs):
        x, key = inputs
        carry = jnp.where(x > 0, carry, 0.0) * weights["scale"] + 1.0
        return carry, (weights["bias"], 1.0, x.sum(), jnp.argmax(carry, -1), jax.random.uniform(key), jnp.ones(3))

    def carry_of_the_weights(carry, inputs):
        return jnp.broadcast_to(weights["bias"], carry.shape), carry * weights["scale"]

    def inner_scan(carry, inputs):
        carry, sums = jax.lax.scan(lambda c, _: (layer(weights, c), c.sum()), carry + inputs[0], None, 3)
        return carry, sums

    forms = (recurrent, random, two_products, jitted, outputs_of_every_sort, carry_of_the_weights, inner_scan)
    return {form.__name__: form for form in forms}[kind]


FORMS = ("recurrent", "random", "two_products", "jitted", "outputs_of_every_sort", "carry_of_the_weights", "inner_scan")


@pytest.fixture
def arguments(key: jax.Array) -> tuple[Any, jax.Array, Any]:
    """Returns weights, carry [B, N] and inputs."""
    keys = jax.random.split(key, 4)
    weights = {"bias": jnp.linspace(-1, 1, N)[None], "scale": jnp.linspace(0.5, 2, N)[None]}
    weights["kernel"] = 0.4 * jax.random.normal(keys[0], (N, N))
    inputs = jax.random.normal(keys[2], (T, B, N)), jax.random.split(keys[3], T)
    return weights, jax.random.normal(keys[1], (B, N)), inputs


def value_and_gradients(scan: Callable[..., Any], kind: str, arguments: Any) -> Any:
    """Returns the results, and the gradients of their sum by weights, carry and inputs."""

    def loss(weights, carry, x, keys):
        results = scan(steps_of(kind, weights), carry, (x, keys))
        return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(results)), results

    weights, carry, (x, keys) = arguments
    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(weights, carry, x, keys)


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, expected)


@pytest.mark.parametrize("kind", FORMS)
def test_values_and_gradients_are_those_of_lax_scan(arguments, kind):
    assert_same(value_and_gradients(scan, kind, arguments), value_and_gradients(jax.lax.scan, kind, arguments))


@pytest.mark.parametrize("kind", FORMS)
def test_it_can_be_jitted_and_mapped_over_seeds(arguments, kind):
    seeds = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), arguments)

    def both(scan):
        return jax.jit(jax.vmap(lambda *args: value_and_gradients(scan, kind, args)))(*seeds)

    assert_same(both(scan), both(jax.lax.scan))


def test_bfloat16_is_supported(arguments):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, arguments)
    (_, (carry, _)), gradients = value_and_gradients(scan, "recurrent", half)
    assert {x.dtype for x in jax.tree.leaves((carry, gradients))} == {jnp.dtype(jnp.bfloat16)}


def loops(jaxpr: Any) -> Iterator[Any]:
    """Yields the bodies of all scans of a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn.params["jaxpr"].jaxpr
        for inner in jaxprs_in_params(eqn.params):
            yield from loops(inner)


def equations(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


def test_the_loop_draws_nothing_and_holds_no_layer_on_inputs_alone(arguments):
    weights, carry, inputs = arguments
    program = jax.make_jaxpr(lambda: scan(steps_of("random", weights), carry, inputs))().jaxpr
    (body,) = loops(program)
    names = [eqn.primitive.name for eqn in equations(body)]
    assert "random_bits" not in names and names.count("dot_general") == 1


def test_the_loop_back_in_time_carries_no_gradient_of_a_weight(arguments):
    weights, carry, inputs = arguments

    def loss(weights):
        return scan(steps_of("two_products", weights), carry, inputs)[0].sum()

    bodies = list(loops(jax.make_jaxpr(jax.grad(loss))(weights).jaxpr))
    assert len(bodies) == 2
    shapes = {v.aval.shape for v in bodies[1].outvars}
    assert shapes == {(B, N)}


@pytest.mark.parametrize(("kind", "written"), [("recurrent", 1), ("two_products", 2)])
def test_the_loop_forward_writes_carries_and_outputs_alone(arguments, kind, written):
    """recurrent writes its carry, which is its output; two_products its carry and the output that depends on it."""
    weights, carry, inputs = arguments

    def loss(carry):
        return sum(x.sum() for x in jax.tree.leaves(scan(steps_of(kind, weights), carry, inputs)))

    forward, _ = loops(jax.make_jaxpr(jax.grad(loss))(carry).jaxpr)
    assert len(forward.outvars) == 1 + written
