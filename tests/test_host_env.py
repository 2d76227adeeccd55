"""Environments in JAX run on the host: the same spec, the same rows, exact states; and they are found by name."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_walks import TWO, VECTOR, measured, odd_leaves, of, one_hot, walk

from dreamer import plugins
from dreamer.errors import UserError
from dreamer.host_env import HostEnv, HostTeam, action_space, action_vector, as_gymnasium
from dreamer.interfaces import JaxEnv
from dreamer.runtime.env import state as env_states
from dreamer.runtime.env.actions import action_reader, random_actions
from dreamer.runtime.env.parallel import ParallelRows, any_spec
from dreamer.runtime.env.rows import EnvRows, empty_step
from dreamer.spaces import MASK, Action, Space, Spec
from envs import jax_probes

OBSERVATIONS = {
    "bits": Space((5,), "bool"),
    "class": Space((), "int32", 5),
    "classes": Space((4, 4), "uint8", 3),
    "counts": Space((4,), "int8"),
    "float_image": Space((9, 9, 3), "float32", bounds=(-1.0, 1.0)),
    "half": Space((2, 3), "float16"),
    "image": Space((8, 8, 3), "uint8"),
    "layers": Space((10, 10, 4), "bool", bounds=(0.0, 1.0)),
    "vector": Space((3,), "float32"),
}
ACTIONS = [TWO, Action((), 2), Action((3, 4)), Action((3, 4), 2), Action((7,), 1)]



@pytest.mark.parametrize(
    "space, text",
    [
        (Space((2, 8, 8), "uint8"), "looks as if its channels came first"),
        (Space((4, 4, 4), "float32"), "has the shape [4, 4, 4]; flatten it, or make it an image"),
        (Space((3,), "float64"), "has the dtype float64; choices: bool"),
        (Space((3,), "float32", bounds=(0.0, 1.0)), "has bounds but is not an image"),
        (Space((3,), "float32", 4), "has classes of dtype float32"),
    ],
)
def test_a_space_that_the_host_would_read_as_another_is_refused(space, text):
    with pytest.raises(UserError) as error:
        HostEnv(of(VECTOR)._replace(spec=Spec({"it": space}, TWO)), "mine")
    assert "env 'mine': the space of observation key 'it' " in str(error.value) and text in str(error.value)


@pytest.mark.parametrize("agents", [1, 2])
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.text)
def test_the_host_reads_the_same_spec(action, agents):
    mask = {MASK: Space((7,), "int8", 2)} if action.onehots == 7 else {}
    env = of({**OBSERVATIONS, **mask}, action, agents)
    assert any_spec(as_gymnasium(env)) == env.spec


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.text)
def test_a_native_action_becomes_the_vector_it_came_from(action):
    env = gymnasium.Env()
    env.action_space = action_space(action)
    for vector in random_actions(action, np.random.default_rng(1), 5):
        np.testing.assert_array_equal(action_vector(action, action_reader(env).to_env(vector)), vector)


def test_rows_of_the_host_are_those_of_the_functions():
    env, host = walk(end=2), EnvRows(as_gymnasium(walk(end=2)), seed=5)
    key, own = jax.random.split(jax.random.key(5))
    state, row = env.reset(own)
    for _ in range(3):
        got = host.step(one_hot(1))  # the first call resets
        for field in ("reward", "is_first", "is_last", "is_terminal"):
            np.testing.assert_array_equal(getattr(got, field)[0], getattr(row, field))
        np.testing.assert_array_equal(got.obs["vector"][0], row.obs["vector"])
        key, own = jax.random.split(key)
        state, row = env.step(own, state, one_hot(1))


@pytest.mark.parametrize("task", ["both", "delayed", "pixel"])
def test_an_environment_continues_from_its_state_exactly(task):
    env, other = (as_gymnasium(jax_probes.make(task)) for _ in range(2))
    env.reset(seed=1), other.reset(seed=2)
    env.step(1)
    state = env_states.get_state(env)
    assert isinstance(state, bytes) and not env_states.pickled(state)
    env_states.set_state(other, state)
    for action in [0, 1, 0]:
        one, two = env.step(action), other.step(action)
        assert one[1:4] == two[1:4]
        jax.tree.map(np.testing.assert_array_equal, one[0], two[0])
    jax.tree.map(np.testing.assert_array_equal, env.reset()[0], other.reset()[0])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_state_holds_keys_and_short_floats(impl):
    made = odd_leaves(impl)
    env, other = as_gymnasium(made), as_gymnasium(made)
    env.reset(seed=0), other.reset(seed=1)
    env.step(0)
    state = env_states.get_state(env)
    assert isinstance(state, bytes) and not env_states.pickled(state)
    env_states.set_state(other, state)
    assert env.step(0)[0]["vector"].tolist() == other.step(0)[0]["vector"].tolist() != [0.0]


def test_own_metrics_are_in_the_info_of_the_last_row_of_an_episode():
    env, steps, over = as_gymnasium(measured()), 0, False
    env.reset(seed=0)
    while not over:
        *_, over, _, info = env.step(0)
        steps += 1
        assert info == ({"steps": steps, "more/one": 1.0} if over else {})


def test_the_state_of_another_environment_is_refused():
    env, other = as_gymnasium(jax_probes.make("both")), as_gymnasium(walk())
    env.reset(seed=0), other.reset(seed=0)
    with pytest.raises(ValueError):
        other.set_state(env.get_state())


def test_a_seed_decides_what_follows_and_a_reset_without_one_goes_on():
    env, other = (as_gymnasium(walk()) for _ in range(2))
    starts = [[env.reset(seed=seed)[0]["vector"][0] for env, seed in ((env, 7), (other, 7))]]
    starts += [[env.reset()[0]["vector"][0] for env in (env, other)]]
    assert starts[0][0] == starts[0][1] != starts[1][0] == starts[1][1]


def test_an_environment_that_can_draw_is_drawn_when_asked_only():
    env = walk()._replace(render=lambda state: jnp.full((4, 4, 3), 7, jnp.uint8))
    drawn, plain, blind = as_gymnasium(env, "", "rgb_array"), as_gymnasium(env), as_gymnasium(walk(), "", "rgb_array")
    drawn.reset(seed=0)
    assert drawn.render().shape == (4, 4, 3) and drawn.render().dtype == np.uint8
    assert plain.render_mode is None and blind.render_mode is None


def test_several_agents_are_a_parallel_environment():
    team = as_gymnasium(walk(end=2, agents=3), "mine")
    assert isinstance(team, HostTeam)
    rows, out = ParallelRows(team, seed=0), empty_step(walk(agents=3).spec, 3)
    lasts = []
    for _ in range(4):
        out.action[:] = one_hot(1)
        rows.turn(out, 0)
        lasts.append(out.is_last.tolist())
    assert out.obs["agent"].tolist() == [0, 1, 2]
    assert lasts == [[False] * 3, [False] * 3, [True] * 3, [False] * 3]


def test_a_team_continues_from_its_state():
    teams = [ParallelRows(as_gymnasium(walk(end=4, agents=2)), seed=seed) for seed in (0, 1)]
    outs = [empty_step(teams[0].spec, 2) for _ in teams]
    for team, out in zip(teams, outs, strict=True):
        team.turn(out, 0), team.turn(out, 0)
    assert teams[1].set_state(teams[0].get_state()) == ""
    for team, out in zip(teams, outs, strict=True):
        team.turn(out, 0)
    np.testing.assert_array_equal(outs[0].obs["vector"], outs[1].obs["vector"])


def make(size: int = 2) -> JaxEnv:
    return walk(size)


def unannotated():
    return walk()


def never_called() -> gymnasium.Env:
    raise AssertionError("a factory that makes no JaxEnv was called")


def test_a_factory_that_is_annotated_makes_a_jax_env():
    assert isinstance(plugins.make_jax_env(f"{__name__}:make", {"size": 3}), JaxEnv)
    assert isinstance(plugins.make_jax_env("jax_probes:both"), JaxEnv)
    assert isinstance(plugins.make_jax_env(plugins.Maker("mine", lambda: walk())), type(None))


@pytest.mark.parametrize("name", ["CartPole-v1", "probes:both", f"{__name__}:never_called"])
def test_any_other_environment_makes_none_and_its_factory_is_not_called(name):
    assert plugins.make_jax_env(name) is None


@pytest.mark.parametrize("name", [f"{__name__}:make", f"{__name__}:unannotated", "jax_probes:both"])
def test_an_environment_in_jax_is_made_for_the_host(name):
    assert isinstance(plugins.make_env(name), HostEnv)


def claims() -> JaxEnv:
    return 3


def test_a_factory_that_promises_a_jax_env_and_makes_another_thing_is_refused():
    with pytest.raises(UserError, match="annotated as a JaxEnv, but its factory made a int"):
        plugins.make_jax_env(f"{__name__}:claims")


def test_environments_with_the_same_name_and_options_share_their_functions():
    one, two, other = (plugins.make_jax_env(f"{__name__}:make", {"size": size}) for size in (2, 2, 3))
    assert one is two and one is not other


def test_an_environment_compiled_ahead_begins_as_any_other():
    env, other = as_gymnasium(walk()), as_gymnasium(walk())
    env.compile_ahead()
    assert env.reset(seed=4)[0]["vector"].tolist() == other.reset(seed=4)[0]["vector"].tolist()


def test_the_environment_of_the_documentation_is_sound():
    rows = EnvRows(plugins.make_env("docs.own_jax_env:make", {"steps": 3}), seed=0)
    lasts = [bool(rows.step(np.zeros(2, np.float32)).is_last[0]) for _ in range(4)]
    assert lasts == [False, False, False, True]


def test_a_wrong_task_and_a_wrong_option_are_named():
    with pytest.raises(UserError, match="jax_probes has no task 'bot'; did you mean 'both'"):
        plugins.make_jax_env("jax_probes:bot")
    with pytest.raises(UserError, match="takes no option 'stps'; did you mean 'steps'"):
        plugins.make_jax_env("jax_probes:both", {"stps": 3})
