"""Environments in JAX: made from functions, wrapped, and checked before their first step."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from jax_walks import KEY, TWO, VECTOR, broken, one_hot, walk

from dreamer.errors import UserError
from dreamer.host_env import as_gymnasium
from dreamer.interfaces import JaxEnv
from dreamer.jax_envs import between, check, make_jax_env, plain_action, repeat, scale_reward, time_limit, uses_key
from dreamer.runtime.env.actions import action_reader, random_actions
from dreamer.runtime.env.rows import EnvRows
from dreamer.spaces import Action, Space, Spec


def played(env: JaxEnv, actions, key=KEY):
    """The rows of a reset with `key` and of `actions`, each step with the same key."""
    step = jax.jit(env.step)
    state, row = env.reset(key)
    rows = [row]
    for action in actions:
        state, row = step(key, state, action)
        rows.append(row)
    return rows


# --- made from functions


def test_a_first_row_is_first_only_and_a_later_one_is_not():
    first, later = played(walk(), [one_hot(1)])
    assert (bool(first.is_first), bool(first.is_last), float(first.reward)) == (True, False, 0.0)
    assert (bool(later.is_first), bool(later.is_last)) == (False, False) and float(later.reward) >= 1.0


def test_observations_take_dtype_and_shape_of_their_space():
    spec = Spec({"image": Space((4, 4, 1), "bool", bounds=(0.0, 1.0)), "number": Space((1,), "float32")}, TWO)
    env = make_jax_env(
        spec, lambda key: ((), {"image": jnp.ones((4, 4), bool), "number": jnp.int32(3)}), lambda *args: None
    )
    row = env.reset(KEY)[1]
    assert {key: (x.dtype.name, x.shape) for key, x in row.obs.items()} == {
        "image": ("bool", (4, 4, 1)), "number": ("float32", (1,)),
    }  # fmt: skip


def test_keys_of_nested_observations_are_joined():
    spec = Spec({"a/b": Space((2,), "float32")}, TWO)
    row = make_jax_env(spec, lambda key: ((), {"a": {"b": jnp.ones(2)}}), lambda *args: None).reset(KEY)[1]
    assert set(row.obs) == {"a/b"}


@pytest.mark.parametrize(
    "space, given, text",
    [
        (Space((8, 8, 3), "uint8"), np.zeros((8, 8, 3), np.float32), "is float32 [8, 8, 3], its space is uint8"),
        (Space((), "int32", 4), np.zeros((), np.float32), "is float32 [], its space is int32 []"),
        (Space((3,), "float32"), np.zeros(2, np.float32), "is float32 [2], its space is float32 [3]"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(space, given, text):
    env = make_jax_env(Spec({"it": space}, TWO), lambda key: ((), given), lambda *args: None)
    with pytest.raises(UserError) as error:
        check(env, "mine")
    assert "env 'mine': observation key 'it'" in str(error.value) and text in str(error.value)


@pytest.mark.parametrize(
    "action, native",
    [
        (Action((3,)), spaces.Discrete(3)),
        (Action((3, 4)), spaces.MultiDiscrete([3, 4])),
        (Action((), 2), spaces.Box(-1.0, 1.0, (2,))),
    ],
)
def test_a_plain_action_is_that_of_the_host(action, native):
    env = gymnasium.Env()
    env.action_space = native
    for vector in random_actions(action, np.random.default_rng(0), 8) * 1.5:
        np.testing.assert_array_equal(plain_action(action, jnp.asarray(vector)), action_reader(env).to_env(vector))


def test_a_mixed_action_is_a_pair():
    chosen, numbers = plain_action(Action((3, 2), 1), jnp.asarray([0.0, 0, 1, 1, 0, 2.0]))
    assert chosen.tolist() == [2, 0] and numbers.tolist() == [1.0]


def test_numbers_are_stretched_to_bounds_as_on_the_host():
    env = gymnasium.Env()
    env.action_space = spaces.Box(np.float32([-2, 0, -np.inf, 1]), np.float32([2, 0.3, np.inf, np.inf]))
    own, native = between(env.action_space.low, env.action_space.high), action_reader(env)
    for vector in np.random.default_rng(0).uniform(-1.5, 1.5, (20, 4)).astype(np.float32):
        np.testing.assert_allclose(own(jnp.asarray(vector)), native.to_env(vector), rtol=1e-6, atol=1e-7)


def test_rows_of_several_agents_have_an_axis_for_them_and_their_index():
    _, row = played(walk(agents=3), [np.stack([one_hot(1)] * 3)])
    assert row.obs["agent"].tolist() == [0, 1, 2] and row.obs["vector"].shape == (3, 2)
    assert row.reward.shape == row.is_last.shape == (3,) and row.action.shape == (3, 2)


# --- wrappers


def test_a_time_limit_ends_an_episode_that_is_not_terminal():
    rows = played(time_limit(walk(), 2), [one_hot(0)] * 2)
    assert [bool(row.is_last) for row in rows] == [False, False, True] and not bool(rows[-1].is_terminal)


def test_a_true_end_at_the_time_limit_is_terminal():
    last = played(time_limit(walk(end=2), 2), [one_hot(1)] * 2)[-1]
    assert bool(last.is_last) and bool(last.is_terminal)


@pytest.mark.parametrize("times", [1, 2, 3, 8])
def test_repeated_steps_are_those_of_the_hosts_action_repeat(times):
    ours = EnvRows(as_gymnasium(repeat(walk(), times)), seed=3)
    host = EnvRows(as_gymnasium(walk()), seed=3, action_repeat=times)
    for action in [1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1]:
        a, b = ours.step(one_hot(action)), host.step(one_hot(action))
        if a.is_first[0]:  # the keys are drawn in another order, so the starts of later episodes differ
            continue
        np.testing.assert_array_equal((a.is_last, a.is_terminal), (b.is_last, b.is_terminal))
        if ours._episode == 1:
            np.testing.assert_allclose((a.reward, a.obs["vector"][:, 0]), (b.reward, b.obs["vector"][:, 0]), rtol=1e-6)


def test_a_scaled_reward_is_multiplied():
    plain, scaled = (played(env, [one_hot(1)])[1] for env in (walk(), scale_reward(walk(), 0.5)))
    assert float(scaled.reward) == 0.5 * float(plain.reward) and scaled.reward.dtype == jnp.float32


def test_wrappers_run_under_vmap_and_scan():
    env = scale_reward(repeat(time_limit(walk(), 6), 2), 2.0)
    states, _ = jax.vmap(env.reset)(jax.random.split(KEY, 4))
    action = jnp.tile(one_hot(1), (4, 1))
    step = jax.vmap(env.step, in_axes=(None, 0, 0))
    _, rows = jax.lax.scan(lambda states, key: step(key, states, action), states, jax.random.split(KEY, 3))
    assert rows.is_last.shape == (3, 4) and rows.is_terminal[-1].all()


@pytest.mark.parametrize("wrap, text", [(time_limit, "the time limit is 0 steps"), (repeat, "action_repeat is 0")])
def test_a_wrapper_refuses_zero(wrap, text):
    with pytest.raises(UserError, match=text):
        wrap(walk(), 0)


# --- bad input


@pytest.mark.parametrize(
    "env, text",
    [
        (broken(obs={"vector": np.zeros(2)}), "key 'vector' is float64 [2], it must be float32 [2]"),
        (broken(obs={"vector": jnp.zeros(3)}), "key 'vector' is float32 [3], it must be float32 [2]"),
        (broken(obs={"vectors": jnp.zeros(2)}), "row of step has the observations ['vectors'], the spec ['vector']"),
        (broken(reward=1.0), "the row of step: reward is a Python float, it must be float32 []"),
        (broken(is_last=False), "is_last is a Python bool, it must be bool []"),
        (broken(reward=jnp.zeros((), jnp.int32)), "reward is int32 [], it must be float32 []"),
        (broken()._replace(step=lambda key, state, action: broken().step(key, state[:2], action)),
         "the env_state must keep its form, but env_state is float32 [3] after reset and float32 [2] after step"),
        (broken()._replace(step=lambda key, state, action: broken().step(key, (state, state), action)),
         "the env_state of reset and of step differ: only one has env_state"),
        (broken()._replace(reset=lambda key: broken().reset(key)[1]), "reset must return (env_state, row)"),
        (broken()._replace(step=lambda key, state, action: 1 if action[0] > 0 else 2), "step cannot be traced by JAX"),
        (broken()._replace(step=lambda key, state, action: np.array(action)), "step cannot be traced by JAX"),
    ],
)  # fmt: skip
def test_a_faulty_environment_is_refused_in_one_line(env, text):
    with pytest.raises(UserError) as error:
        check(env, "mine")
    assert str(error.value).startswith("env 'mine'") and text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "env, text",
    [
        (broken()._replace(step=None), "step is a NoneType, not a function"),
        (broken()._replace(spec=None), "its spec is a NoneType, not a Spec"),
        (broken()._replace(spec=Spec({}, TWO)), "the obs of its spec must be a mapping with at least one key"),
        (broken()._replace(spec=Spec({"vector": (2,)}, TWO)), "observation key 'vector' of its spec is a tuple"),
        (broken()._replace(spec=Spec(VECTOR, Action())), "the action of its spec must be an Action of at least one"),
        (broken()._replace(spec=Spec(VECTOR, TWO, 0)), "agents of its spec must be 1 or more, not 0"),
        (broken()._replace(metrics=3), "metrics is a int, not a function"),
        (broken()._replace(metrics=lambda state: state[0]), "metrics must return {name: number}, it returned a"),
        (broken()._replace(metrics=lambda state: {"a b": state[0]}), "the metric 'a b' must be named with letters"),
        (broken()._replace(metrics=lambda state: {"all": state}), "the metric 'all' must be one number"),
    ],
)  # fmt: skip
def test_a_field_that_is_not_what_it_must_be_is_named(env, text):
    with pytest.raises(UserError) as error:
        check(env, "mine")
    assert str(error.value).startswith(f"env 'mine': {text}")


def test_an_untraceable_step_is_named_with_its_place():
    with pytest.raises(UserError, match=r"TracerBoolConversionError: .*test_jax_envs.py, line \d+"):
        check(broken()._replace(step=lambda key, state, action: 1 if action[0] > 0 else 2), "mine")


def test_a_reset_that_ignores_its_key_is_found():
    assert uses_key(walk()) and not uses_key(broken())


def test_an_environment_that_resets_itself_is_refused_while_it_runs():
    env = as_gymnasium(broken(is_first=jnp.ones((), bool)), "mine")
    env.reset(seed=0)
    with pytest.raises(UserError, match="env 'mine' resets itself inside step"):
        env.step(0)
