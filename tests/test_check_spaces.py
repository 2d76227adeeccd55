"""`dreamer check` describes spaces as the agent uses them, compared by numbers."""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
import pytest
from faulty_check_envs import Ball, Scene
from gymnasium import spaces

from dreamer import agent as agents
from dreamer.apps.check import channels, rewards
from dreamer.apps.check import spaces as checks
from dreamer.apps.check.examine import examine
from dreamer.apps.check.looks import keys_of
from dreamer.apps.check.verdicts import Settings, Verdict
from dreamer.apps.check.walk import walk
from dreamer.apps.check.watch import Watch
from dreamer.nets.decoder import reconstruction_loss, to_observation
from dreamer.nets.encoder import concat_vectors
from dreamer.nets.images import to_unit
from dreamer.ops.distributions import symlog, twohot_bins
from dreamer.plugins import Maker
from dreamer.runtime.env.actions import action_reader, ranges
from dreamer.runtime.env.observations import readers
from dreamer.spaces import CENTRE, Space


def of(observation: spaces.Space = Ball.observation_space, action: spaces.Space = Ball.action_space) -> list[Verdict]:
    env = Ball()
    env.observation_space, env.action_space = observation, action
    return checks.check(env, keys_of(env, readers(env)))


def texts(verdicts: list[Verdict], key: str) -> list[str]:
    return [verdict.text for verdict in verdicts if verdict.key == key]


# ---- observations

PICTURES = [
    spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Box(0, 10, (8, 8, 3), np.uint8),
    spaces.Box(-1, 1, (8, 8, 3), np.float32), spaces.Box(3, 9, (8, 8), np.uint8), spaces.MultiBinary((8, 8, 3)),
]  # fmt: skip


@pytest.mark.parametrize("space", PICTURES, ids=str)
def test_the_reported_range_of_an_image_is_the_one_scaled_to_0_to_1(space):
    (text,) = texts(of(space), "observation")
    low, high = map(float, re.search(r"of (\S+) to (\S+) -> scaled to -0.5..0.5, convolutions", text).groups())
    env = Ball()
    env.observation_space = space
    (reader,) = readers(env)
    ends = np.array([low, high]).reshape(2, 1, 1, 1) * np.ones(reader.space.shape)
    unit = to_unit(reader.space, jnp.asarray(ends.astype(reader.space.dtype)))
    assert unit[0].min() == unit[0].max() == 0 and unit[1].min() == unit[1].max() == 1 and CENTRE == 0.5


@pytest.mark.parametrize(
    "space", [spaces.Box(5, 5, (8, 8), np.uint8), spaces.Box(-1, np.inf, (8, 8, 3)), spaces.Box(0, 1e9, (8, 8, 3))],
    ids=str,
)  # fmt: skip
def test_a_space_without_the_range_of_an_image_is_a_vector_for_check_and_agent(space):
    (text,) = texts(of(space), "observation")
    assert text.startswith("'vector': vector of ") and "symlog, MLP" in text


@pytest.mark.parametrize(
    "space, words",
    [
        (Space((3,), "float32"), "symlog, MLP; decoded as symlog values, squared error"),
        (Space((2,), "int64", 4), "one-hot (8 numbers), MLP; decoded as class probabilities, cross-entropy"),
        (Space((2, 2, 1), "uint8"), "scaled to -0.5..0.5, convolutions; decoded as pixels 0..1, squared error"),
        (Space((2, 2, 1), "float32", bounds=(-2, 6)), "decoded as pixels 0..1, squared error"),
    ],
    ids=str,
)
def test_the_described_encoding_and_decoding_is_that_of_the_networks(space, words):
    assert words in checks.described(space)
    rng = np.random.default_rng(0)
    value = jnp.asarray(rng.integers(0, 4, (1, *space.shape)).astype(space.device_dtype))
    flat = value.reshape(1, -1)
    if "symlog" in words:
        target = symlog(flat.astype(jnp.float32))
    elif "one-hot" in words:
        target = np.eye(space.classes, dtype=np.float32)[np.asarray(flat)].reshape(1, -1)
    else:
        target = to_unit(space, value).reshape(1, -1)
    if not space.image:
        np.testing.assert_allclose(concat_vectors({"k": space}, {"k": value}, True), target, rtol=1e-6)
    out = jnp.asarray(rng.normal(size=(1, space.width)), jnp.float32)
    if "cross-entropy" in words:
        log = out.reshape(-1, space.classes)
        log = log - np.log(np.exp(log).sum(-1, keepdims=True))
        expected = -(target.reshape(-1, space.classes) * log).sum()
    else:
        expected = np.square(out - target).sum()
    given = out.reshape(1, *space.shape) if space.image else out
    np.testing.assert_allclose(reconstruction_loss(space, given, value)[0], expected, rtol=1e-4)
    perfect = target.reshape(1, *space.shape) if space.image else target
    np.testing.assert_allclose(to_observation(space, perfect), value, rtol=1e-5)


