"""The runs of a population: one directory for each member, resumed together, stopped apart."""

from __future__ import annotations

import dataclasses
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from test_fused import SETTINGS, state_of
from test_safe_start import tree

import dreamer
from dreamer.apps import cli
from dreamer.errors import UserError
from dreamer.runtime.fused import spread
from dreamer.runtime.learning import moving
from dreamer.runtime.population import places, room
from dreamer.runtime.run import ending
from dreamer.runtime.run.loop import Run
from dreamer.runtime.run.stopping import Stopped


@pytest.fixture(autouse=True, scope="module")
def agent_that_compiles_at_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))
        yield


def config_of(run_dir, **overrides):
    return tiny_runs.tiny(run_dir, **SETTINGS, population__seeds=2, **overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return dreamer.train(config_of(tmp_path_factory.mktemp("population") / "run"))


def equal(one, other) -> None:
    for a, b in zip(state_of(one), state_of(other), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_member_is_a_run_and_that_of_its_seed(trained, tmp_path):
    alone = dreamer.train(tiny_runs.tiny(tmp_path / "alone", **SETTINGS, loop="device", seed=1))
    assert not (trained / "metrics.jsonl").exists()
    assert [line["env_steps"] for line in tiny_runs.lines(trained / "seed1")][-1] == 160
    equal(trained / "seed1", alone)
    assert dreamer.load(trained / "seed1") is not None


def test_a_population_that_is_resumed_is_the_same_to_the_last_bit(trained, tmp_path):
    run_dir = tmp_path / "run"
    dreamer.train(config_of(run_dir), callbacks=[lambda line: "stop" if line.env_steps >= 70 else None])
    assert tiny_runs.lines(run_dir / "seed1")[-1]["env_steps"] < 160
    dreamer.train(config_of(run_dir), resume="yes")
    for name in ("seed0", "seed1"):
        equal(run_dir / name, trained / name)


def stopped_at(run_dir, steps):
    dreamer.train(config_of(run_dir), callbacks=[lambda line: "stop" if line.env_steps >= steps else None])


def test_a_member_that_was_resumed_alone_is_named(tmp_path):
    run_dir = tmp_path / "run"
    stopped_at(run_dir, 70)
    own = dreamer.load_config(run_dir / "seed1" / "config.yaml", overrides={"loop": "host"})
    dreamer.train(own, resume="yes")
    with pytest.raises(UserError, match="member seed1 was resumed alone"):
        dreamer.train(config_of(run_dir), resume="yes")


@pytest.mark.parametrize("error", [Stopped(signal.SIGTERM), OSError("no more")], ids=["signal", "failure"])
def test_a_population_that_ended_between_two_checkpoints_is_resumed(trained, tmp_path, monkeypatch, error):
    tend, turns = Run.tend, iter(range(10**9))

    def ends(run):
        tend(run)
        if next(turns) == 11:
            raise error

    run_dir = tmp_path / "run"
    monkeypatch.setattr(Run, "tend", ends)
    with pytest.raises((KeyboardInterrupt, UserError)):
        dreamer.train(config_of(run_dir))
    monkeypatch.undo()
    dreamer.train(config_of(run_dir), resume="yes")
    assert [line["env_steps"] for line in tiny_runs.lines(run_dir / "seed1")][-1] == 160
    if isinstance(error, OSError):
        return  # after a failure, the environments begin new episodes
    for name in ("seed0", "seed1"):
        equal(run_dir / name, trained / name)


def test_the_command_that_a_stopped_population_prints_resumes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stopped_at(tmp_path / "run", 70)
    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stopped by a callback; ")]
    words = command.partition("dreamer ")[2].split()
    assert cli.main(words) == 0
    assert [line["env_steps"] for line in tiny_runs.lines(tmp_path / "run" / "seed1")][-1] == 160


def test_a_population_that_ended_before_all_had_a_checkpoint_begins_again(trained, tmp_path, monkeypatch):
    start = Run.start

    def begins(run):
        if run.parts.config.seed:
            raise OSError("no more")
        start(run)

    monkeypatch.setattr(Run, "start", begins)
    monkeypatch.setattr(ending, "rescue", lambda *_: None)
    run_dir = tmp_path / "run"
    with pytest.raises(UserError, match="no more"):
        dreamer.train(config_of(run_dir))
    monkeypatch.undo()
    dreamer.train(config_of(run_dir), resume="auto")
    for name in ("seed0", "seed1"):
        equal(run_dir / name, trained / name)


def test_groups_that_do_not_divide_the_members_are_refused(tmp_path):
    with pytest.raises(UserError, match="population.together is 3, it must divide the 2 members of a device: .*1, 2."):
        dreamer.train(config_of(tmp_path / "run", population__together=3))
    assert not (tmp_path / "run").exists()


def test_a_run_cannot_begin_inside_a_population(trained):
    with pytest.raises(UserError, match="already holds a run .population.json."):
        dreamer.train(tiny_runs.tiny(trained, **SETTINGS))


def test_a_missing_member_is_named(tmp_path):
    run_dir = tmp_path / "run"
    stopped_at(run_dir, 70)
    (run_dir / "seed0").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="member seed0 of the population is missing"):
        dreamer.train(config_of(run_dir), resume="yes")


def test_other_members_are_refused(trained):
    with pytest.raises(UserError, match="has other members, see seed2"):
        dreamer.train(tiny_runs.tiny(trained, **SETTINGS, population__seeds=3), resume="yes")
    with pytest.raises(UserError, match="contains a population; resume it with --resume"):
        dreamer.train(config_of(trained))


def test_a_member_that_diverges_stops_and_the_others_stay_the_same(trained, tmp_path, monkeypatch, capsys):
    receive = moving.Moving.receive

    def diverges(self, rows, report, train):
        if self.owners.workers.seed(0) == 0 and self.owners.replay.steps > 60:
            ill = jax.tree.map(lambda x: x * jnp.nan if x.dtype == jnp.float32 else x, train())
            return receive(self, rows, report._replace(finite=np.bool_(False)), lambda: ill)
        return receive(self, rows, report, train)

    monkeypatch.setattr(moving.Moving, "receive", diverges)
    run_dir = dreamer.train(config_of(tmp_path / "run"))
    monkeypatch.undo()
    assert "seed0 has stopped, the others continue" in capsys.readouterr().out
    assert (run_dir / "seed0" / "error.txt").exists()
    equal(run_dir / "seed1", trained / "seed1")
    dreamer.train(config_of(run_dir), resume="yes")  # nothing is left to do


def test_a_population_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda *_: 1000)
    with pytest.raises(UserError, match="each of its 2 members takes .* enough for none; lower replay.capacity_steps"):
        dreamer.train(config_of(tmp_path / "runs" / "run"))
    assert not tree(tmp_path)


