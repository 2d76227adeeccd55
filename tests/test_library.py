"""Parts of the library: a custom loop, and the world model of a trained run in Python."""

from __future__ import annotations

import ast
import pathlib
import runpy

import jax
import numpy as np
import pytest
import tiny_runs

import dreamer
from dreamer.errors import UserError

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def test_the_loop_of_the_documentation_learns():
    train = runpy.run_path(str(DOCS / "own_loop.py"))["train"]
    seen = list(train(tiny_runs.tiny(pathlib.Path("unused")), updates=3))
    assert len(seen) == 3 and all(np.isfinite(list(metrics.values())).all() for metrics in seen)


def test_the_loop_of_the_documentation_is_short_and_made_of_public_parts():
    source = (DOCS / "own_loop.py").read_text()
    lines = [line for line in source.splitlines() if line.strip()]
    assert len(lines) <= 40
    names = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    assert not [name for name in names if name.startswith("_")]


# --- the world model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    return dreamer.load(tiny_runs.trained(tmp_path_factory))


@pytest.fixture(scope="module")
def episode(agent):
    return agent.play(seed=3)


def test_an_episode_that_is_played_has_the_rows_that_replay_would_hold(agent, episode):
    assert episode.is_first[0].tolist() == [True] + [False] * (episode.reward.shape[1] - 1)
    assert episode.is_last[0].tolist() == [False] * (episode.reward.shape[1] - 1) + [True]
    assert episode.reward[0, 0] == 0 and not episode.action[0, -1].any() and episode.action[0, :-1].any()
    spec = agent.world_model.spec
    assert {key: x.shape[2:] for key, x in episode.obs.items()} == {k: space.shape for k, space in spec.obs.items()}


def test_playing_again_with_the_seed_gives_the_same_episode(agent, episode):
    jax.tree.map(np.testing.assert_array_equal, agent.play(seed=3), episode)


def test_an_episode_can_be_cut(agent):
    assert agent.play(seed=0, max_steps=2).reward.shape == (1, 2)


def test_an_episode_is_encoded_decoded_and_its_rewards_are_read(agent, episode):
    model, steps = agent.world_model, episode.reward.shape[1]
    latent = model.encode(episode)
    decoded, predicted = model.decode(latent), model.predict(latent)
    assert {key: x.shape for key, x in decoded.items()} == {key: x.shape for key, x in episode.obs.items()}
    assert set(predicted) == {"reward", "cont"} and predicted["reward"].shape == (1, steps)
    assert ((predicted["cont"] > 0) & (predicted["cont"] < 1)).all()


def test_a_dream_starts_at_its_row(agent, episode):
    latent = agent.world_model.encode(episode)
    decoded = agent.world_model.decode(latent)
    dream = agent.world_model.dream(episode, row=1, steps=4)
    for key, shown in dream.obs.items():
        assert shown.shape[:2] == (1, 5)
        np.testing.assert_allclose(shown[0, 0], decoded[key][0, 1], rtol=1e-4, atol=1e-4)


def test_a_dream_follows_the_actions_that_it_is_given(agent, episode):
    width = agent.world_model.spec.action_width
    actions = np.float32([1, -1, -1])[:, None] * np.ones((1, width), np.float32)
    dream = agent.world_model.dream(episode, row=0, steps=3, actions=actions)
    np.testing.assert_array_equal(dream.action[0, :3], actions)
    other = agent.world_model.dream(episode, row=0, steps=3, actions=actions[::-1])
    assert not np.array_equal(dream.feat[0, 2:], other.feat[0, 2:])


def test_several_rows_dream_side_by_side_under_the_policy(agent, episode):
    dream = agent.world_model.dream(episode, row=[0, 1, -1], steps=5)
    assert dream.action.shape[:2] == (3, 6) and dream.predicted["reward"].shape == (3, 6)
    same = agent.world_model.dream(episode, row=[0, 1, -1], steps=5)
    other = agent.world_model.dream(episode, row=[0, 1, -1], steps=5, seed=1)
    np.testing.assert_array_equal(dream.feat, same.feat)
    assert not np.array_equal(dream.feat, other.feat)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"row": 10_000}, "row 10000 is not among the"),
        ({"actions": np.zeros((2, 9))}, "actions have shape .* not .*N, steps, A"),
    ],
)
def test_a_dream_that_cannot_be_is_named(agent, episode, wrong, message):
    with pytest.raises(UserError, match=message):
        agent.world_model.dream(episode, **{"row": 0, "steps": 3, **wrong})


def test_an_episode_of_another_environment_is_named(agent, episode):
    with pytest.raises(UserError, match="the episode has the observations .* the run"):
        agent.world_model.encode(episode._replace(obs={"camera": np.zeros((1, 3, 2))}))
