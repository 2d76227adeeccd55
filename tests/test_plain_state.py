"""States of environments are encoded as bytes that run no code when they are read."""

from __future__ import annotations

import collections
import random

import gymnasium
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from test_env_state import MAKERS, made, play

from dreamer.runtime.env import state as env_state
from dreamer.runtime.files.plain_state import NotPlain, check_generator, decode, encode
from envs.probes import ENVS
from envs.reach import make as reach

GENERATORS = [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64]
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
    | st.text() | st.binary()
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@hypothesis.given(VALUES)
def test_values_come_back_equal_and_of_their_type(value):
    back = decode(encode(value))
    assert back == value and repr(back) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        np.float32(2.5), np.int64(-3), np.bool_(True), np.complex64(1j), np.arange(6).reshape(2, 3).T, np.zeros((0, 3)),
        np.array(5.0), np.array([["S", "F"]], dtype="S1"), np.array(["ab"]), np.arange(3, dtype=">i2"),
        collections.deque([1, 2], 3), {1, 2}, frozenset([(1, None)]), {(1, 2): [3]}, "\ud800",
        np.str_("ab"), np.bytes_(b"a"),
    ],
    ids=repr,
)  # fmt: skip
def test_arrays_scalars_and_collections_come_back(value):
    back = decode(encode(value))
    assert type(back) is type(value) and repr(back) == repr(value)
    if isinstance(value, np.ndarray):
        assert back.dtype == value.dtype and back.tobytes() == value.tobytes() and back.flags.writeable


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_draws_and_spawns_on(kind):
    rng = np.random.Generator(kind(np.random.SeedSequence(3, spawn_key=(1,))))
    rng.integers(5, dtype=np.int32)
    rng.spawn(1)
    back = decode(encode(rng))
    assert back.random(9).tobytes() == rng.random(9).tobytes()
    assert back.spawn(2)[1].random() == rng.spawn(2)[1].random()


def test_older_random_sources_draw_on():
    old, plain = np.random.RandomState(1), random.Random(1)
    old.randn(), plain.gauss(0, 1)
    back, also = decode(encode((old, plain)))
    assert back.randn(3).tobytes() == old.randn(3).tobytes()
    assert [also.gauss(0, 1), also.random()] == [plain.gauss(0, 1), plain.random()]


def test_shared_objects_stay_shared():
    rng, inner = np.random.default_rng(0), [1]
    inner.append(inner)
    one, two, ring, again = decode(encode([rng, rng, inner, inner]))
    assert one is two and ring is again and ring[1] is ring


@pytest.mark.parametrize(
    "value",
    [object(), np.array([None]), np.zeros(2, [("a", int)]), collections.OrderedDict(), np.datetime64(0, "s"), print],
    ids=lambda value: type(value).__name__,
)
def test_values_without_a_plain_form_are_refused(value):
    with pytest.raises(NotPlain):
        encode([value])


def test_deep_nesting_is_refused_both_ways():
    value: list = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(NotPlain, match="too deeply"):
        encode(value)
    with pytest.raises(ValueError, match="too deeply"):
        decode((b"l" + (1).to_bytes(8, "little")) * 5000 + b"N")


@hypothesis.given(st.data())
def test_changed_bytes_are_a_value_or_a_value_error(data):
    whole = encode([np.arange(4.0), np.random.default_rng(0), {"a": (1, "b", None)}, np.random.RandomState(0), 7])
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + data.draw(st.binary(max_size=9)) + whole[at + data.draw(st.integers(0, 9)) :]
    try:
        decode(changed)
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("MT19937", lambda state: state["state"].update(pos=10**6)),
        ("MT19937", lambda state: state["state"].update(pos=-5)),
        ("MT19937", lambda state: state["state"].update(key=np.zeros(3, np.uint32))),
        ("Philox", lambda state: state.update(buffer_pos=-1)),
        ("PCG64", lambda state: state["state"].update(state=-1)),
        ("PCG64", lambda state: state.update(more=1)),
    ],
)
def test_a_generator_that_would_read_foreign_memory_is_refused(kind, change):
    state = getattr(np.random, kind)(0).state
    change(state)
    with pytest.raises(ValueError, match=f"no state of a {kind}"):
        check_generator(state, kind)


@pytest.mark.parametrize("make", [*MAKERS, lambda: reach("line"), lambda: ENVS["both"]()])
def test_known_environments_need_no_pickle(make):
    env = made(make, 0)
    play(env, [env.action_space.sample() for _ in range(5)])
    assert not env_state.pickled(env_state.get_state(env))


class Holds(gymnasium.Env):
    """Has an object of its own type as state."""

    action_space = observation_space = gymnasium.spaces.Discrete(2)
    value: object = object

    def get_state(self):
        return self.value

    def set_state(self, state):
        self.value = state


def test_values_that_are_not_plain_are_pickled_and_marked():
    env, other = Holds(), Holds()
    env.value = collections.OrderedDict(a=1)
    state = env_state.get_state(env, ("more",))
    assert env_state.pickled(state)
    assert env_state.set_state(other, state) == ("more",) and other.value == env.value
