"""The probes behave as described, so that a failing probe shows a fault of the agent and not of the probe."""

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dreamer.runtime.env.rows import EnvRows
from envs.probes import ENVS, PROBES, make

names = pytest.mark.parametrize("name", PROBES)


def returns(name, episodes, policy):
    env = make(name)
    env.reset(seed=0)
    env.action_space.seed(0)
    totals = []
    for _ in range(episodes):
        env.reset()
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(policy(env))
            total, over = total + reward, terminated or truncated
        totals.append(total)
    return np.array(totals)


@names
def test_best_policy_reaches_the_best_return(name):
    got = returns(name, 2000 if name == "observation" else 20, lambda env: env.best())
    if PROBES[name].best_return == PROBES[name].random_return:
        assert abs(got.mean() - PROBES[name].best_return) < 0.1
    else:
        np.testing.assert_allclose(got, PROBES[name].best_return)


@names
def test_random_policy_gets_the_random_return(name):
    got = returns(name, 600 if name == "pixel" else 2000, lambda env: env.action_space.sample())
    assert abs(got.mean() - PROBES[name].random_return) < 5 * got.std() / len(got) ** 0.5 + 1e-9


@names
def test_solved_lies_well_above_random(name):
    probe = PROBES[name]
    assert probe.random_return <= probe.solved_return <= probe.best_return
    if probe.best_return > probe.random_return:
        assert probe.solved_return - probe.random_return > 0.75 * (probe.best_return - probe.random_return)


@names
def test_gymnasium_accepts_the_probe(name):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*recommend using a symmetric and normalized space.*")
        check_env(make(name), skip_render_check=True)


@names
def test_same_seed_same_episodes(name):
    def play():
        rows = EnvRows(make(name), seed=5)
        rng = np.random.default_rng(0)
        return [rows.step(rng.uniform(-1, 1, rows.spec.action_width).astype(np.float32)) for _ in range(30)]

    for a, b in zip(play(), play(), strict=True):
        np.testing.assert_equal(a._asdict(), b._asdict())


@names
def test_every_probe_names_the_broken_part_and_terminates(name):
    assert PROBES[name].broken and PROBES[name].description and "fails here" in ENVS[name].__doc__
    env = make(name)
    env.reset(seed=0)
    ends = [env.step(env.best())[2:4] for _ in range(env.steps)]
    assert ends == [(False, False)] * (env.steps - 1) + [(True, False)]


def test_every_probe_is_listed():
    assert list(PROBES) == list(ENVS)


def test_counter_shows_nothing_but_the_previous_action():
    rows = EnvRows(make("counter"), seed=0)
    assert not rows.step(np.zeros(4, np.float32)).obs["vector"].any()
    for action in (2, 0, 3):
        row = rows.step(np.eye(4, dtype=np.float32)[action])
        assert row.reward.item() == action and not row.obs["vector"].any()


def test_observation_probe_shows_the_reward_it_gives():
    rows = EnvRows(make("observation"), seed=0)
    seen = set()
    for _ in range(20):
        first, last = rows.step(np.zeros(2, np.float32)), rows.step(np.zeros(2, np.float32))
        assert last.reward.item() == first.obs["vector"].item() == last.obs["vector"].item()
        seen.add(last.reward.item())
    assert seen == {-1, 1}


def test_delayed_probe_hides_the_cue_after_the_first_row():
    env = make("delayed")
    first, _ = env.reset(seed=0)
    assert abs(first.item()) == 1
    later = [env.step(env.best() if i == 0 else 0) for i in range(4)]
    assert [row[0].item() for row in later] == [0, 0, 0, 0]
    assert [row[1] for row in later] == [0, 0, 0, 1]


def test_pixel_probe_is_a_tiny_picture_of_two_faces():
    env = make("pixel")
    faces = {env.reset(seed=seed)[0].tobytes() for seed in range(20)}
    assert len(faces) == 2 and EnvRows(env).spec.obs["image"].image


@pytest.mark.parametrize("side", [8, 32])
def test_pixel_probe_of_another_side_shows_the_same_scene(side):
    small, large = make("pixel", side=side), make("pixel")
    shrunk = large.reset(seed=3)[0][:: 64 // side, :: 64 // side]
    np.testing.assert_array_equal(small.reset(seed=3)[0], shrunk)


def test_a_side_that_no_scene_fits_is_refused():
    with pytest.raises(ValueError, match="multiple of 8, not 12"):
        make("pixel", side=12)
    with pytest.raises(ValueError, match="'both' takes no side"):
        make("both", side=32)


def test_unknown_probe_and_bad_length_are_refused():
    with pytest.raises(ValueError, match="did you mean 'counter'"):
        make("countr")
    with pytest.raises(ValueError, match="at least one step"):
        make("both", steps=0)
