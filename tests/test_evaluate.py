"""Evaluating and using a trained agent: shares of episodes, `dreamer eval`, `dreamer.load`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from broken_envs import Sound
from tiny_runs import recording_agent, trained

import dreamer
from dreamer.apps import cli
from dreamer.apps.statistics import summary
from dreamer.errors import UserError
from dreamer.interfaces import Variables
from dreamer.runtime.devices import placement, programs
from dreamer.runtime.run import evaluation


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory)


@pytest.fixture(scope="module")
def agent(run):
    return dreamer.load(run)


# ---- episodes


def play(env: str, options: dict, *, episodes: int, seed: int = 7, record: int = 0, mode: str = "sample"):
    asked = {"episodes": episodes, "action_repeat": 1, "seed": seed, "record": bool(record)}
    workers = evaluation.make_eval_workers(env, options, **asked)
    agent = recording_agent(workers.spec)
    variables = placement.first_copy({"behavior": Variables({"w": jnp.zeros(4)})})
    policy = programs.jit_act(agent)
    return evaluation.run_episodes(
        agent, policy, variables, workers, episodes=episodes, seed=seed, mode=mode, record=record
    )


def test_each_environment_plays_its_fixed_share_however_short_its_episodes(monkeypatch):
    monkeypatch.setattr(evaluation, "MOST_ENVS", 3)
    result = play("broken_envs:uneven", {"first_seed": evaluation.SEED + 7}, episodes=8)
    assert [episode.env for episode in result.episodes] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [episode.length for episode in result.episodes] == [1, 1, 1, 2, 2, 2, 3, 3]
    assert result.returns == [1, 1, 1, 2, 2, 2, 3, 3]


def test_an_environment_that_fails_is_replaced_and_reported(monkeypatch):
    monkeypatch.setattr(evaluation, "MOST_ENVS", 1)
    result = play("broken_envs:fails", {"how": "raise", "after": 8}, episodes=2)
    assert [episode.length for episode in result.episodes] == [5, 5]
    assert ["the cable is loose" in incident.text for incident in result.incidents] == [True]


def test_there_are_never_more_environments_than_episodes():
    result = play("broken_envs:uneven", {"first_seed": evaluation.SEED + 7}, episodes=2)
    assert [episode.env for episode in result.episodes] == [0, 1]


def levels(video: list[np.ndarray]) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in video]


def test_the_first_episode_is_recorded_from_its_reset_to_its_end(monkeypatch):
    monkeypatch.setattr(evaluation, "MOST_ENVS", 1)
    result = play("broken_envs:sound", {"steps": 4}, episodes=2, record=True)
    assert levels(result.frames) == [0, 50, 100, 150, 200] and len(result.videos) == 1
    assert play("broken_envs:sound", {"steps": 4}, episodes=2).frames == []


def test_the_first_episode_of_each_of_the_first_environments_is_recorded(monkeypatch):
    monkeypatch.setattr(evaluation, "MOST_ENVS", 3)
    result = play("broken_envs:sound", {"steps": 2}, episodes=5, record=2)
    assert [levels(video) for video in result.videos] == [[0, 50, 100], [0, 50, 100]]
    assert len(play("broken_envs:sound", {"steps": 2}, episodes=2, record=9).videos) == 2


def test_a_replaced_environment_is_recorded_from_its_start(tmp_path):
    result = play("broken_envs:FailsOnce", {"note": str(tmp_path / "note")}, episodes=1, record=1)
    assert len(result.incidents) == 1 and result.seeds == [evaluation.SEED + 8]
    assert levels(result.frames) == [0, 50, 100, 150, 200, 250]


def test_each_episode_has_the_seed_of_its_environment(monkeypatch):
    monkeypatch.setattr(evaluation, "MOST_ENVS", 2)
    first = evaluation.SEED + 7
    assert play("broken_envs:sound", {}, episodes=3, seed=7).seeds == [first, first, first + 1]
    monkeypatch.setattr(evaluation, "MOST_ENVS", 1)
    result = play("broken_envs:fails", {"how": "raise", "after": 8}, episodes=2, seed=7)
    assert result.seeds == [first, first + 1]  # restarted after the first


def test_the_seed_gives_the_episodes():
    first, again, other = (play("broken_envs:sound", {}, episodes=3, seed=seed).returns for seed in (1, 1, 2))
    assert first == again and first != other


def test_every_row_draws_its_own_action():
    returns = play("probes:counter", {"steps": 20}, episodes=1).returns  # the sum of the actions 0 to 3
    assert returns[0] not in (0, 20, 40, 60)
    assert play("probes:counter", {"steps": 20}, episodes=1, mode="mode").returns == [0]


def test_a_picture_is_shown_where_the_environment_draws_nothing():
    workers = evaluation.make_eval_workers("broken_envs:mixed", {}, episodes=1, action_repeat=1, seed=0, record=True)
    step = workers.receive().step
    assert np.array_equal(evaluation.frame(workers, step), step.obs["camera"][0])


@pytest.mark.parametrize("env", ["broken_envs:sound", "broken_envs:mixed"])
def test_environments_that_render_or_show_images_can_be_recorded(env):
    assert evaluation.can_record(env, {}, "auto") == evaluation.can_record(env, {}, "on") == (True, "")
    assert evaluation.can_record(env, {}, "off") == (False, "")


def test_the_reason_why_an_environment_cannot_be_recorded_is_reported():
    options = {"first_seed": 0}
    recorded, reason = evaluation.can_record("broken_envs:uneven", options, "auto")
    assert not recorded and "neither renders" in reason
    with pytest.raises(UserError, match="eval.video=on.*neither renders"):
        evaluation.can_record("broken_envs:uneven", options, "on")


# ---- dreamer eval


def output(capsys, *args: str) -> str:
    assert cli.main(["eval", *args]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_eval_prints_what_evaluate_gives_in_python(capsys, run):
    out = output(capsys, str(run), "--episodes", "3")
    episodes = re.findall(r"^episode +(\d+): return +(-?[\d.]+), length (\d+)$", out, re.MULTILINE)
    assert [(number, length) for number, _, length in episodes] == [("1", "5"), ("2", "5"), ("3", "5")]
    returns = np.array(dreamer.evaluate(run, episodes=3).returns)
    assert np.allclose([float(value) for _, value, _ in episodes], returns, atol=1e-3)
    number = r"(-?[\d.]+)"
    found = re.search(
        rf"3 episodes: return mean {number}, standard error {number}, std {number}, min {number}, max {number}\n"
        rf"IQM {number}, 95 % interval {number} to {number} ",
        out,
    )
    of_returns = summary(returns, resamples=10_000)
    expected = [
        returns.mean(), returns.std(ddof=1) / 3**0.5, returns.std(ddof=1), returns.min(), returns.max(),
        of_returns.iqm, *of_returns.interval,
    ]  # fmt: skip
    assert np.allclose([float(value) for value in found.groups()], expected, atol=1e-3)


def test_one_episode_has_neither_spread_nor_interval(capsys, run, tmp_path):
    out = output(capsys, str(run), "--episodes", "1", "--json", str(tmp_path / "scores.json"))
    assert "one episode" in out and "std" not in out and "interval" not in out
    found = json.loads((tmp_path / "scores.json").read_text())["summary"]
    assert found["n"] == 1 and found["std"] is found["stderr"] is found["interval"] is None


def test_the_file_holds_every_episode_and_the_summary(capsys, run, tmp_path):
    file = tmp_path / "new" / "scores.json"
    out = output(capsys, str(run), "--episodes", "18", "--seed", "3", "--json", str(file))
    found = json.loads(file.read_text())
    assert f"episodes and summary: {file}" in out
    assert [found[key] for key in ("run", "env", "env_steps", "mode", "seed")] == [
        str(run), "broken_envs:sound", 96, "sample", 3,
    ]  # fmt: skip
    result = dreamer.evaluate(run, episodes=18, seed=3)
    assert [one["return"] for one in found["episodes"]] == result.returns
    assert {one["length"] for one in found["episodes"]} == {5} and found["incidents"] == []
    assert [(one["env"], one["of_env"]) for one in found["episodes"][:5]] == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]
    assert all(one["seed"] == evaluation.SEED + 3 + one["env"] for one in found["episodes"])
    assert found["summary"]["mean"] == np.mean(result.returns) and len(found["summary"]["interval"]) == 2


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_played(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("dreamer.apps.acting.restore", lambda *_: pytest.fail("played"))
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "scores.json"):
        assert cli.main(["eval", "anything", "--json", str(path)]) == 2
        assert str(path) in capsys.readouterr().err


def test_eval_repeats_itself_by_its_seed_and_mode(capsys, run):
    first, again = (output(capsys, str(run), "--episodes", "3") for _ in range(2))
    assert first == again
    assert output(capsys, str(run), "--episodes", "3", "--seed", "1") != first
    assert output(capsys, str(run), "--episodes", "3", "--mode", "mode") != first


def test_eval_records_the_first_episodes_and_leaves_the_run_alone(capsys, run, tmp_path):
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    out = output(capsys, str(run), "--episodes", "17", "--video", str(tmp_path / "a" / "episode.mp4"))
    assert "(episodes 1, 3, 4, 5)" in out  # environment 1 plays two
    out = output(capsys, str(run), "--episodes", "1", "--video", str(tmp_path / "b.mp4"), "--video-episodes", "2")
    assert "(episode 1)" in out
    assert (tmp_path / "a" / "episode.mp4").read_bytes()[4:8] == b"ftyp"
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_eval_lays_env_options_over_those_of_the_run(capsys, run):
    result = dreamer.evaluate(run, episodes=2, env_options={"steps": 3})
    assert [episode.length for episode in result.episodes] == [3, 3]
    assert cli.main(["eval", str(run), "--episodes", "1", "--env-options.steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "env options: {'steps': 2}, changed from the run: {'steps': 2}" in out and "length 2" in out


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"width": 5}, "observation 'vector' is float32 [5], the run was trained with float32 [3]"),
        ({"widht": 5}, "takes no option 'widht'; did you mean 'width'"),
        ({"width": object()}, "env_options.width is a object"),
        (3, "env_options must be a mapping"),
    ],
)
def test_env_options_that_change_what_is_seen_are_refused_by_the_key(tmp_path, options, part):
    (tmp_path / "config.yaml").write_text("env: test_make_env:in_a_module")
    with pytest.raises(UserError) as caught:
        dreamer.evaluate(tmp_path, env_options=options, trust=True)
    assert part in str(caught.value)


@pytest.mark.parametrize("call", [dreamer.load, dreamer.evaluate])
@pytest.mark.parametrize("run", [dreamer.load_config(), None, 3])
def test_a_run_that_is_not_a_directory_is_refused(call, run):
    with pytest.raises(UserError, match="a run is given by its directory"):
        call(run)


# ---- dreamer.load


def test_the_readme_lines_play_an_episode(agent):
    env = Sound()
    obs, _ = env.reset(seed=0)
    action, state = agent.act(obs)
    over = False
    while not over:
        assert env.action_space.contains(action) and isinstance(action, int)
        obs, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
        action, state = agent.act(obs, state)


def observations(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3)).astype(np.float32)


def latent(state) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(state.carry)]


def same(ours, theirs, env: Any = slice(None)) -> bool:
    pairs = zip(latent(ours), latent(theirs), strict=True)
    return all(np.array_equal(a[env], b[env]) for a, b in pairs)


def test_a_batch_gives_one_action_each(agent):
    action, state = agent.act(observations(3))
    assert action.shape == (3,) and action.dtype.kind == "i" and set(action) <= {1, 2, 3}
    action, _ = agent.act(observations(3, seed=1), state)
    assert action.shape == (3,)


def test_the_state_is_carried_from_call_to_call(agent):
    obs = observations(3)
    _, first = agent.act(obs)
    _, second = agent.act(obs, first)
    _, afresh = agent.act(obs, first, is_first=[True, True, True])
    assert [len(leaf) for leaf in latent(second)] == [3] * len(latent(second))
    assert not same(second, first) and not same(second, afresh)


def test_is_first_begins_afresh_where_it_is_set_and_only_there(agent):
    obs = [observations(3, seed) for seed in range(3)]
    _, state = agent.act(obs[0])
    _, other = agent.act(obs[1])
    state, other = agent.act(obs[1], state)[1], agent.act(obs[0], other)[1]
    mask = [False, True, False]
    after, forgotten = agent.act(obs[2], state, mask)[1], agent.act(obs[2], other, mask)[1]
    going_on = agent.act(obs[2], state)[1]
    assert same(after, forgotten, 1) and not same(after, going_on, 1)
    assert same(after, going_on, [0, 2]) and not same(after, forgotten, [0, 2])


def test_loading_twice_acts_the_same(agent, run):
    other = dreamer.load(str(run))
    for seed in range(5):
        obs = observations(3, seed)
        ours, theirs = agent.act(obs)[0], other.act(obs)[0]
        assert np.array_equal(ours, theirs)
    assert other.env_steps == 96 and other.config.env == "broken_envs:sound"


@pytest.mark.parametrize(
    "obs, part",
    [
        (np.zeros(4, np.float32), "float32"),
        (np.zeros((3, 4), np.float32), "float32"),
        (np.full(3, np.nan, np.float32), "nan"),
        (np.full((2, 3), 5.0, np.float32), "outside"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(agent, obs, part):
    with pytest.raises(UserError, match="observation of env 'broken_envs:sound'") as error:
        agent.act(obs)
    assert part in str(error.value) and "\n" not in str(error.value)


def test_a_state_or_mask_of_another_number_of_environments_is_refused(agent):
    _, state = agent.act(observations(3))
    with pytest.raises(UserError, match="2 observations, but the state is for 3"):
        agent.act(observations(2), state)
    with pytest.raises(UserError, match="2 flags for 3 observations"):
        agent.act(observations(3), state, is_first=[True, False])


def test_a_loaded_agent_knows_its_spaces(agent):
    assert agent.action_space == gymnasium.spaces.Discrete(3, start=1)
    assert agent.observation_space == Sound.observation_space
