"""Runs of the behavior director on a small maze: trained, resumed, drawn, and used with a goal."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import tiny_runs

import dreamer
from dreamer.apps import cli
from dreamer.apps.acting import restore
from dreamer.config import Config, load

SHARED = {key: value for key, value in tiny_runs.flat(tiny_runs.TINY).items() if "behavior" not in key}
OWN = {
    "env": "jax_mazes:rooms", "env_options": {"steps": 20}, "agent.behavior.name": "director",
    "agent.behavior.units": 8, "agent.behavior.layers": 1, "agent.behavior.steps": 2,
    "agent.behavior.imagine_length": 4, "eval.episodes": 2, "log.tensorboard": False, "loop": "host",
}  # fmt: skip


def config(run_dir: pathlib.Path, **more: Any) -> Config:
    return load(overrides={**SHARED, **OWN, "run_dir": str(run_dir), **more})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    return dreamer.train(config(tmp_path_factory.mktemp("director") / "run"))


def test_a_run_logs_what_manager_and_worker_learn_and_draws_goals(run):
    last = {name: value for line in tiny_runs.lines(run) for name, value in line.items()}
    assert {"manager/entropy", "worker/reward", "goal/kl", "loss/value/worker", "eval/return"} <= set(last)
    assert [path for path in (run / "pictures").iterdir() if path.name.startswith("mind_goals_image_")]


def test_a_report_shows_the_goals(run, tmp_path):
    assert cli.main(["report", str(run), "--out", str(tmp_path / "page"), "--static", "--format", "png"]) == 0
    assert "what the behavior has in mind" in (tmp_path / "page" / "index.html").read_text()


@pytest.mark.parametrize("loop", ["host", pytest.param("device", marks=pytest.mark.slow)])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(run, tmp_path, loop):
    whole = run if loop == "host" else dreamer.train(config(tmp_path / "whole", loop=loop))
    parted = dreamer.train(config(tmp_path / "parted", loop=loop, env_steps=64))
    dreamer.train(config(parted, loop=loop), resume="yes")
    for ours, theirs in zip(*(jax.tree.leaves(restore(path).variables) for path in (whole, parted)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_trained_worker_takes_a_goal_and_holds_it(run):
    agent = dreamer.load(run)
    goal = agent.encode({"image": np.full((24, 24, 3), 200, np.uint8)})
    action, state = agent.act({"image": np.zeros((24, 24, 3), np.uint8)}, command={"goal": goal})
    assert 0 <= action < 4
    np.testing.assert_array_equal(state.carry.behavior.goal, goal[:, :16])
