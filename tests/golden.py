"""Loads the golden numbers of tests/golden and compares results with them, with a tolerance for each file."""

from __future__ import annotations

import csv
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FOLDER = pathlib.Path(__file__).parent / "golden"
MARGIN = 5.0  # times the float32 error measured on the reference itself
LEAST = 1e-6  # relative to the tensor's largest magnitude

Tree = dict[str, Any]


class Golden(NamedTuple):
    """One component file as nested dicts of numpy arrays, see tests/golden/README.md."""

    inputs: Tree
    params: Tree
    out: Tree
    cot: Tree
    gin: Tree
    gparam: Tree


def nest(flat: Mapping[str, Any]) -> Tree:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: Tree = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        functools.reduce(lambda node, part: node.setdefault(part, {}), path, tree)[last] = value
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def load_flat(file: str) -> dict[str, np.ndarray]:
    """Loads the arrays of `file` (without .npz) by full name."""
    with np.load(FOLDER / f"{file}.npz") as data:
        return {name: data[name] for name in data.files}


def load(file: str) -> Golden:
    """Loads the component `file` (without .npz)."""
    flat = load_flat(file)

    def kind(prefix: str) -> Tree:
        return nest({name.removeprefix(prefix): value for name, value in flat.items() if name.startswith(prefix)})

    return Golden(*map(kind, ("in/", "param/", "out/", "cot/", "gin/", "gparam/")))


@functools.cache
def tolerances() -> dict[tuple[str, str], float]:
    """Returns {(file, group): relative error of the reference in float32}."""
    with open(FOLDER / "tolerances.csv", newline="") as file:
        return {(row["file"], row["group"]): float(row["rel"]) for row in csv.DictReader(file)}


def assert_close(
    file: str, group: str, tensor: str, actual: Any, expected: np.ndarray, magnitude: float = 0.0
) -> None:
    """Fails when `actual` differs by more than the tolerance of (file, group), relative to the largest |expected|.

    If terms of a sum cancel, pass the `magnitude` of the terms, which then sets the minimum tolerance.
    Integers and booleans must be equal. Infinities must be equal and in the same places.
    """
    label = f"{file} {group}/{tensor}"
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, f"{label}: shape {actual.shape}, golden {expected.shape}"
    if not np.issubdtype(expected.dtype, np.floating):
        np.testing.assert_array_equal(actual, expected, err_msg=label)
        return
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=label)
    if not finite.any():
        return
    error = np.abs(actual[finite].astype(np.float64) - expected[finite])
    largest, worst = np.abs(expected[finite]).max(), error.max()
    allowed = max(MARGIN * tolerances()[file, group] * largest, LEAST * max(largest, magnitude))
    assert worst <= allowed, f"{label}: differs by {worst:.3g}, allowed {allowed:.3g} (largest {largest:.3g})"


def assert_tree_close(
    file: str,
    group: str,
    actual: Mapping[str, Any],
    expected: Mapping[str, Any],
    magnitudes: Mapping[str, float] | None = None,
) -> None:
    """Applies `assert_close` to every tensor of `expected`; `actual` must have the same tensors."""
    actual, expected = flatten(actual), flatten(expected)
    assert set(actual) == set(expected), f"{file} {group}: names differ: {sorted(set(actual) ^ set(expected))}"
    for name in sorted(expected):
        assert_close(file, group, name, actual[name], expected[name], (magnitudes or {}).get(name, 0.0))


def check(
    file: str, forward: Callable[[Tree, Tree], Tree], magnitudes: Mapping[str, float] | None = None
) -> None:
    """Compares outputs and gradients of forward(params, inputs) -> outputs with the component `file`.

    The gradients are of J = sum of cotangent * output, with respect to every parameter and every input with a golden
    gradient.
    """
    golden = load(file)
    cot = flatten(golden.cot)

    def objective(params: Tree, varied: Tree) -> tuple[jax.Array, Tree]:
        out = forward(params, golden.inputs | varied)
        flat = flatten(out)
        return sum((jnp.sum(cot[name] * flat[name]) for name in cot), jnp.zeros(())), out

    varied = {name: golden.inputs[name] for name in golden.gin}
    (_, out), (gparam, gin) = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))(
        golden.params, varied
    )
    assert_tree_close(file, "out", out, golden.out, magnitudes)
    if cot:
        assert_tree_close(file, "gin", gin, golden.gin)
        assert_tree_close(file, "gparam", gparam, golden.gparam)
