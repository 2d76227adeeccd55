"""dreamer.train as a whole: the files of a run, the number of updates, and reproducibility."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import TINY, lines, saved, tiny, trained

import dreamer
from dreamer.apps import cli
from dreamer.config import load, to_yaml
from dreamer.runtime.log.logger import Logger
from dreamer.runtime.run import header

# With 2 environments, training starts with 16 items of 1 + 8 rows, that is after 16 rows of each.
FIRST_UPDATE, STEPS_PER_UPDATE = 32, 8
UNTRAINED = {"env_steps": 40, "replay_ratio": 0, "eval__episodes": 0, "checkpoint__every": 0, "checkpoint__keep": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return trained(tmp_path_factory)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    return trained(tmp_path_factory, env="broken_envs:mixed")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    """A run that only collects and saves after every row."""
    return trained(tmp_path_factory, **UNTRAINED)


def due(env_steps: int) -> int:
    """Returns the number of updates due at env_steps."""
    return 0 if env_steps < FIRST_UPDATE else 1 + (env_steps - FIRST_UPDATE) // STEPS_PER_UPDATE


def timeless(run_dir: Path) -> list[dict]:
    """Returns the lines of metrics.jsonl without values that depend on time."""
    return [
        {name: value for name, value in line.items() if name != "time" and not name.startswith(("speed/", "wait/"))}
        for line in lines(run_dir)
    ]


def names(run_dir: Path) -> set[str]:
    return set().union(*lines(run_dir))


def videos(run_dir: Path) -> list[str]:
    """Returns the names of the files in pictures/, and checks that each has the format of its suffix."""
    magic = {".png": (0, b"\x89PNG"), ".mp4": (4, b"ftyp")}
    for file in (run_dir / "pictures").iterdir():
        start, expected = magic[file.suffix]
        assert file.read_bytes()[start : start + 4] == expected, file
    return sorted(file.name for file in (run_dir / "pictures").iterdir())


# ---- the files of a run


def test_the_config_is_saved_as_a_preset(base):
    assert load(base / "config.yaml") == tiny(base)


def test_every_line_of_metrics_has_its_time_and_never_goes_back(base):
    found = lines(base)
    for name in ("env_steps", "updates", "time"):
        assert (np.diff([line[name] for line in found]) >= 0).all(), name
    assert found[-1]["env_steps"] == TINY["env_steps"]


def test_metrics_of_every_kind_are_there_and_finite(base):
    expected = {
        "episode/return", "episode/length", "eval/return", "eval/length", "loss/dyn", "loss/rep", "loss/rec/vector",
        "loss/rew", "loss/con", "loss/policy", "loss/value", "train/grad_norm", "latent/post_entropy", "dream/return",
        "speed/env_steps_per_s", "speed/updates_per_s", "replay/rows",
    }  # fmt: skip
    assert expected <= names(base)
    assert "nonfinite" not in names(base)


def test_episodes_are_counted_without_their_reset_row(base):
    lengths = [line["episode/length"] for line in lines(base) if "episode/length" in line]
    assert lengths == [5.0] * (TINY["env_steps"] // 2 // 6)
    assert {line["eval/length"] for line in lines(base) if "eval/length" in line} == {5.0}


def test_tensorboard_and_checkpoints_of_beginning_and_end_are_there(base):
    assert [file.stat().st_size > 0 for file in base.glob("events.out.tfevents.*")] == [True]
    assert sorted(file.name for file in (base / "checkpoints").iterdir()) == ["0", str(TINY["env_steps"])]


def test_vectors_are_drawn_as_a_plot_and_the_episode_is_recorded(base):
    assert videos(base) == ["episode_000000096.mp4", "openloop_000000096.png"]


def test_pictures_become_videos_even_if_the_environment_draws_nothing(mixed):
    assert videos(mixed) == ["episode_000000096.mp4", "openloop_000000096.mp4", "openloop_000000096.png"]


def test_pictures_vectors_and_continuous_actions_train_together(mixed):
    assert {"loss/rec/camera", "loss/rec/joints"} <= names(mixed)
    assert "nonfinite" not in names(mixed)
    assert lines(mixed)[-1]["updates"] == due(TINY["env_steps"])


def test_a_run_without_a_name_is_named_by_time_env_and_seed():
    config = load(overrides={"env": "dmc:walker-walk", "seed": 3})
    assert re.fullmatch(r"runs/\d{8}-\d{6}-dmc-walker-walk-seed3", header.default_run_dir(config))


def test_the_memory_and_the_ratio_are_printed_first(tmp_path, capsys):
    with pytest.raises(dreamer.errors.UserError):
        dreamer.train(tiny(tmp_path / "run", env="broken_envs:fails", env_options={"how": "nan", "after": 1}))
    out = capsys.readouterr().out
    first = out.index("collecting")
    for line in ("run: ", "env: broken_envs:fails x 2", "parameters", "one update of 2 x 8 steps", "replay: 96 steps"):
        assert 0 <= out.index(line) < first, line


# ---- the number of updates


@pytest.mark.parametrize("lockstep", [True, False])
def test_updates_are_what_the_replay_ratio_asks_for(tmp_path_factory, base, lockstep):
    run = base if lockstep else trained(tmp_path_factory, lockstep=False)
    found = lines(run)
    if lockstep:
        assert [line["updates"] for line in found] == [due(line["env_steps"]) for line in found]
    assert all(line["updates"] <= due(line["env_steps"]) for line in found)
    state, meta = saved(run)
    assert meta == {"env_steps": 96, "updates": due(96)}
    assert int(np.frombuffer(state[".step"], np.int32)[0]) == due(96)


def test_the_metrics_of_every_update_are_logged(base):
    assert sum("loss/dyn" in line for line in lines(base)) == due(96)


def test_the_metrics_of_every_update_are_logged_side_by_side(tmp_path, monkeypatch):
    added, add = [], Logger.add

    def recorded(logger, values, **how):
        added.append(set(values))
        add(logger, values, **how)

    monkeypatch.setattr(Logger, "add", recorded)
    dreamer.train(tiny(tmp_path / "run", lockstep=False, log__every=1000, eval__episodes=0))
    assert sum("loss/dyn" in names for names in added) == due(96)
    assert "wait/device_for_learner" in lines(tmp_path / "run")[-1]


def test_ratio_0_never_trains(untrained):
    assert {line["updates"] for line in lines(untrained)} == {0}
    assert saved(untrained)[1] == {"env_steps": 40, "updates": 0}


# ---- reproducibility


def test_the_same_seed_gives_the_same_run_to_the_last_bit(tmp_path_factory, base):
    again = trained(tmp_path_factory, seed=0)
    assert timeless(again) == timeless(base)
    assert saved(again) == saved(base)


def test_worker_processes_give_the_same_run_as_none(tmp_path_factory, base):
    spread = trained(tmp_path_factory, workers__backend="processes")
    assert timeless(spread) == timeless(base)
    assert saved(spread) == saved(base)


def test_how_often_it_is_evaluated_does_not_change_a_run(tmp_path_factory, base):
    watched = trained(tmp_path_factory, eval__every=40, eval__episodes=2)
    assert [line["env_steps"] for line in lines(watched) if "eval/return" in line] == [40, 80, 96]
    assert len(videos(watched)) == 6
    assert saved(watched) == saved(base)


def test_another_seed_gives_another_run(tmp_path_factory, untrained):
    other = trained(tmp_path_factory, **UNTRAINED, seed=1)
    returns = [[line.get("episode/return") for line in lines(run)] for run in (other, untrained)]
    assert returns[0] != returns[1]
    ours, theirs = saved(other)[0], saved(untrained)[0]
    assert ours.keys() == theirs.keys() and any(ours[name] != theirs[name] for name in ours if "params" in name)


# ---- saving


def test_checkpoints_are_saved_when_due_and_the_newest_kept(untrained):
    assert sorted(int(file.name) for file in (untrained / "checkpoints").iterdir()) == [36, 38, 40]


def test_an_interrupted_run_saves_what_it_has_learned_and_exits_with_130(tmp_path, capsys):
    run = tmp_path / "run"
    options = {"how": "interrupt", "after": 20}
    (tmp_path / "preset.yaml").write_text(to_yaml(tiny(run, env="broken_envs:fails", env_options=options)))
    assert cli.main(["train", str(tmp_path / "preset.yaml"), "--trust"]) == 130
    assert capsys.readouterr().err == "dreamer: interrupted\n"
    state, meta = saved(run)
    assert meta["env_steps"] == lines(run)[-1]["env_steps"] and 0 < meta["updates"] == lines(run)[-1]["updates"]
    assert int(np.frombuffer(state[".step"], np.int32)[0]) == meta["updates"]
