"""Rows of an environment: spaces, time alignment, and errors for broken environments."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from dreamer.errors import UserError
from dreamer.runtime.env.adapter import spec_of
from dreamer.runtime.env.rows import EnvRows, empty_step, write_together
from dreamer.spaces import Action, Space
from envs.probes import ENVS


class Script(gymnasium.Env):
    """Replays `rows` of (obs, reward, terminated, truncated); reset returns the first obs."""

    def __init__(self, rows, obs_space=None, action_space=None):
        self.rows, self.time, self.actions, self.seeds = rows, 0, [], []
        self.observation_space = obs_space or spaces.Box(-10, 10, (1,), np.float32)
        self.action_space = action_space or spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        self.seeds.append(seed)
        return self.rows[0][0], {}

    def step(self, action):
        self.time += 1
        self.actions.append(action)
        return (*self.rows[self.time], {})


def number(x):
    return np.full(1, x, np.float32)


def episode(*ends, last=(False, True)):
    """Makes rows with obs and reward 1, 2, 3 ..; the reset has obs 0 and a reward that must never appear."""
    rows = [(number(0), 99.0, False, False)]
    rows += [(number(i), float(i), False, False) for i in ends[:-1]]
    return [*rows, (number(ends[-1]), float(ends[-1]), *last)]


def one_hot(index, width=2):
    return np.eye(width, dtype=np.float32)[index]


def run(rows, steps, action=None):
    return [rows.step(one_hot(0) if action is None else action) for _ in range(steps)]


def obs_env(space, obs):
    return Script([(obs, 0.0, False, False)] * 3, space)


class TestTime:
    def test_rows_follow_the_drawing(self):
        steps = run(EnvRows(Script(episode(1, 2))), 5)
        assert [s.obs["vector"].item() for s in steps] == [0, 1, 2, 0, 1]
        assert [s.reward.item() for s in steps] == [0, 1, 2, 0, 1]
        assert [s.is_first.item() for s in steps] == [True, False, False, True, False]
        assert [s.is_last.item() for s in steps] == [False, False, True, False, False]
        assert all(not s.action.any() for s in steps)

    @pytest.mark.parametrize(
        "terminated, truncated, terminal", [(True, False, True), (False, True, False), (True, True, True)]
    )
    def test_true_end_and_time_limit_are_kept_apart(self, terminated, truncated, terminal):
        last = run(EnvRows(Script(episode(1, last=(terminated, truncated)))), 2)[-1]
        assert last.is_last.item() and last.is_terminal.item() is terminal

    def test_action_after_the_last_row_never_reaches_the_environment(self):
        env = Script(episode(1, 2))
        rows = EnvRows(env)
        for index in (1, 0, 1, 1, 0):  # the 1st and 4th are ignored by a reset
            rows.step(one_hot(index))
        assert env.actions == [0, 1, 0]

    def test_only_the_first_reset_is_seeded(self):
        env = Script(episode(1))
        run(EnvRows(env, seed=7), 6)
        assert env.seeds == [7, None, None]

    def test_write_touches_its_own_row_and_no_action(self):
        rows = EnvRows(Script(episode(1, 2)))
        out = empty_step(rows.spec, 3)
        for array in (out.action, out.reward, out.obs["vector"]):
            array[:] = 5
        for number in range(3):
            for flags in (out.is_first, out.is_last, out.is_terminal):
                flags[:] = True
            rows.write(one_hot(0), out, 1)
            assert out.reward.tolist() == [5, number, 5] and out.obs["vector"].ravel().tolist() == [5, number, 5]
            assert out.is_first.tolist() == [True, number == 0, True]
            assert out.is_last.tolist() == [True, number == 2, True]
            assert out.is_terminal.tolist() == [True, False, True]
        assert (out.action == 5).all()

    def test_action_repeat_sums_rewards_and_shows_the_last_observation(self):
        steps = run(EnvRows(Script(episode(1, 2, 3, 4, 5)), action_repeat=2), 4)
        assert [s.reward.item() for s in steps] == [0, 3, 7, 5]  # the episode ends within the last repeat
        assert [s.obs["vector"].item() for s in steps] == [0, 2, 4, 5]
        assert steps[-1].is_last.item()

    def test_action_repeat_below_one_is_refused(self):
        with pytest.raises(UserError, match="action_repeat is 0"):
            EnvRows(Script(episode(1)), action_repeat=0)


class TestObservationSpaces:
    @pytest.mark.parametrize(
        "space, key, expected",
        [
            (spaces.Box(0, 255, (8, 6, 3), np.uint8), "image", Space((8, 6, 3), "uint8")),
            (spaces.Box(0, 255, (8, 6), np.uint8), "image", Space((8, 6, 1), "uint8")),
            (spaces.Box(-1, 1, (3,), np.float64), "vector", Space((3,), "float64")),
            (spaces.Box(-1, 1, (3, 2), np.float32), "vector", Space((3, 2), "float32")),
            (spaces.Box(-1, 1, (), np.float32), "vector", Space((1,), "float32")),
            (spaces.Box(0, 255, (128,), np.uint8), "vector", Space((128,), "uint8")),
            (spaces.Box(-5, 5, (2, 3, 4, 5), np.int16), "vector", Space((120,), "int16")),
            (spaces.Box(-np.inf, np.inf, (4, 4, 3)), "vector", Space((48,), "float32")),
            (spaces.Discrete(5, start=-2), "vector", Space((), "int64", 5)),
            (spaces.MultiDiscrete([3, 5]), "vector", Space((2,), "int64", 5)),
            (spaces.MultiBinary(4), "vector", Space((4,), "int8")),
        ],
    )
    def test_space_and_its_samples(self, space, key, expected):
        space.seed(0)
        env = obs_env(space, space.sample())
        assert dict(spec_of(env).obs) == {key: expected}
        row = EnvRows(env).step(one_hot(0)).obs[key]
        assert row.shape == (1, *expected.shape) and row.dtype == expected.dtype
        values = np.asarray(env.rows[0][0], np.float64).ravel() - (-2 if isinstance(space, spaces.Discrete) else 0)
        np.testing.assert_allclose(row.ravel(), values, rtol=1e-6)

    def test_dict_is_flattened_sorted_and_log_keys_dropped(self):
        space = spaces.Dict(
            {
                "z": spaces.Discrete(3),
                "arm": spaces.Dict({"pos": spaces.Box(-1, 1, (2,)), "cam": spaces.Box(0, 255, (4, 4, 3), np.uint8)}),
                "arm-2": spaces.Discrete(2),
                "log/depth": spaces.Text(5),
            }
        )
        arm = {"pos": np.ones(2, np.float32), "cam": np.full((4, 4, 3), 9, np.uint8)}
        obs = {"z": 2, "arm": arm, "arm-2": 1, "log/depth": "a"}
        row = EnvRows(obs_env(space, obs)).step(one_hot(0))
        assert list(row.obs) == ["arm-2", "arm/cam", "arm/pos", "z"]
        assert row.obs["z"].tolist() == [2] and (row.obs["arm/cam"] == 9).all() and (row.obs["arm/pos"] == 1).all()

    @pytest.mark.parametrize(
        "shape, expected",
        [
            ((3, 8, 6), (8, 6, 3)),
            ((4, 8, 6), (8, 6, 4)),
            ((7, 7, 3), (7, 7, 3)),
            ((5, 5, 8), (5, 5, 8)),
            ((2, 8, 6, 3), (8, 6, 6)),
            ((2, 3, 8, 6), (8, 6, 6)),
        ],
    )
    def test_channels_of_a_picture_come_last_and_stacks_are_joined(self, shape, expected):
        space = spaces.Box(0, 255, shape, np.uint8)
        space.seed(0)
        picture = space.sample()
        row = EnvRows(obs_env(space, picture)).step(one_hot(0)).obs["image"]
        assert row.shape == (1, *expected)
        assert sorted(row.ravel()) == sorted(picture.ravel())
        last = picture if shape[-1] == min(shape[-3:]) or shape[0] == 5 else np.moveaxis(picture, -3, -1)
        np.testing.assert_array_equal(row[0], last if last.ndim == 3 else np.concatenate(last, -1))

    @pytest.mark.parametrize(
        "space, bounds",
        [
            (spaces.Box(0, 1, (8, 8, 3), np.float32), (0, 1)),
            (spaces.Box(-1, 1, (8, 8, 3), np.float64), (-1, 1)),
            (spaces.Box(0, 10, (7, 7, 3), np.uint8), (0, 10)),
            (spaces.Box(0, 1, (8, 8, 3), bool), (0, 1)),
            (spaces.MultiBinary((8, 8, 3)), (0, 1)),
        ],
        ids=str,
    )
    def test_pictures_of_other_ranges_keep_their_bounds(self, space, bounds):
        shown = spec_of(obs_env(space, None)).obs["image"]
        assert shown.image and shown.bounds == bounds and shown.dtype == space.dtype.name

    def test_minus_infinity_marks_a_missing_value_and_a_class_of_minus_1_is_one_like_others(self):
        space = spaces.Dict({"a": spaces.Box(-np.inf, np.inf, (2,)), "b": spaces.Discrete(4, start=-1)})
        obs = {"a": np.array([0, -np.inf], np.float32), "b": -1}
        env = obs_env(space, obs)
        assert spec_of(env).obs["b"] == Space((), "int64", 4)
        row = EnvRows(env).step(one_hot(0)).obs
        assert row["a"].tolist() == [[0, -np.inf]] and row["b"].tolist() == [0]

    @pytest.mark.parametrize(
        "space, message",
        [
            (spaces.Tuple([spaces.Discrete(2), spaces.Text(3)]), "'1'.*Text.*supported are Box"),
            (spaces.Sequence(spaces.Discrete(2)), "'vector'.*Sequence.*supported are Box"),
            (spaces.Graph(spaces.Discrete(2), None), "'vector'.*Graph.*supported are Box"),
            (spaces.Dict({"a": spaces.OneOf([spaces.Discrete(2)])}), "'a'.*OneOf.*supported are Box"),
            (spaces.Dict({"action_mask": spaces.MultiBinary(3), "a": spaces.Discrete(2)}), "each of the 2 choices"),
            (spaces.Dict({"action_mask": spaces.MultiBinary(2)}), "no key for the agent"),
            (spaces.Dict({"a": spaces.Dict({"b": spaces.Text(3)})}), "'a/b'.*Text.*supported are Box"),
            (spaces.Dict({"reward": spaces.Discrete(2)}), "'reward' is reserved"),
            (spaces.Dict({"is_last": spaces.Discrete(2)}), "'is_last' is reserved"),
            (spaces.Dict({"log/a": spaces.Discrete(2)}), "no key for the agent.*'log/a': keys log/... are for logs"),
            (spaces.Box(0, 1, (0,)), r"no key for the agent \('vector': its shape \[0\] is empty\)"),
            (spaces.Dict({"a": spaces.Box(0, 1, (0, 8, 3))}), r"'a': its shape \[0, 8, 3\] is empty"),
            (spaces.Discrete(2**40), "'vector'.*1,099,511,627,776 classes.*at most 16,777,216"),
            (spaces.Dict({"a/b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(2)})}), "two.*'a/b'"),
        ],
    )
    def test_unsupported_space_is_named_with_its_key(self, space, message):
        with pytest.raises(UserError, match=message) as caught:
            spec_of(obs_env(space, None), "my-env")
        assert "'my-env'" in str(caught.value) and "\n" not in str(caught.value)


class TestActions:
    def test_one_hot_becomes_the_index_from_start(self):
        env = Script(episode(1, 2, 3), action_space=spaces.Discrete(3, start=4))
        assert spec_of(env).action == Action((3,))
        rows = EnvRows(env)
        for index in (0, 0, 2, 1):
            rows.step(one_hot(index, 3))
        assert env.actions == [4, 6, 5]


class TestMasks:
    def test_a_mask_in_info_becomes_an_observation(self):
        row = EnvRows(Masked([[1, 0], [0, 1]])).step(one_hot(0))
        assert row.obs["action_mask"].tolist() == [[1, 0]] and row.obs["vector"].tolist() == [[0]]

    def test_the_reset_that_finds_it_is_the_first_row(self):
        env = Masked([[1, 0], [0, 1], [1, 1]])
        rows = EnvRows(env, seed=7)
        assert [rows.step(one_hot(0)).obs["action_mask"].tolist() for _ in range(3)] == [[[1, 0]], [[0, 1]], [[1, 1]]]
        assert env.seeds == [7]

    def test_a_missing_mask_is_named(self):
        rows = EnvRows(Masked([[1, 0], None]), name="my-env")
        rows.step(one_hot(0))
        with pytest.raises(UserError, match="'my-env', episode 1, step 1: info has no 'action_mask'"):
            rows.step(one_hot(0))

    def test_a_mask_of_another_length_is_named(self):
        with pytest.raises(UserError, match=r"mask is \[3\], it must be \[2\]"):
            EnvRows(Masked([[1, 0, 1]])).step(one_hot(0))

    def test_environments_with_numbers_only_are_not_reset_to_look_for_one(self):
        env = Script(episode(1), action_space=spaces.Box(-1, 1, (2,)))
        EnvRows(env)
        assert env.seeds == []


class Masked(Script):
    """Returns `masks` in its info, one per step; None leaves the mask out."""

    def __init__(self, masks):
        super().__init__(episode(*range(1, len(masks) + 1)))
        self.masks = masks

    def info(self):
        mask = self.masks[self.time]
        return {} if mask is None else {"action_mask": np.array(mask, np.int8)}

    def reset(self, **options):
        return super().reset(**options)[0], self.info()

    def step(self, action):
        return (*super().step(action)[:4], self.info())


BOX = spaces.Box(-1, 1, (2,), np.float32)
PICTURE = spaces.Box(0, 255, (4, 4, 3), np.uint8)


class TestBrokenEnvironments:
    @pytest.mark.parametrize(
        "space, obs, message",
        [
            (BOX, np.array([0, np.nan], np.float32), r"'vector' at \[1\] is nan"),
            (BOX, np.array([np.inf, 0], np.float32), r"'vector' at \[0\] is inf"),
            (spaces.Box(-9, np.inf, (2,)), np.array([0, -np.inf], np.float32), r"at \[1\] is -inf"),
            (BOX, np.array([0, 1.01], np.float32), r"'vector' at \[1\] is 1.01, outside .* -1.0001 to 1.0001"),
            (BOX, np.zeros(3, np.float32), r"float32 \[3\], its space is float \[2\]"),
            (BOX, "abc", "'vector' is .*its space is float"),
            (PICTURE, np.zeros((4, 4, 3), np.float32), "float32 .*its space is uint8"),
            (PICTURE, np.full((4, 4, 3), 256, np.int64), "int64 .*its space is uint8"),
            (PICTURE, np.zeros((4, 3, 4), np.uint8), r"\[4, 3, 4\], its space"),
            (spaces.Discrete(3, start=1), 0, "'vector' is 0, outside its space's bounds 1 to 3"),
            (spaces.Discrete(3), 1.5, "its space is integer"),
            (spaces.MultiDiscrete([2, 5]), np.array([2, 0]), r"at \[0\] is 2, outside"),
            (spaces.MultiBinary(2), np.array([0, 2]), r"at \[1\] is 2, outside"),
            (spaces.Dict({"a": spaces.Discrete(2)}), {"b": 1}, "no key 'a'"),
        ],
    )
    def test_observation_that_breaks_its_space(self, space, obs, message):
        with pytest.raises(UserError, match=message) as caught:
            EnvRows(obs_env(space, obs), name="my-env").step(one_hot(0))
        assert "'my-env', episode 1, step 0" in str(caught.value)

    def test_rounding_at_the_bounds_is_forgiven(self):
        EnvRows(obs_env(BOX, np.array([1.00005, -1.00005]))).step(one_hot(0))

    @pytest.mark.parametrize(
        "reward, message",
        [
            (float("nan"), "reward is nan"),
            (np.float32("inf"), "reward is inf"),
            (1e39, "not a finite float32"),
            (None, "reward must be a number"),
            (np.zeros(1), "reward must be a number"),
        ],
    )
    def test_reward_that_is_not_a_finite_number(self, reward, message):
        rows = EnvRows(Script([(number(0), 0.0, False, False), (number(0), reward, False, False)]), name="my-env")
        with pytest.raises(UserError, match=message) as caught:
            run(rows, 2)
        assert "'my-env', episode 1, step 1" in str(caught.value)

    def test_message_counts_steps_of_the_environment_and_episodes(self):
        rows = EnvRows(Script(episode(1, 2, last=(True, False))))
        run(rows, 4)
        rows.env.rows[1] = (number(np.nan), 0.0, False, False)
        with pytest.raises(UserError, match="episode 2, step 1"):
            run(rows, 1)

    def test_flag_that_is_not_a_bool(self):
        with pytest.raises(UserError, match="truncated must be a bool, it is a dict"):
            run(EnvRows(Script([(number(0),), (number(0), 0.0, False, {})])), 2)

    def test_old_interface_is_named(self):
        rows = EnvRows(Script([(number(0),), (number(0), 0.0, False)]))
        with pytest.raises(UserError, match=r"step\(\) must return .*4 values \(the old gym interface\)"):
            run(rows, 2)
        rows.env.reset = lambda seed=None: number(0)
        with pytest.raises(UserError, match=r"reset\(\) must return \(obs, info\), it returned one array"):
            EnvRows(rows.env)
        rows = EnvRows(Script([(number(0),)], action_space=spaces.Box(-1, 1)))
        rows.env.reset = lambda seed=None: number(0)
        with pytest.raises(UserError, match=r"reset\(\) must return \(obs, info\), it returned one array"):
            run(rows, 1, np.zeros(1, np.float32))


class Unreadable:
    """Raises when it is converted to an array."""

    def __array__(self, *_, **__):
        raise RuntimeError("not today")


def answers():
    """Draws results of a step: most are plain, some end an episode, and some violate the space."""
    plain = st.floats(-10, 10, width=32).map(number)
    obs = st.one_of(plain, plain, plain, st.sampled_from([
        number(11.0), number(np.nan), np.zeros(2, np.float32), np.zeros((1, 1), np.float32), np.zeros((), np.float32),
        np.zeros(1), np.zeros(1, np.int64), [0.5], 0.5, None, {"x": number(0)}, Unreadable(),
    ]))  # fmt: skip
    rewards = st.one_of(
        st.floats(-5, 5), st.floats(-5, 5).map(np.float64), st.sampled_from([1, True, np.nan, np.inf, 1e39, "1", None])
    )
    flags = st.sampled_from([False, False, False, True, np.False_, np.True_, 1, np.array(True), "no"])
    broken = st.sampled_from([None, (), (number(0), 0.0, False, {}), [number(0), 0.0, False, False, {}]])
    return st.one_of(*[st.tuples(obs, rewards, flags, flags, st.just({}))] * 9, broken)


def crew(envs):
    """Makes EnvRows that have written their reset row."""
    made = [EnvRows(obs_env(spaces.Box(-10, 10, (1,), np.float32), number(0))) for _ in range(envs)]
    for rows in made:
        rows.step(one_hot(0))
    return made


@given(st.lists(answers(), min_size=1, max_size=4), st.booleans())
def test_rows_written_together_are_those_written_one_by_one(given_answers, everywhere):
    envs = len(given_answers)
    places = list(range(0 if everywhere else 1, envs + (not everywhere)))
    together, alone = crew(envs), crew(envs)
    outs = [empty_step(together[0].spec, envs if everywhere else envs + 2) for _ in range(2)]
    written = write_together(together, given_answers, outs[0], slice(None) if everywhere else places)
    try:
        for rows, answer, place in zip(alone, given_answers, places, strict=True):
            rows.accept(answer, outs[1], place)
    except (UserError, RuntimeError):
        assert not written
        return
    if written:
        mine, theirs = ((out.obs["vector"], *out[1:]) for out in outs)
        np.testing.assert_equal(mine, theirs)
        for rows, other in zip(together, alone, strict=True):  # whether the next row is a reset
            np.testing.assert_equal(rows.step(one_hot(0)), other.step(one_hot(0)))


def test_plain_answers_are_written_together():
    three = crew(3)
    ends = [(False, False), (True, False), (False, True)]
    given_answers = [(number(i), float(i), *flags, {}) for i, flags in enumerate(ends)]
    out = empty_step(three[0].spec, 3)
    assert write_together(three, given_answers, out, slice(None))
    assert out.obs["vector"].ravel().tolist() == out.reward.tolist() == [0, 1, 2]
    assert out.is_last.tolist() == [False, True, True] and out.is_terminal.tolist() == [False, True, False]


def test_rows_import_no_jax():
    code = "import sys, dreamer.runtime.workers; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_refused_state_returns_the_reason():
    rows = EnvRows(ENVS["both"](), seed=0)
    assert rows.set_state(rows.get_state()) == ""
    assert rows.set_state(b"none").startswith("it refused its saved state, UnpicklingError: ")
