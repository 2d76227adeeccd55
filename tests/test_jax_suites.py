"""The suites of environments in JAX with the packages that they wrap, if installed.

`python -m pytest tests/test_jax_suites.py -m "slow or not slow"` in an environment with the extra `jaxenvs` runs all.
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import plugins
from dreamer.errors import UserError
from dreamer.host_env import as_gymnasium
from dreamer.interfaces import JaxEnv
from dreamer.runtime.env import state as env_states
from dreamer.runtime.env.actions import random_actions
from dreamer.runtime.env.parallel import ParallelRows, any_spec
from dreamer.runtime.env.rows import EnvRows, empty_step
from dreamer.spaces import MASK

ROOT = pathlib.Path(__file__).parent.parent
COPIES, STEPS = 4, 60


class Task(NamedTuple):
    """A task to test: its package, its options, how an episode under random actions may end, a misspelt name."""

    env: str
    package: str
    options: dict[str, Any] = {}
    ends: tuple[str, ...] = ()
    wrong: tuple[str, str] = ("", "")


TASKS = [
    Task("gymnax:CartPole-v1", "gymnax", {}, ("terminated",), ("CartPol-v1", "did you mean 'CartPole-v1'")),
    Task("gymnax:Pendulum-v1", "gymnax", {"max_steps_in_episode": 20}, ("truncated",)),
    Task("gymnax:Breakout-MinAtar", "gymnax", {}, ("terminated",)),
    Task("navix:Empty-5x5", "navix", {"max_steps": 30}, ("truncated",), ("Empti-5x5", "mean 'Navix-Empty-5x5-v0'")),
    Task("navix:Navix-DoorKey-5x5-v0", "navix", {"view": "ahead", "max_steps": 20}, ("truncated",)),
    Task("navix:Dynamic-Obstacles-5x5", "navix", {"view": "picture"}, ("terminated",)),
    Task("craftax:Classic-Symbolic", "craftax", {"max_timesteps": 20}, ("truncated",),
         ("Classic-Symbols", "did you mean 'Classic-Symbolic'")),
    Task("craftax:Craftax-Classic-Pixels-v1", "craftax", {"max_timesteps": 20}, ("truncated",)),
    Task("brax:inverted_pendulum", "brax", {}, ("terminated",), ("inverted_pendulm", "mean 'inverted_pendulum'")),
    Task("brax:reacher", "brax", {"steps": 20}, ("truncated",)),
    Task("playground:CartpoleBalance", "mujoco_playground", {"episode_length": 20}, ("truncated",),
         ("CartpoleBallance", "did you mean 'CartpoleBalance'")),
    Task("jumanji:Snake", "jumanji", {}, (), ("Snak", "did you mean 'Snake'")),
    Task("jumanji:Minesweeper", "jumanji", {}, ("terminated",)),
    Task("jumanji:LevelBasedForaging", "jumanji", {"time_limit": 20}, ("truncated",)),
    Task("pgx:minatar-breakout", "pgx", {}, ("terminated",), ("minatar-brekout", "did you mean 'minatar-breakout'")),
    Task("pgx:2048", "pgx", {"steps": 20}, ("truncated",)),
    Task("jaxmarl:MPE_simple_spread", "jaxmarl", {}, ("truncated",), ("MPE_simple_spred", "mean 'MPE_simple_spread'")),
    Task("jaxmarl:HeuristicEnemySMAX", "jaxmarl", {}, ("terminated",)),
]  # fmt: skip
# Seconds of compiling; the others stay in the gate.
SLOW = ("brax:reacher", "craftax:Craftax-Classic-Pixels-v1", "jaxmarl:HeuristicEnemySMAX")


def of(tasks: list[Task]) -> Any:
    """Parametrizes a test over tasks; those that compile for long are marked slow."""
    rows = [pytest.param(one, marks=pytest.mark.slow if one.env in SLOW else (), id=one.env) for one in tasks]
    return pytest.mark.parametrize("task", rows)


every_task = of(TASKS)
pytestmark = [pytest.mark.filterwarnings("ignore")]  # of the packages themselves


@pytest.fixture(autouse=True)
def lenient():
    """The packages broadcast arrays of different rank, which the tests of dreamer itself forbid."""
    with jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def made(name: str) -> JaxEnv:
    """Makes the environment once for all tests."""
    task = next(task for task in TASKS if task.env == name)
    env = plugins.make_jax_env(task.env, task.options)
    assert env is not None
    return env


def make(task: Task) -> JaxEnv:
    """Makes the environment, or skips the test if the package is missing."""
    if importlib.util.find_spec(task.package) is None:
        pytest.skip(f"{task.package} is not installed")
    return made(task.env)


def chosen(env: JaxEnv, key: jax.Array, obs: dict[str, jax.Array]) -> jax.Array:
    """A random action [A] or [agents, A] that obeys the action mask."""
    lead, action = ((env.spec.agents,) if env.spec.agents > 1 else ()), env.spec.action
    allowed = obs[MASK] > 0 if env.spec.masked else jnp.ones((*lead, action.onehots), bool)
    parts, first = [jax.random.uniform(key, (*lead, action.continuous), minval=-1.0, maxval=1.0)], action.onehots
    for size in reversed(action.classes):
        first -= size
        logits = jnp.where(allowed[..., first : first + size], 0.0, -jnp.inf)
        parts.append(jax.nn.one_hot(jax.random.categorical(jax.random.fold_in(key, first), logits), size))
    return jnp.concatenate(parts[::-1], -1)


@functools.cache
def played(name: str) -> dict[str, Any]:
    """Plays COPIES environments for STEPS steps with random actions: vmap of a scan, which resets on the next row."""
    env = made(name)

    def turn(carry, key):
        state, row = carry
        keys = jax.random.split(key)
        fresh, after = env.reset(keys[0]), env.step(keys[1], state, chosen(env, keys[1], row.obs))
        over = jnp.any(row.is_last)
        carry = jax.tree.map(lambda new, old: jnp.where(over, new, old), fresh, after)
        return carry, carry[1]

    def play(key):
        first = env.reset(key)
        _, rows = jax.lax.scan(turn, first, jax.random.split(key, STEPS))
        return jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first[1], rows)

    rows = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), COPIES))
    return jax.tree.map(np.asarray, rows._asdict())


@every_task
def test_rows_under_vmap_and_scan_fit_the_spec(task):
    env, rows = make(task), played(task.env)
    lead = (COPIES, STEPS + 1, *((env.spec.agents,) if env.spec.agents > 1 else ()))
    for key, space in env.spec.obs.items():
        array = rows["obs"][key]
        assert array.shape == (*lead, *space.shape) and array.dtype == space.dtype
        assert np.isfinite(array.astype(np.float64)).all()
        if space.discrete:
            assert 0 <= array.min() and array.max() < space.classes
        elif space.image:
            assert space.ends[0] <= array.min() and array.max() <= space.ends[1]
    assert rows["reward"].dtype == np.float32 and np.isfinite(rows["reward"]).all()


@every_task
def test_an_episode_ends_as_the_task_says(task):
    make(task)
    rows = played(task.env)
    found = [name for name, ends in (("terminated", rows["is_terminal"]),
                                     ("truncated", rows["is_last"] & ~rows["is_terminal"])) if ends.any()]  # fmt: skip
    assert set(task.ends) <= set(found)
    assert not (rows["is_terminal"] & ~rows["is_last"]).any()
    if task.ends == ("truncated",):
        assert not rows["is_terminal"].any()


@every_task
def test_the_last_observation_is_not_that_of_a_reset(task):
    env = make(task)
    rows = played(task.env)
    last = rows["is_last"] if rows["is_last"].ndim == 2 else rows["is_last"].any(-1)
    copy, step = np.argwhere(last[:, :-1])[0] if last[:, :-1].any() else (0, 0)
    if not step:
        pytest.skip("no episode ends in so few steps")
    reward_row = jax.tree.map(lambda x: x[copy, step], rows)
    after = jax.tree.map(lambda x: x[copy, step + 1], rows)
    assert after["is_first"].all() and not reward_row["is_first"].any()
    differ = [k for k in env.spec.obs if not np.array_equal(reward_row["obs"][k], after["obs"][k])]
    assert differ, "the last observation is the first one of the next episode"


@every_task
def test_the_host_reads_the_same_spec_and_accepts_the_rows(task):
    env = make(task)
    host = as_gymnasium(env, task.env)
    assert any_spec(host, task.env) == env.spec
    rows = (ParallelRows if env.spec.agents > 1 else EnvRows)(host, name=task.env, seed=0)
    out, rng = empty_step(env.spec, env.spec.agents), np.random.default_rng(0)
    for _ in range(5):
        allowed = out.obs[MASK] if env.spec.masked and out.obs[MASK].any() else [None] * env.spec.agents
        out.action[:] = np.concatenate([random_actions(env.spec.action, rng, 1, mask) for mask in allowed])
        rows.turn(out, 0)
    assert isinstance(rows.get_state(), bytes)


@of([task for task in TASKS if task.env in ("gymnax:CartPole-v1", "navix:Dynamic-Obstacles-5x5", "jumanji:Snake",
                                             "pgx:minatar-breakout", "brax:inverted_pendulum")])  # fmt: skip
def test_an_environment_continues_from_its_state_exactly(task):
    env, other = (as_gymnasium(make(task), task.env) for _ in range(2))
    env.reset(seed=1), other.reset(seed=2)
    env_states.set_state(other, env_states.get_state(env))
    for seed in range(3):
        env.action_space.seed(seed)
        action = env.action_space.sample()
        one, two = env.step(action), other.step(action)
        jax.tree.map(np.testing.assert_array_equal, one[0], two[0])
        assert one[1:4] == two[1:4]


@of([task for task in TASKS if task.package in ("gymnax", "navix", "craftax", "pgx")])
def test_a_picture_is_uint8_with_three_colors(task):
    env = make(task)
    if env.render is None:
        pytest.skip("it draws no pictures")
    image = jax.jit(env.render)(env.reset(jax.random.key(0))[0])
    assert image.dtype == jnp.uint8 and image.ndim == 3 and image.shape[2] == 3 and int(image.max()) > 0


@of([task for task in TASKS if task.wrong[0]])
def test_a_misspelt_task_gets_the_nearest_name(task):
    make(task)
    with pytest.raises(UserError) as error:
        plugins.make_jax_env(f"{task.env.partition(':')[0]}:{task.wrong[0]}")
    assert task.wrong[1] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "env, package, options, text",
    [
        ("gymnax:CartPole-v1", "gymnax", {"lenth": 3.0}, "takes no option 'lenth'"),
        ("navix:Empty-5x5", "navix", {"view": "symbol"}, "view is 'symbol'; choices: 'symbols'"),
        ("pgx:chess", "pgx", {}, "is a game of 2 players"),
        ("jaxmarl:MPE_simple_tag", "jaxmarl", {}, "all agents share one policy"),
        ("jaxmarl:coin_game", "jaxmarl", {}, "it resets itself inside step"),
        ("brax:ant", "brax", {"backnd": "mjx"}, "backnd"),
        ("playground:CartpoleBalance", "mujoco_playground", {"episode_lenth": 3}, "episode_lenth"),
    ],
)
def test_what_cannot_be_made_is_refused_with_one_line(env, package, options, text):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    with pytest.raises(UserError) as error:
        plugins.make_jax_env(env, options)
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("suite", ["gymnax", "navix", "craftax", "brax", "jumanji", "pgx", "jaxmarl"])
def test_a_suite_finds_its_package_and_not_itself(suite):
    if importlib.util.find_spec(suite) is None:
        pytest.skip(f"{suite} is not installed")
    program = (
        f"import sys; sys.path.insert(0, ''); sys.path.insert(0, {str(ROOT / 'envs')!r})\n"
        "from dreamer.suites._jax_suite import importing\n"
        f"with importing({suite!r}):\n    import {suite}\n"
        f"assert 'site-packages' in {suite}.__file__, {suite}.__file__\n"
    )
    run = subprocess.run([sys.executable, "-P", "-c", program], cwd=ROOT / "envs", capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(UserError, match=r"gymnax.*jaxenvs"):
        plugins.make_jax_env("gymnax:Acrobot-v1")
