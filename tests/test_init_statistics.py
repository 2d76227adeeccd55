"""Compares initial parameters with the statistics of the reference's initialisers."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import flax.linen as nn
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import agent
from dreamer.nets.convolutions import Conv
from dreamer.nets.layers import BlockLinear, Linear, RMSNorm
from dreamer.spaces import Action, Space, Spec

STATISTICS = json.loads((golden.FOLDER / "init_statistics.json").read_text())
SCATTER = 0.55  # relative spread of a standard deviation from n weights, times sqrt(n)
SIGMAS = 5


class Case(NamedTuple):
    module: nn.Module
    shape: tuple[int, ...]


CASES = {
    "linear_64x32": Case(Linear(32), (1, 64)),
    "linear_multi_16_to_4x4x8": Case(Linear(4 * 4 * 8), (1, 16)),
    "blocklinear_64_to_32_blocks8": Case(BlockLinear(32), (8, 1, 8)),
    "conv5_6_to_8": Case(Conv(8, 5), (1, 8, 8, 6)),
    "head_outscale0.01_linear_64x32": Case(Linear(32, outscale=0.01), (1, 64)),
    "head_outscale0_linear_64x255": Case(Linear(255, outscale=0.0), (1, 64)),
    "norm_rms": Case(RMSNorm(), (1, 64)),
}
SPECS = {
    "agent_size1m_image18": Spec({"image": Space((64, 64, 3), "uint8")}, Action((18,))),
    "agent_size1m_proprio": Spec({"vector": Space((24,), "float32")}, Action(continuous=6)),
}


def draw(case: Case, draws: int) -> dict[str, np.ndarray]:
    """Returns {parameter: [draws, ..]} of `draws` new modules."""
    keys = jax.random.split(jax.random.key(0), draws)
    return jax.vmap(lambda key: case.module.init(key, jnp.zeros(case.shape))["params"])(keys)


@pytest.mark.parametrize("name", CASES)
def test_initialiser(name):
    expected = {key.split("/")[-1]: value for key, value in STATISTICS.items() if key.startswith(f"{name}/")}
    drawn = draw(CASES[name], draws=50)
    assert set(drawn) == set(expected)
    for key, values in drawn.items():
        want = expected[key]
        assert values.shape[1:] == tuple(want["shape"])
        if "predicted_std" not in want or want["outscale"] == 0:
            assert np.all(values == want["mean"])
            continue
        assert abs(float(values.mean())) < SIGMAS * want["predicted_std"] / math.sqrt(values.size)
        assert float(values.std()) == pytest.approx(
            want["predicted_std"], rel=SIGMAS * SCATTER / math.sqrt(values.size)
        )
        # Truncated at two sigma of the underlying normal, and drawn up to there.
        bound = want["predicted_absmax"]
        assert 0.98 * bound < float(jnp.abs(values).max()) <= bound * (1 + 1e-4)


def test_every_kind_of_kernel_is_tested():
    assert {key.split("/")[0] for key in STATISTICS if not key.startswith("agent_")} == set(CASES)


@pytest.fixture(scope="module", params=SPECS)
def fresh(request):
    """Returns the statistics of a new reference agent, and our parameters by the same names."""
    state = jax.jit(agent.make(agent.Config(), SPECS[request.param]).init)(jax.random.key(0))
    trained = {name: tree for part in state.params.values() for name, tree in part.items()}
    params = golden.flatten(jax.device_get(trained | {"slowval": state.extra["behavior"]["slow"]}))
    return STATISTICS[request.param], params


def test_a_fresh_agent_has_the_same_parameters(fresh):
    expected, params = fresh
    shapes = {name: list(value.shape) for name, value in params.items()}
    assert shapes == {name: value["shape"] for name, value in expected["params"].items()}
    trained = [value.size for name, value in params.items() if not name.startswith("slowval/")]
    assert sum(trained) == expected["n_trainable"]


def test_a_fresh_agent_has_the_same_statistics(fresh):
    expected, params = fresh
    for name, want in expected["params"].items():
        values = params[name]
        if want["std"] == 0:
            assert np.all(values == want["mean"]), name
            continue
        # Both are one draw from the same distribution.
        tolerance = SIGMAS * SCATTER * math.sqrt(2 / values.size)
        assert values.std() == pytest.approx(want["std"], rel=tolerance), name
        assert abs(values.mean() - want["mean"]) < SIGMAS * want["std"] * math.sqrt(2 / values.size), name


def test_the_slow_critic_starts_as_a_copy(fresh):
    expected, params = fresh
    assert expected["slow_equals_fast"]
    for name, value in params.items():
        if name.startswith("val/"):
            np.testing.assert_array_equal(value, params[f"slow{name}"])