def test_the_reported_number_of_classes_is_that_of_the_one_hots_for_any_start():
    (text,) = texts(of(spaces.Discrete(3, start=-1)), "observation")
    assert "one of 3 classes -> one-hot (3 numbers)" in text


def test_an_empty_key_is_reported_and_dropped():
    space = spaces.Dict({"a": Ball.observation_space, "none": spaces.Box(0, 1, (0,)), "log/b": spaces.Discrete(2)})
    reported = texts(of(space), "observation")
    assert "'none': not given to the agent, its shape [0] is empty" in reported
    assert "'log/b': not given to the agent, keys log/... are for logs" in reported
    env = Ball()
    env.observation_space = space
    assert [reader.key for reader in readers(env)] == ["a"]


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (0,)), spaces.MultiDiscrete([])], ids=str)
def test_an_empty_observation_is_a_fault(space):
    class Nothing(Ball):
        observation_space = space

        def observe(self):
            return np.zeros(0, space.dtype)

    found = [v for v in examine(Maker("nothing", Nothing), Settings(steps=20), Watch()) if v.level == "wrong"]
    assert [v.key for v in found] == ["space"] and "has no key for the agent" in found[0].text


@pytest.mark.parametrize("top, found", [(255, ["picture-range"]), (10, ["picture-range"]), (1, [])])
def test_a_picture_is_called_dark_by_its_own_range(top, found):
    class Bounded(Scene):
        observation_space = spaces.Dict(
            {"camera": spaces.Box(0, top, (48, 48, 3), np.uint8), "speed": Scene.observation_space["speed"]}
        )

        def camera(self):
            return (super().camera() > 100).astype(np.uint8)

    env = Bounded()
    keys = keys_of(env, readers(env))
    taken = walk(env, keys, Watch(), steps=60, episodes=9, seed=0, repeat=1)
    verdicts = channels.check(taken, keys)
    assert [v.key for v in verdicts if v.level in ("warning", "note") and v.key == "picture-range"] == found


# ---- actions

INF, MOST = np.inf, np.finfo(np.float32).max


@pytest.mark.parametrize(
    "space, span, free",
    [
        (spaces.Box(-2, 3, (2,)), "-2..3", None),
        (spaces.Box(0, INF, (1,)), "0..2", "1 of 1"),
        (spaces.Box(-INF, 5, (1,)), "3..5", "1 of 1"),
        (spaces.Box(-INF, INF, (2,)), "-1..1", "2 of 2"),
        (spaces.Box(-MOST, MOST, (1,)), "-1..1", "1 of 1"),
        (spaces.Box(-65504, 65504, (1,), np.float16), "-1..1", "1 of 1"),
    ],
    ids=str,
)
def test_the_reported_range_of_actions_is_that_of_the_agent(space, span, free):
    verdicts = of(action=space)
    assert texts(verdicts, "action") == [
        f"{space.shape[0]} number{'s' * (space.shape[0] > 1)}, each -1..1 stretched to {span}"
    ]
    env = Ball()
    env.action_space = space
    to_env = action_reader(env).to_env
    low, high = (to_env(np.full(space.shape[0], end)) for end in (-1.0, 1.0))
    assert f"{low.min():.6g}..{high.max():.6g}" == span
    warned = texts(verdicts, "action-bounds")
    assert len(warned) == (free is not None)
    assert all(f"{free} actions have no finite bounds: the agent uses {span} only" in text for text in warned)


def test_nested_boxes_without_bounds_are_reported():
    pair = spaces.Tuple([spaces.Box(0, INF, (2,)), spaces.Box(-1, 1, (1,))])
    space = spaces.Dict({"a": pair, "b": spaces.Discrete(2)})
    (text,) = texts(of(action=space), "action-bounds")
    assert "2 of 3 actions have no finite bounds: the agent uses 0..2" in text


def test_whole_numbers_have_the_bounds_of_their_dtype():
    low, high, bounded = ranges(spaces.Box(-128, 127, (1,), np.int8))
    assert (low[0], high[0], bounded[0]) == (-128, 127, True)


def test_a_single_action_is_nothing_to_choose():
    assert "nothing to choose" in texts(of(action=spaces.Discrete(1)), "action-bounds")[0]


def test_an_empty_box_beside_other_actions_is_taken():
    space = spaces.Dict({"a": spaces.Box(-1, 1, (0,)), "b": spaces.Discrete(2)})
    assert texts(of(action=space), "action-bounds") == []
    env = Ball()
    env.action_space = space
    assert space.contains(action_reader(env).to_env(np.float32([0, 1])))


# ---- rewards


def test_the_bounds_of_rewards_are_those_of_the_agents_bins_and_horizon():
    assert rewards.LARGEST == pytest.approx(float(twohot_bins(255).max()), rel=1e-6)
    assert rewards.HORIZON == agents.Config().horizon