def test_a_population_that_does_not_fit_any_more_is_left_as_it_is(trained, monkeypatch):
    before = tree(trained)
    monkeypatch.setattr(room, "free_memory", lambda *_: 1000)
    with pytest.raises(UserError, match="the population does not fit"):
        dreamer.train(dataclasses.replace(config_of(trained), env_steps=320), resume="yes")
    assert tree(trained) == before


def devices(platform, count):
    return [SimpleNamespace(platform=platform) for _ in range(count)]


@pytest.mark.parametrize(("platform", "count", "fits", "together", "words"), [
    ("gpu", 1, 6, 4, "enough for 6; train 6 .in groups of 3, see population.together. or lower replay.capacity_steps"),
    ("gpu", 1, 6, 1, "train 6 .in groups of 1,"),
    ("gpu", 1, 7, 8, "train 7 .in groups of 7,"),
    ("gpu", 2, 3, 2, "its device, .* enough for 6; train 6 .in groups of 1,"),
    ("cpu", 2, 7, 4, "enough for 7; train 7 .in groups of 4,"),
])  # fmt: skip
def test_the_refusal_says_how_many_members_fit_and_in_what_groups(monkeypatch, platform, count, fits, together, words):
    """fits: on each GPU, or on all devices of a CPU"""
    monkeypatch.setattr(room, "member_bytes", lambda built: 10)
    monkeypatch.setattr(room, "free_memory", lambda device: 10 * fits + 9)
    there = devices(platform, count)
    most = fits * (count if platform == "gpu" else 1)
    room.check_room(None, spread.spread(most, there), most, together)
    with pytest.raises(UserError, match=words):
        room.check_room(None, spread.spread(8, there), 8, together)


class Program:
    def memory_analysis(self):
        return type("Analysis", (), {"temp_size_in_bytes": 800})


@pytest.mark.parametrize(("free", "hint"), [
    (799, "set population.together to 4"), (100, "set population.together to 1"), (99, "lower replay.batch_size"),
])  # fmt: skip
def test_an_update_of_too_many_members_at_a_time_says_how_many_fit(monkeypatch, free, hint):
    monkeypatch.setattr(room, "free_memory", lambda device: free)
    with pytest.raises(UserError, match=f"an update of 8 of 8 members at a time takes .*; {hint}"):
        room.check_temporaries(Program(), 8, 8)


def test_a_population_whose_updates_do_not_fit_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuses(*given):
        raise UserError("the population does not fit")

    monkeypatch.setattr("dreamer.runtime.population.loop.check_temporaries", refuses)
    with pytest.raises(UserError, match="the population does not fit"):
        dreamer.train(config_of(tmp_path / "runs" / "run"))
    assert not tree(tmp_path)


def test_members_that_continue_from_different_rows_are_told_how_to_go_on(tmp_path):
    def at(added):
        return (added, 0, added, True, 0)

    places.check_counters(tmp_path, ["a", "b"], [at(20), at(20)])
    with pytest.raises(UserError, match="a and b .* from 20 and 23 rows .* alone: .* --run-dir .*/b"):
        places.check_counters(tmp_path, ["a", "b"], [at(20), at(23)])
