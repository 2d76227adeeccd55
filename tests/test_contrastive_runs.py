"""Runs without rewards: the contrastive world model with random actions is trained, resumed, ranked, shown and used."""

from __future__ import annotations

import contextlib
import json
import pathlib
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
import tiny_runs

import dreamer
from dreamer import agent as agents
from dreamer import plugins
from dreamer.apps import cli, ranking
from dreamer.apps.acting import Trained, restore
from dreamer.config import Config, load
from dreamer.errors import UserError
from dreamer.runtime.env.adapter import spec_of
from envs import blocks

ROOT = pathlib.Path(__file__).parent.parent
SHARED: dict[str, Any] = {key: value for key, value in tiny_runs.flat(tiny_runs.TINY).items() if "agent." not in key}
OWN = {
    "env": "blocks:shapes", "env_options": {"steps": 12}, "agent.world_model.name": "contrastive",
    "agent.world_model.hidden": 16, "agent.behavior.name": "random", "agent.optimizer.warmup": 0,
    "agent.optimizer.learning_rate": 1e-3, "replay.context": 0, "eval.episodes": 2, "log.tensorboard": False,
}  # fmt: skip


def config(run_dir: pathlib.Path, **more: Any) -> Config:
    return load(overrides={**SHARED, **OWN, "run_dir": str(run_dir), **more})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    return dreamer.train(config(tmp_path_factory.mktemp("contrastive") / "run"))


def test_a_run_without_rewards_learns_and_shows_its_objects(run):
    last = {name: value for line in tiny_runs.lines(run) for name, value in line.items()}
    assert {"loss/positive", "loss/negative", "eval/return"} <= set(last) and "loss/rew" not in last
    pictures = sorted(path.name for path in (run / "pictures").iterdir())
    assert [name for name in pictures if name.startswith("seen_objects_")] and "openloop" not in " ".join(pictures)


def test_a_run_without_rewards_is_scored_and_drawn(run, tmp_path, capsys):
    assert cli.main(["eval", str(run), "--episodes", "2"]) == 0
    assert "return mean 0.000" in capsys.readouterr().out
    assert cli.main(["report", str(run), "--out", str(tmp_path / "page"), "--static", "--format", "png"]) == 0
    assert "as the world model sees them" in (tmp_path / "page" / "index.html").read_text()
    assert cli.main(["verify", str(run)]) == 0


def test_a_run_is_ranked(run, tmp_path, capsys):
    assert cli.main(["eval", str(run), "--ranking", "120", "--json", str(tmp_path / "ranks.json")]) == 0
    assert "the predictions of 100 episodes" in capsys.readouterr().out
    made = json.loads((tmp_path / "ranks.json").read_text())
    assert made["episodes"] == 100 and set(made["ranking"]) == {"1", "5", "10"}
    for row in made["ranking"].values():
        assert 0 <= row["hits1"] <= row["hits5"] <= row["hits10"] <= 1 and row["hits1"] <= row["mrr"]


def test_too_few_or_too_short_episodes_are_refused(run):
    trained = restore(run)
    with pytest.raises(UserError, match="a ranking needs 100 episodes or more, not 99"):
        ranking.rank(trained, "blocks:shapes", 99)
    short = trained._replace(config=load(overrides={**OWN, "env_options": {"steps": 5}}))
    with pytest.raises(UserError, match="only 0 of 1000 episodes of env 'blocks:shapes' have 10 steps"):
        ranking.rank(short, "blocks:shapes", 100)


def test_any_world_model_can_be_ranked():
    """By the features of its posterior and of its dreams; here an RSSM."""
    whole = tiny_runs.tiny(pathlib.Path())
    with contextlib.closing(plugins.make_env(whole.env)) as env:
        spec = spec_of(env)
    agent = agents.make(whole.agent, spec)
    trained = Trained(whole, agent, agent.variables(agent.init(jax.random.key(0))), 0, spec)
    episodes = ranking.collect(trained, whole.env, 100, 3, seed=0)
    v = trained.variables["world_model"]
    true, predicted = ranking.features(agent, v, episodes, jax.random.key(0), steps=(1, 3))
    assert true[1].shape == predicted[3].shape and len(true[3]) == 100
    assert not np.array_equal(predicted[1], predicted[3])


def test_a_planner_takes_a_goal_from_python(run, tmp_path):
    reacher = dreamer.train(
        config(
            tmp_path / "reacher", init_from=str(run), init_parts="world_model", replay_ratio=0, env_steps=16,
            **{"agent.behavior.name": "reach", "agent.behavior.length": 2, "eval.episodes": 0},
        )
    )  # fmt: skip
    agent, env = dreamer.load(reacher), blocks.make("shapes")
    obs, _ = env.reset(seed=0)
    # From one step away, the first step of the search sees the goal itself; an untrained model separates pictures.
    action = next(a for a in range(20) if (blocks.moved(env.position, a) != env.position).any())
    goal = agent.encode(blocks.draw_shapes(blocks.moved(env.position, action)))
    assert goal.shape == (1, 10)
    chosen, _ = agent.act(obs, command={"goal": goal})
    again, _ = agent.act(obs, command={"goal": goal})
    assert chosen == again and 0 <= chosen < 20


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole = dreamer.train(config(tmp_path / "whole", **{"eval.episodes": 0}))
    parted = dreamer.train(config(tmp_path / "parted", env_steps=64, **{"eval.episodes": 0}))
    dreamer.train(config(parted, **{"eval.episodes": 0}), resume="yes")
    for ours, theirs in zip(*(jax.tree.leaves(restore(path).variables) for path in (whole, parted)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Masked(gymnasium.Wrapper):
    """The shapes with an action mask in which only the first object may move."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Dict(
            {"image": env.observation_space, "action_mask": gymnasium.spaces.MultiBinary(20)}
        )

    def reset(self, **options):
        obs, info = self.env.reset(**options)
        return self.show(obs), info

    def step(self, action):
        assert action < 4
        obs, *rest = self.env.step(action)
        return self.show(obs), *rest

    def show(self, obs):
        return {"image": obs, "action_mask": (np.arange(20) < 4).astype(np.int8)}


def masked() -> gymnasium.Env:
    return Masked(blocks.make("shapes", steps=12))


def test_random_collection_and_rankings_respect_action_masks(tmp_path):
    run = dreamer.train(config(tmp_path / "run", env="test_contrastive_runs:masked", env_options={}))
    found = ranking.rank(restore(run), "test_contrastive_runs:masked", 100)
    assert set(found) == {1, 5, 10}
