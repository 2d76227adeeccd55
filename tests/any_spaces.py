"""Hypothesis strategies for any valid space of observations or actions, nested too, and environments with them."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces
from hypothesis import strategies as st

FLOATS, WHOLE = (np.float32, np.float64, np.float16), (np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16)
SHAPES = st.lists(st.sampled_from([1, 1, 2, 2, 3, 3, 0]), max_size=2).map(tuple)
STARTS = st.integers(-3, 3)


@st.composite
def boxes(draw: st.DrawFn, shapes: st.SearchStrategy = SHAPES) -> spaces.Box:
    """Boxes of any dtype; floats with and without bounds."""
    shape = draw(shapes)
    if draw(st.booleans()):
        dtype = draw(st.sampled_from(FLOATS))
        ends = [(-1.0, 1.0), (0.0, 1.0), (-0.1, 0.7), (-100.0, 3.0), (-np.inf, np.inf), (0.0, np.inf), (-np.inf, 2.0)]
        low, high = draw(st.sampled_from(ends))
        return spaces.Box(low, high, shape, dtype)
    dtype = draw(st.sampled_from(WHOLE))
    most = np.iinfo(dtype)
    low, high = draw(st.sampled_from([(0, 1), (most.min // 2, most.max // 2), (most.min, most.max), (3, 17)]))
    return spaces.Box(low, high, shape, dtype)


def discretes() -> st.SearchStrategy[spaces.Space]:
    """Discrete, MultiDiscrete of one or two axes, MultiBinary, with any start."""
    one = st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), STARTS)
    bits = st.one_of(st.integers(1, 3), st.sampled_from([(2, 2), (2, 1, 3)])).map(spaces.MultiBinary)
    return st.one_of(one, multidiscretes(), bits)


@st.composite
def multidiscretes(draw: st.DrawFn) -> spaces.MultiDiscrete:
    """MultiDiscretes of one or two axes and several dtypes, with one start for all entries or one for each."""
    shape = draw(st.sampled_from([(1,), (3,), (2, 2)]))
    dtype = draw(st.sampled_from([np.int64, np.int8, np.uint8]))
    sizes = [draw(st.integers(1, 4)) for _ in range(int(np.prod(shape)))]
    same = draw(STARTS)
    starts = np.array([same if draw(st.booleans()) else draw(STARTS) for _ in sizes])
    starts = starts + 3 if dtype == np.uint8 else starts
    return spaces.MultiDiscrete(np.array(sizes).reshape(shape), dtype, start=starts.reshape(shape))


@st.composite
def pictures(draw: st.DrawFn) -> spaces.Box:
    """Images of any size and stacks of them, with channels first or last, of uint8 or floats."""
    height, width, channels = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 4))
    form = draw(st.sampled_from(["last", "first", "flat", "stack"]))
    shape = {
        "last": (height, width, channels), "first": (channels, height, width), "flat": (height, width),
        "stack": (2, height, width, channels),
    }[form]  # fmt: skip
    if form in ("last", "first") and draw(st.booleans()):
        return spaces.Box(0, 1, shape, draw(st.sampled_from([np.float32, np.float64])))
    return spaces.Box(0, draw(st.sampled_from([255, 10])), shape, np.uint8)


def nested(leaves: st.SearchStrategy[spaces.Space]) -> st.SearchStrategy[spaces.Space]:
    """Leaves, and Dicts and Tuples of them at most two levels deep."""

    def grow(inner: st.SearchStrategy[spaces.Space]) -> st.SearchStrategy[spaces.Space]:
        named = st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3).map(spaces.Dict)
        return st.one_of(named, st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple))

    return st.recursive(leaves, grow, max_leaves=4)


def action_spaces(numbers: bool = True) -> st.SearchStrategy[spaces.Space]:
    """Any action space; if not `numbers`, without Boxes."""
    return nested(st.one_of(discretes(), boxes()) if numbers else discretes()).filter(spaces.flatdim)


def observation_spaces() -> st.SearchStrategy[spaces.Space]:
    """Any observation space that can be learned from."""
    return nested(st.one_of(discretes(), boxes(), boxes(st.just((2, 2, 2, 2, 2))), pictures())).filter(spaces.flatdim)


def small_spaces() -> st.SearchStrategy[spaces.Space]:
    """Spaces whose agent compiles fast: no images, and no nesting except pairs."""
    leaves = st.one_of(discretes(), boxes())
    pairs = st.fixed_dictionaries({"a": leaves, "b": leaves}).map(spaces.Dict)
    return st.one_of(leaves, pairs).filter(spaces.flatdim)


class Anything(gymnasium.Env):
    """Returns samples of an observation space; records its observations and actions. Episodes have 5 steps."""

    def __init__(self, obs_space: spaces.Space, action_space: spaces.Space, seed: int = 0):
        self.observation_space, self.action_space = obs_space, action_space
        obs_space.seed(seed)
        self.shown, self.taken, self.time = [], [], 0

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self._show(), {}

    def step(self, action):
        self.taken.append(action)
        self.time += 1
        return self._show(), 0.0, self.time >= 5, False, {}

    def _show(self):
        self.shown.append(self.observation_space.sample())
        return self.shown[-1]


def one_hot_action(classes: int) -> np.ndarray:
    """Returns the one-hot [classes] float32 of the first choice."""
    return np.eye(1, classes, dtype=np.float32)[0]
