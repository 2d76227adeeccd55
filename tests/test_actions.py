"""Action vectors are converted to actions of every space, in order, in scale and in bounds; masks are flattened."""

import numpy as np
import pytest
from any_spaces import action_spaces
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer.errors import UserError
from dreamer.runtime.env.actions import action_reader, flat_mask, random_actions
from dreamer.spaces import Action


class WithAction:
    def __init__(self, space):
        self.action_space = space


def reader(space):
    return action_reader(WithAction(space), "my-env")


HYBRID = spaces.Dict(
    {
        "move": spaces.Box(-2, 2, (2,), np.float64),
        "pick": spaces.Tuple([spaces.Discrete(3, start=5), spaces.MultiBinary(2)]),
        "grid": spaces.MultiDiscrete([[2, 3]]),
    }
)


def test_one_hots_come_first_in_the_order_of_the_keys():
    assert reader(HYBRID).action == Action((2, 3, 3, 2, 2), 2)


def test_a_hybrid_action_by_hand():
    grid, pick, bits, numbers = [0, 1, 0, 0, 1], [0, 1, 0], [1, 0, 0, 1], [0.5, -1]
    action = reader(HYBRID).to_env(np.array([*grid, *pick, *bits, *numbers], np.float32))
    assert action["grid"].tolist() == [[1, 2]] and action["pick"][0] == 6
    assert action["pick"][1].tolist() == [0, 1] and action["move"].tolist() == [1, -2]
    assert HYBRID.contains(action)


@settings(max_examples=200, deadline=None)
@given(action_spaces(), st.integers(0, 2**32 - 1))
def test_every_vector_becomes_an_action_inside_the_space(space, seed):
    actions = reader(space)
    rng = np.random.default_rng(seed)
    wild = rng.normal(0, 3, (3, actions.action.width)).astype(np.float32)
    for vector in (*random_actions(actions.action, rng, 3), *wild):
        assert space.contains(actions.to_env(vector))


@settings(max_examples=200, deadline=None)
@given(action_spaces(numbers=False), st.integers(0, 2**32 - 1))
def test_each_choice_is_reached_by_its_own_one_hot(space, seed):
    actions = reader(space)
    rng = np.random.default_rng(seed)
    chosen = [int(rng.integers(n)) for n in actions.action.classes]
    vector = np.concatenate([np.eye(n)[i] for n, i in zip(actions.action.classes, chosen, strict=True)])
    assert flattened(space, actions.to_env(vector.astype(np.float32))) == chosen


def flattened(space, action):
    """Returns the choices of an action, counted from 0, in the order of the one-hots, by recursion over the space."""
    if isinstance(space, spaces.Dict):
        return [i for key in space for i in flattened(space[key], action[key])]
    if isinstance(space, spaces.Tuple):
        return [i for inner, part in zip(space, action, strict=True) for i in flattened(inner, part)]
    start = 0 if isinstance(space, spaces.MultiBinary) else space.start
    return (np.asarray(action) - start).ravel().tolist()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_whole_numbers_of_any_size_are_reached_to_both_ends(dtype):
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    to_env = reader(spaces.Box(least, most, (2,), dtype)).to_env
    ends = to_env(np.float32([-1, 1]))
    assert ends.dtype == dtype and ends[0] == least
    assert ends[1] == most or most - ends[1] < 2**11  # float64 holds 53 of 64 bits


def test_whole_numbers_have_bins_of_one_width():
    to_env = reader(spaces.Box(0, 3, (1,), np.int32)).to_env
    found = [to_env(np.float32([x])).item() for x in np.linspace(-0.999, 0.999, 400)]
    assert [found.count(i) for i in range(4)] == [100] * 4


def test_finite_bounds_are_stretched_and_others_left():
    most = np.finfo(np.float32).max  # how some environments write "no bound"
    low, high = np.array([-2, 0, -np.inf, -most, 5, -np.inf]), np.array([4, 1, np.inf, most, np.inf, 3])
    actions = reader(spaces.Box(low.astype(np.float32), high.astype(np.float32)))
    assert actions.action == Action(continuous=6)
    np.testing.assert_allclose(actions.to_env(np.array([-1, -1, -0.5, -0.5, -1, -1])), [-2, 0, -0.5, -0.5, 5, 1])
    np.testing.assert_allclose(actions.to_env(np.array([0.5, 1, 0.25, 0.25, 1, 1])), [2.5, 1, 0.25, 0.25, 7, 3])


@pytest.mark.parametrize(
    "space, message",
    [
        (spaces.Text(3), "the action space, Text.*supported are Discrete"),
        (spaces.Dict({"a": spaces.Tuple([spaces.Discrete(2), spaces.Sequence(spaces.Discrete(2))])}), "at 'a/1'"),
        (spaces.OneOf([spaces.Discrete(2)]), "OneOf"),
        (spaces.Discrete(10**6), "1,000,000 choices"),
        (spaces.Dict({}), "nothing to choose"),
    ],
    ids=str,
)
def test_unsupported_action_space_is_named_with_its_path(space, message):
    with pytest.raises(UserError, match=message) as caught:
        reader(space)
    assert "'my-env'" in str(caught.value)


@pytest.mark.parametrize(
    "space, mask, expected",
    [
        (spaces.Discrete(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (spaces.Discrete(3), [True, False, True], [1, 0, 1]),
        (spaces.Discrete(3), None, [1, 1, 1]),
        (spaces.MultiDiscrete([2, 3]), (np.array([1, 0]), np.array([0, 1, 1])), [1, 0, 0, 1, 1]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 0, 0, 1, 1]), [1, 0, 0, 1, 1]),
        (spaces.MultiBinary(3), np.array([0, 1, 2], np.int8), [1, 0, 0, 1, 1, 1]),
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(0, 1), "c": spaces.Discrete(2)}), {"c": [0, 1]},
         [1, 1, 0, 1]),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)]), (None, np.array([0, 1])), [1, 1, 0, 1]),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)]), np.array([1, 1, 0, 1]), [1, 1, 0, 1]),
    ],
)  # fmt: skip
def test_masks_as_gymnasium_samples_with_them_become_flat(space, mask, expected):
    assert flat_mask(space, mask).tolist() == expected


@pytest.mark.parametrize(
    "space, mask, message",
    [
        (spaces.Discrete(3), [1, 0], r"is \[2\], it must be \[3\]"),
        (spaces.Discrete(2), [1, 2], "only 0 and 1"),
        (spaces.Discrete(2), [0.5, 1.0], "only 0 and 1"),
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Discrete(3)}), {"b": [1, 0]}, "at 'b' is"),
    ],
)
def test_masks_that_do_not_fit_are_named(space, mask, message):
    with pytest.raises(ValueError, match=message):
        flat_mask(space, mask)
