"""Runs that learn from datasets: alone, or as a share of the batches of a run that collects."""

from __future__ import annotations

import gc
import json
import pathlib
import shutil
import warnings

import gymnasium
import jax
import killed_run
import numpy as np
import pytest
from minari import DataCollector
from test_resume import rows_of, stopped
from tiny_runs import TINY, bits, flat, lines, plain_agent, tiny

import dreamer
from dreamer import plugins
from dreamer.apps import cli
from dreamer.apps.verify import verify
from dreamer.config import NO_ENV
from dreamer.data.converting import convert
from dreamer.data.opening import open_data
from dreamer.errors import UserError
from dreamer.runtime.env.adapter import spec_of
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.population.plan import plan
from dreamer.runtime.replay.config import Config
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.run import datasets
from dreamer.spaces import Action, Space, Spec
from dreamer.steps import Rows, Step

pytestmark = pytest.mark.usefixtures("quick")

ENV = "probes:both"  # continues exactly when it is resumed
OFFLINE = {"updates": 20, "eval__episodes": 0, "log__tensorboard": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A folder with a run of random actions in the tiny environment, and the same rows as npz."""
    where = tmp_path_factory.mktemp("data")
    run = dreamer.train(tiny(where / "run", env=ENV, replay_ratio=0, eval__episodes=0))
    convert(open_data(run), f"npz:{where / 'npz'}")
    return where


@pytest.fixture
def run(folder):
    """The run directory of the random actions."""
    return folder / "run"


def state_of(run_dir: pathlib.Path) -> list[bytes]:
    """Returns the bits of every leaf of the newest train state of the agent without networks."""
    spec = spec_of(plugins.make_env(ENV))
    form = jax.eval_shape(plain_agent(spec).init, jax.random.key(0))
    with Checkpoints(run_dir) as checkpoints:
        return [bits(leaf) for leaf in jax.tree.leaves(checkpoints.restore(form)[0])]


def offline(run_dir: pathlib.Path, *data: pathlib.Path, **overrides):
    """Returns the config of a tiny run that learns from these datasets, by default without an environment."""
    return tiny(run_dir, **{**OFFLINE, "env": NO_ENV, "data": [str(one) for one in data], **overrides})


# --- from data only -----------------------------------------------------------------------------------


def test_a_run_makes_its_updates_on_the_rows_of_the_dataset_and_collects_none(tmp_path, run):
    done = dreamer.train(offline(tmp_path / "run", run))
    rows, source = rows_of(done), rows_of(run)
    for name in ("obs/vector", "action", "reward"):
        ours, theirs = (sorted(row.tobytes() for row in one[name]) for one in (rows, source))
        assert ours == theirs and len(set(ours)) > 1, name
    found = lines(done)
    assert [line["updates"] for line in found] == [line["env_steps"] for line in found] == [*range(1, 21), 20]
    assert not {"speed/env_steps_per_s", "collect/incidents", "episode/return"} & set(found[-1])
    assert verify(done).whole


def test_the_best_and_the_mean_return_of_the_data_are_logged(tmp_path, run):
    scores = [episode.score for episode in open_data(run).read() if episode.whole]
    line = lines(dreamer.train(offline(tmp_path / "run", run)))[-1]
    assert line["data/return_best"] == pytest.approx(max(scores)) and len(set(scores)) > 1
    assert line["data/return_mean"] == pytest.approx(np.mean(scores))
    assert line["data/rows"] == 96


def test_several_datasets_of_different_formats_are_one(tmp_path, folder):
    done = dreamer.train(offline(tmp_path / "run", folder / "run", folder / "npz"))
    assert lines(done)[-1]["data/rows"] == 192
    assert lines(done)[-1]["replay/rows"] == 192


def test_a_resumed_run_needs_its_dataset_no_longer_and_ends_bit_identical(tmp_path, run):
    copy = shutil.copytree(run, tmp_path / "copy")
    whole = dreamer.train(offline(tmp_path / "whole", copy))
    part = dreamer.train(offline(tmp_path / "part", copy, updates=7))
    shutil.rmtree(copy)
    resumed = dreamer.train(offline(tmp_path / "part", copy), resume="auto")
    assert state_of(part) == state_of(whole)
    assert lines(resumed)[-1]["data/return_best"] == lines(whole)[-1]["data/return_best"]
    ours, theirs = rows_of(resumed), rows_of(whole)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)


def test_killed_a_few_times_it_ends_bit_identical(tmp_path, run):
    settings = {**OFFLINE, "env": NO_ENV, "data": [str(run)], "updates": 60, "checkpoint__every": 0.05}
    whole = dreamer.train(tiny(tmp_path / "whole", **{**killed_run.SETTINGS, **settings}))
    rng, run_dir = np.random.default_rng(0), tmp_path / "run"

    def ended() -> None:
        assert state_of(run_dir) == state_of(whole)
        assert sorted({line["updates"] for line in lines(run_dir)}) == [*range(1, 61)]
        shutil.rmtree(run_dir)

    killed_run.repeat(3, lambda: killed_run.killed(run_dir, int(rng.integers(40, 160)), settings), ended)
    assert not killed_run.killed(run_dir, 0, settings)
    ended()


def test_without_lockstep_threads_draw_and_write_back(tmp_path, run):
    done = dreamer.train(offline(tmp_path / "run", run, lockstep=False, updates_per_call=3))
    assert lines(done)[-1]["updates"] == 20


def test_a_longer_run_goes_on(tmp_path, run, capsys):
    dreamer.train(offline(tmp_path / "run", run, updates=5))
    dreamer.train(offline(tmp_path / "run", run, updates=5), resume="yes")
    assert "has made its 5 updates; give more to continue" in capsys.readouterr().out
    dreamer.train(offline(tmp_path / "run", run, updates=8), resume="yes")
    assert lines(tmp_path / "run")[-1]["updates"] == 8


def test_an_environment_is_used_to_evaluate_only(tmp_path, run, capsys):
    settings = {"env": ENV, "eval__every": 10, "eval__episodes": 3}
    done = dreamer.train(offline(tmp_path / "run", run, **settings))
    evaluated = [line["updates"] for line in lines(done) if "eval/return" in line]
    assert evaluated == [10, 20]
    assert "evaluation at 10 updates: return" in capsys.readouterr().out
    assert lines(done)[-1]["replay/rows"] == 96


def test_the_command_takes_several_datasets_and_names_no_environment_by_itself(tmp_path, folder, capsys):
    flags = {**flat(TINY), **{key.replace("__", "."): value for key, value in OFFLINE.items()}}
    del flags["env"]
    words = [word for key, value in flags.items() for word in (f"--{key}", json.dumps(value).strip('"'))]
    data = ["--data", str(folder / "run"), "--data", str(folder / "npz")]
    assert cli.main(["train", "--run-dir", str(tmp_path / "run"), *words, *data]) == 0
    out = capsys.readouterr().out
    assert "env: none, no evaluation" in out and "updates 20/20 (100%)" in out
    assert "env_steps" not in out
    assert lines(tmp_path / "run")[-1]["data/rows"] == 192


# --- a share of old rows ------------------------------------------------------------------------------

SPEC, STORAGE = Spec({"vector": Space((1,), "float32")}, Action((2,))), {"deter": Space((1,), "float32")}


def mixed(share: float, **settings) -> Replay:
    """A replay whose rows are numbered from 0, and whose old rows are numbered from 1000."""
    config = Config(batch_size=8, batch_length=3, data_share=share, online=False, capacity_gb=1, **settings)
    replay = Replay(SPEC, STORAGE, config, streams=2, old=2, seed=0, env_steps=100)
    for number in range(20):
        replay.add(step(number), {"deter": np.zeros((2, 1), np.float32)})
    for ring in (2, 3):
        rows = {name: replay.columns[name][ring] for name in replay.columns}
        rows["obs/vector"][:10, 0] = 1000 + np.arange(10)
        replay.counts[ring] = 10
    return replay


def step(number: int) -> Step:
    flags = np.zeros(2, bool)
    return Step(
        {"vector": np.full((2, 1), number, np.float32)}, np.zeros((2, 2), np.float32), np.zeros(2, np.float32), flags,
        flags, flags,
    )  # fmt: skip


@pytest.mark.parametrize("share, expected", [(0.25, {2}), (0.5, {4}), (1.0, {8}), (0.3, {2, 3})])
def test_each_batch_has_its_share_of_old_rows(share, expected):
    replay = mixed(share)
    counts = []
    for _ in range(200):
        batch, rows = replay.sample(8)
        old = batch.obs["vector"][:, 0, 0] >= 1000
        assert (old == (rows.stream >= 2)).all()
        counts.append(int(old.sum()))
    assert set(counts) == expected
    assert np.mean(counts) == pytest.approx(8 * share, abs=0.2)


def test_old_rows_count_for_nothing_but_batches():
    replay = mixed(0.5)
    assert (replay.steps, len(replay), replay.rows) == (40, 2 * (20 - 3), 60)
    assert {stream for _ in range(50) for stream in replay.sample(8, online=False)[1].stream.tolist()} == {0, 1}
    with pytest.raises(UserError, match="different numbers below 2"):
        replay.add(step(0), {"deter": np.zeros((2, 1), np.float32)}, np.array([1, 2]))


def test_latents_of_old_rows_are_refreshed_and_priorities_are_not():
    replay = mixed(1.0, uniform=0.0, priority=1.0)
    rows = Rows(np.array([0, 3]), np.array([[4, 5, 6], [4, 5, 6]]))
    replay.refresh(rows, {"deter": np.full((2, 3, 1), 7, np.float32)})
    assert (replay.columns["latent/deter"][3, 4:7] == 7).all()
    replay.prioritise(rows, np.ones((2, 3), np.float32))


def test_a_replay_without_old_rows_draws_as_before():
    """The draws of a plain replay do not depend on the share."""
    batches = []
    for share in (0.25, 0.75):
        config = Config(batch_size=8, batch_length=3, data_share=share, capacity_gb=1)
        replay = Replay(SPEC, STORAGE, config, streams=2, seed=0, env_steps=100)
        for number in range(20):
            replay.add(step(number), {"deter": np.zeros((2, 1), np.float32)})
        batches.append(replay.sample(8)[1])
    np.testing.assert_array_equal(batches[0].number, batches[1].number)


def test_a_run_that_collects_rehearses_and_resumes_bit_identical(tmp_path, run):
    settings = {"env": ENV, "data": [str(run)], "eval__episodes": 0, "replay__data_share": 0.5}
    whole = dreamer.train(tiny(tmp_path / "whole", **settings))
    part = stopped(tmp_path / "part", 20, **settings)
    dreamer.train(tiny(part, **settings), resume="yes")
    assert state_of(part) == state_of(whole)
    last = lines(whole)[-1]
    assert (last["env_steps"], last["replay/rows"], last["data/rows"]) == (96, 192, 96)
    assert verify(whole).whole


@pytest.mark.parametrize("lengths, rings", [([40, 40], 1), ([60, 50], 2), ([30] * 6, 2), ([60, 60, 60, 10], 3)])
def test_rings_for_the_episodes_of_a_dataset(lengths, rings):
    size = Replay(SPEC, STORAGE, Config(batch_length=3, capacity_gb=1), streams=1, seed=0, env_steps=100).size
    assert size.rows_per_stream == 100 and datasets.rings_for(lengths, size) == rings


def test_an_episode_longer_than_a_ring_is_named():
    size = Replay(SPEC, STORAGE, Config(batch_length=3, capacity_gb=1), streams=1, seed=0, env_steps=100).size
    with pytest.raises(UserError, match=r"an episode has 101 rows, and each ring of the replay 100; raise env_steps"):
        datasets.rings_for([101], size)


# --- what is refused ----------------------------------------------------------------------------------


def refused(config, *words: str) -> str:
    """Returns the one line with which a run is refused; nothing may be left on the disk."""
    with pytest.raises(UserError) as caught:
        dreamer.train(config)
    text = str(caught.value)
    assert "\n" not in text and not pathlib.Path(config.run_dir).exists()
    for word in words:
        assert word in text, text
    return text


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": []}, ("updates 20", "data is empty", "--data")),
        ({"updates": 0}, ("env none", "updates")),
        ({"updates": 0, "env": ENV, "replay__data_share": 0}, ("replay.data_share 0",)),
        ({"loop": "device"}, ("data:", "loop device")),
        ({"population__seeds": 2}, ("data:", "a population")),
        ({"replay__batch_length": 200}, ("96 rows", "replay.batch_length")),
        ({"replay__capacity_steps": 50}, ("96 rows", "replay.capacity_steps", "50")),
    ],
)
def test_settings_that_contradict_each_other_are_named(tmp_path, run, changes, words):
    refused(offline(tmp_path / "run", run, **changes), *words)


def test_a_run_that_collects_does_not_become_one_that_does_not(tmp_path, run):
    part = dreamer.train(offline(tmp_path / "run", run, updates=2))
    with pytest.raises(UserError, match=r"with updates 0: the run learns from data only"):
        dreamer.train(offline(part, run, updates=0, env=ENV), resume="yes")


def test_a_trial_of_a_sweep_with_data_runs_alone(run, tmp_path):
    with pytest.raises(UserError, match="a run with data learns alone"):
        plan(offline(tmp_path / "run", run))


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_outside_of_0_to_1_is_named(tmp_path, share):
    with pytest.raises(UserError, match=r"replay.data_share must be from 0 to 1, not"):
        tiny(tmp_path, replay__data_share=share)


def test_a_missing_a_foreign_and_a_truncated_file_are_named(tmp_path, folder):
    refused(offline(tmp_path / "run", tmp_path / "none"), "no such file or folder", str(tmp_path / "none"))
    foreign = tmp_path / "notes.txt"
    foreign.write_text("no rows")
    refused(offline(tmp_path / "run", foreign), "is not a dataset", str(foreign))
    cut = shutil.copytree(folder / "npz", tmp_path / "cut")
    victim = sorted(cut.glob("*.npz"))[1]
    victim.write_bytes(victim.read_bytes()[:-200])
    refused(offline(tmp_path / "run", cut), victim.name)


def test_spaces_that_differ_are_named(tmp_path, run, monkeypatch):
    text = refused(offline(tmp_path / "run", run, env="CartPole-v1"), "does not fit env 'CartPole-v1'", "--env none")
    assert "observation 'vector'" in text
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    env = DataCollector(gymnasium.make("CartPole-v1"))
    env.reset(seed=0)
    while not any(env.step(0)[2:4]):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a dataset without an author
        env.create_dataset("cartpole/left-v0", algorithm_name="left", eval_env="CartPole-v1")
        env.close()
        del env
        gc.collect()  # its temporary folder warns when it goes
    refused(offline(tmp_path / "run", run, pathlib.Path("minari:cartpole/left-v0")), "does not fit the first dataset")
    online = tiny(tmp_path / "run", env=ENV, data=["minari:cartpole/left-v0"])
    refused(online, "minari:cartpole/left-v0", f"env '{ENV}'")


def test_what_needs_an_environment_says_so_in_a_line(tmp_path, run, capsys):
    done = dreamer.train(offline(tmp_path / "run", run))
    with pytest.raises(UserError, match=r"learned from data only, and its env is none; .*--env ENV"):
        dreamer.load(done)
    assert cli.main(["eval", str(done)]) == 2
    assert "learned from data only" in capsys.readouterr().err
    assert cli.main(["eval", str(done), "--env", "CartPole-v1"]) == 2
    assert "env 'CartPole-v1': the observation 'vector' is float32 [4]" in capsys.readouterr().err
