"""The numbers that environments report about their episodes, from `info` and "log/..." keys to the metrics."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from gymnasium import spaces
from tiny_runs import lines, plain_agent, tiny

import dreamer
from dreamer.apps import cli
from dreamer.errors import UserError
from dreamer.runtime.env.own_numbers import Tally, named
from dreamer.runtime.log.episodes import mean_of
from dreamer.runtime.workers import Config, make_workers

INLINE, PROCESSES = Config("inline", envs=2), Config("processes", envs=2, processes=1)
everywhere = pytest.mark.parametrize("config", [INLINE, PROCESSES], ids=["inline", "processes"])


def play(crew, steps):
    """Returns the reported numbers of each receive, acting with the first action."""
    reported = []
    for _ in range(steps):
        ready = crew.receive()
        reported.append({stream: dict(numbers) for stream, numbers in crew.finished().items()})
        crew.send(ready.streams, np.eye(3, dtype=np.float32)[np.zeros(len(ready.streams), int)])
    return reported


OWN = {"is_success": 1.0, "height": 3.0, "count": 3.0}


@everywhere
def test_the_last_scalars_of_an_episode_come_with_its_last_row_and_no_other(config):
    with make_workers(config, "reporting_envs:Reporting") as crew:
        assert play(crew, 8) == [{}, {}, {}, {0: OWN, 1: OWN}, {}, {}, {}, {0: OWN, 1: OWN}]


@everywhere
def test_log_keys_come_as_mean_and_highest_over_the_rows_of_an_episode(config):
    with make_workers(config, "reporting_envs:Logged") as crew:
        assert "log/step" not in crew.spec.obs
        reported = play(crew, 8)
    of_keys = {"step/mean": 1.5, "step/max": 3.0, "one/mean": -1.5, "one/max": 0.0}
    assert reported[3] == reported[7] == {0: OWN | of_keys, 1: OWN | of_keys}


@everywhere
def test_a_current_episode_keeps_its_numbers_after_a_restore(config):
    with make_workers(config, "reporting_envs:Logged", seed=5) as crew:
        play(crew, 2)
        snapshot, reported = crew.states(), play(crew, 6)
    with make_workers(config, "reporting_envs:Logged", seed=77) as crew:
        assert crew.restore(*snapshot) == {}
        assert play(crew, 6) == reported and reported[1]


@everywhere
def test_an_episode_that_ended_in_an_unreceived_row_is_reported_after_a_restore(config):
    with make_workers(config, "reporting_envs:Logged", seed=5) as crew:
        play(crew, 3)
        snapshot, reported = crew.states(), play(crew, 1)
    with make_workers(config, "reporting_envs:Logged", seed=77) as crew:
        crew.restore(*snapshot)
        assert play(crew, 1) == reported and set(reported[0]) == {0, 1}


@everywhere
def test_a_name_that_the_run_uses_is_refused_in_one_line(config):
    line = r"env 'reporting_envs:Reporting #\d': the info key 'return' would be logged as episode/return, which"
    workers = make_workers(config, "reporting_envs:Reporting", {"name": "return"})
    with workers as crew, pytest.raises(UserError) as caught:
        play(crew, 5)
    assert re.match(line, str(caught.value)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["return", "return_std", "length"])
def test_every_name_that_the_run_uses_is_refused(name):
    with pytest.raises(UserError, match=f"info key '{name}'.*rename it"):
        named({name: 1.0}, "e")


def test_odd_characters_become_underscores_and_what_collides_then_is_refused():
    found = named({"a b\n": 1.0, "/x/": 2.0, "": 3.0, "größe": 4.0}, "e")
    assert found == {"a_b_": 1.0, "x": 2.0, "_": 3.0, "größe": 4.0}
    with pytest.raises(UserError, match="info key 'a_b'.*as would the info key 'a b'"):
        named({"a b": 1.0, "a_b": 1.0}, "e")
    with pytest.raises(UserError, match="more than 100 characters"):
        named({"a" * 101: 1.0}, "e")


def test_names_of_other_metrics_do_not_clash():
    assert named({"env_steps": 1.0, "time": 2.0, "nonfinite": 0.0}, "e")


@pytest.mark.parametrize(
    "value, number",
    [
        (True, 1.0), (np.bool_(False), 0.0), (2, 2.0), (np.int8(3), 3.0), (2.5, 2.5), (np.float16(0.5), 0.5),
        (np.array(4.0), 4.0), (10**400, np.inf), ("1", None), ([1], None), (np.ones(1), None), (None, None),
        (1j, None), ({"r": 1.0}, None),
    ],
)  # fmt: skip
def test_what_counts_as_a_number(value, number):
    tally = Tally(spaces.Discrete(2))
    tally.end({"x": value, "action_mask": 1})
    assert tally.finished == ({} if number is None else {"x": number})


def test_a_nan_among_the_rows_stays_one():
    tally = Tally(spaces.Dict({"log/x": spaces.Box(0, 1, ())}))
    for value in (1.0, np.nan, 0.5):
        tally.add({"log/x": value})
    tally.end({})
    assert np.isnan(tally.finished["log/x/mean"]) and np.isnan(tally.finished["log/x/max"])


def test_the_mean_is_over_the_episodes_that_have_a_number():
    assert mean_of([{"a": 1.0}, {"a": 3.0, "b": 5.0}, {}]) == {"a": 2.0, "b": 5.0}


def test_a_run_logs_them_of_training_and_of_evaluation_and_eval_shows_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dreamer.agent.make", lambda config, spec, **_: plain_agent(spec))
    config = tiny(tmp_path / "run", env="reporting_envs:Logged", env_steps=32)
    dreamer.train(config)
    found = {name: value for line in lines(tmp_path / "run") for name, value in line.items()}
    wanted = OWN | {"step/mean": 1.5, "step/max": 3.0, "one/mean": -1.5, "one/max": 0}
    ours = {"return", "length", "return_std"}
    for place in ("episode/", "eval/"):
        own = {name.removeprefix(place): value for name, value in found.items() if name.startswith(place)}
        assert {name: value for name, value in own.items() if name not in ours} == wanted
    capsys.readouterr()
    assert cli.main(["eval", str(tmp_path / "run"), "--episodes", "2", "--json", str(tmp_path / "out.json")]) == 0
    assert "is_success: mean 1.000\n" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert [one["metrics"] for one in written["episodes"]] == [wanted] * 2 and written["summary"]["metrics"] == wanted
