"""The encoder treats no value inside its space as missing, except -inf where there is no lower bound."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from any_spaces import Anything, boxes, discretes, nested, one_hot_action
from faulty_check_envs import Ball
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer.errors import UserError
from dreamer.nets.encoder import concat_vectors, missing
from dreamer.runtime.env.observations import agent_obs, readers
from dreamer.runtime.env.rows import EnvRows


def seen(space: spaces.Space, values: list) -> np.ndarray:
    """Returns the input of the encoder for each of these observations, [N, width]."""
    env = Ball()
    env.observation_space = space
    keys = readers(env)
    rows = [agent_obs(keys, value)[0] for value in values]
    obs = {key: jnp.concatenate([row[key] for row in rows]) for key in rows[0]}
    return np.asarray(concat_vectors({reader.key: reader.space for reader in keys}, obs, True))


def test_all_boards_of_a_space_that_starts_at_minus_1_look_different():
    space = spaces.MultiDiscrete([3] * 9, start=[-1] * 9)
    boards = np.unique(np.random.default_rng(0).integers(-1, 2, (300, 9)), axis=0)
    assert len(np.unique(seen(space, list(boards)), axis=0)) == len(boards) >= 290


@pytest.mark.parametrize("start", [-2, -1, 0, 5])
def test_a_discrete_has_all_its_classes_wherever_it_starts(start):
    np.testing.assert_array_equal(seen(spaces.Discrete(3, start=start), [start, start + 1, start + 2]), np.eye(3))


@settings(max_examples=20, deadline=None)
@given(nested(st.one_of(discretes(), boxes())).filter(spaces.flatdim), st.integers(0, 99))
def test_no_value_of_a_space_is_treated_as_missing(space, seed):
    rows = EnvRows(Anything(space, spaces.Discrete(2), seed))
    for _ in range(5):
        obs = rows.step(one_hot_action(2)).obs
        for key, array in obs.items():
            assert not missing(rows.spec.obs[key], jnp.asarray(array)).any()
            if rows.spec.obs[key].discrete:
                assert 0 <= array.min() and array.max() < rows.spec.obs[key].classes


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float32])
def test_minus_1_in_a_box_is_a_number(dtype):
    assert seen(spaces.Box(-5, 5, (2,), dtype), [np.array([-1, 2], dtype)]).ravel() == pytest.approx(
        [-np.log(2), np.log(3)]
    )


def test_minus_infinity_in_a_box_without_a_lower_bound_marks_the_whole_key_missing():
    space = spaces.Dict({"a": spaces.Box(-np.inf, 9, (2,)), "b": spaces.Box(-9, 9, (1,))})
    value = {"a": np.float32([1, -np.inf]), "b": np.float32([1])}
    assert seen(space, [value])[0].tolist() == pytest.approx([0, 0, np.log(2)])


@pytest.mark.parametrize(
    "dtype, value, words",
    [
        (np.float64, np.float64(-1e300), "at [0] is -1e+300, below -3.40282e+38, the lowest number that fits"),
        (np.float32, np.float64(-1e300), "at [0] is -1e+300, below -3.40282e+38"),
        (np.float16, np.float32(-1e6), "at [0] is -1e+06, below -65504"),
        (np.float16, np.float32(1e6), "at [0] is 1e+06, outside"),
    ],
)
def test_a_number_that_would_become_minus_infinity_on_its_way_is_refused(dtype, value, words):
    with pytest.raises(UserError) as caught:
        seen(spaces.Box(-np.inf, np.inf, (1,), dtype), [np.array([value])])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "dtype, value", [(np.uint16, 65_537), (np.int32, 2**31), (np.uint16, -1), (np.int64, np.uint64(2**63))]
)
def test_an_integer_that_would_overflow_in_its_row_is_refused(dtype, value):
    whole = np.iinfo(dtype)
    with pytest.raises(UserError, match="outside its space's bounds"):
        seen(spaces.Box(whole.min, whole.max, (1,), dtype), [np.array([value])])


def test_minus_1_in_a_space_that_starts_at_0_is_refused():
    with pytest.raises(UserError, match="is -1, outside its space's bounds 0 to 2"):
        seen(spaces.Discrete(3), [-1])
