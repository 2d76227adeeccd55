"""Runs without rewards are trained, resumed and imagined from, from the command line."""

from __future__ import annotations

import csv
import json
import pathlib
import subprocess
from typing import Any

import jax
import numpy as np
import pytest
import tiny_runs
from imageio_ffmpeg import get_ffmpeg_exe

import dreamer
from dreamer.apps import cli
from dreamer.apps.acting import restore
from dreamer.config import Config, load
from dreamer.runtime.log.images import read_png

SHARED: dict[str, Any] = {
    key: value for key, value in tiny_runs.flat(tiny_runs.TINY).items() if not key.startswith("agent.behavior")
}
OWN = {
    "env": "blocks:shapes", "env_options": {"steps": 12}, "agent.world_model.rewarded": False,
    "agent.behavior.name": "random", "eval.episodes": 2, "log.tensorboard": False,
}  # fmt: skip
STEPS = 20  # more than an episode has


def config(run_dir: pathlib.Path, **more: Any) -> Config:
    return load(overrides={**SHARED, **OWN, "run_dir": str(run_dir), **more})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    return dreamer.train(config(tmp_path_factory.mktemp("video") / "run"))


@pytest.fixture
def imagine(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words: str, code: int = 0, of: pathlib.Path = run) -> str:
        assert cli.main(["imagine", str(of), "--steps", str(STEPS), "--dreams", "2", *words]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return call


def scored(path: pathlib.Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["scores"]


def frames_of(path: pathlib.Path) -> int:
    """Returns how many frames ffmpeg finds in a film."""
    done = subprocess.run([get_ffmpeg_exe(), "-i", str(path), "-f", "null", "-"], capture_output=True, text=True)
    return int(done.stderr.rpartition("frame=")[2].split()[0])


def test_a_run_without_rewards_logs_none_and_is_verified(run):
    last = {name: value for line in tiny_runs.lines(run) for name, value in line.items()}
    assert {"loss/dyn", "loss/rec/image"} <= set(last) and not {"loss/rew", "loss/con"} & set(last)
    assert any(path.name.startswith("openloop") for path in (run / "pictures").iterdir())
    assert cli.main(["verify", str(run)]) == 0


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(run, tmp_path):
    parted = dreamer.train(config(tmp_path / "parted", env_steps=64, **{"eval.episodes": 0}))
    dreamer.train(config(parted, **{"eval.episodes": 0}), resume="yes")
    for ours, theirs in zip(*(jax.tree.leaves(restore(path).variables) for path in (run, parted)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_reset_is_followed_in_the_environment(imagine, tmp_path):
    printed = imagine("--video", "out/film.mp4")
    assert "PSNR above that of copying the last true frame at" in printed and "film: out/film.mp4" in printed
    found = scored(tmp_path / "out" / "film.json")
    assert [row["horizon"] for row in found] == list(range(1, 13)) and {row["dreams"] for row in found} == {2}
    with open(tmp_path / "out" / "film.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[4]["psnr"]) == found[4]["psnr"] and float(rows[4]["ssim_copy"]) == found[4]["ssim_copy"]
    assert frames_of(tmp_path / "out" / "film.mp4") == STEPS + 1
    for name in ("film_strip.png", "film_scores.png"):
        assert read_png(tmp_path / "out" / name).std() > 0


def test_the_mean_of_several_dreams_is_compared_and_a_single_dream_is_shown(imagine, tmp_path):
    imagine("--video", "one.mp4")
    imagine("--video", "mean.mp4", "--average", "5")
    one, mean = (scored(tmp_path / name) for name in ("one.json", "mean.json"))
    assert [row["mse_copy"] for row in one] == [row["mse_copy"] for row in mean]  # the same actions, the same future
    assert sum(row["mse"] for row in mean) < sum(row["mse"] for row in one)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "mean.mp4").read_bytes()


def test_recorded_rows_of_the_run_or_of_a_dataset_are_followed(imagine, run, tmp_path, capsys):
    imagine("--start", "rows", "--video", "a.mp4")
    assert cli.main(["data", str(run), "--to", f"npz:{tmp_path / 'copy'}"]) == 0
    imagine("--data", "copy", "--video", "b.mp4", "--ssim", "false")
    assert [row["mse"] for row in scored(tmp_path / "a.json")] == [row["mse"] for row in scored(tmp_path / "b.json")]
    assert scored(tmp_path / "b.json")[0]["ssim"] is None
    imagine("--start", "row:3", "--video", "c.mp4")
    assert len(scored(tmp_path / "c.json")) == 12 - 3
    # Copies do not depend on the dream: the two dreams begin in one row.
    assert scored(tmp_path / "c.json")[0]["dreams"] == 2


def test_other_actions_have_no_known_future_but_after_a_reset(imagine, tmp_path):
    np.save(tmp_path / "moves.npy", np.arange(STEPS))
    np.save(tmp_path / "picture.npy", np.zeros((50, 50, 3), np.uint8))
    for words in (["--start", "row:3", "--actions", "random"], ["--start", "picture.npy", "--actions", "moves.npy"]):
        assert "no scores: the true future under these actions is unknown" in imagine(*words)
        assert scored(tmp_path / "imagined.json") == [] and not (tmp_path / "imagined.csv").exists()
        assert frames_of(tmp_path / "imagined.mp4") == STEPS + 1
    imagine("--actions", "moves.npy", "--video", "given.mp4")
    assert len(scored(tmp_path / "given.json")) == 12


def test_a_run_of_data_alone_dreams_from_its_rows_and_from_an_environment_that_is_named(imagine, run, tmp_path):
    alone = dreamer.train(config(tmp_path / "alone", env="none", env_options={}, data=(str(run),), updates=2))
    imagine("--ssim", "false", of=alone)
    told = json.loads((tmp_path / "imagined.json").read_text())
    assert (told["start"], told["actions"], told["env"]) == ("rows", "recorded", "none") and told["scores"]
    words = ("--env", "blocks:shapes", "--env-options.steps", "7", "--start", "reset", "--ssim", "false")
    imagine(*words, of=alone)
    assert len(scored(tmp_path / "imagined.json")) == 7
    assert "name the environment to play in with --env ENV" in imagine("--start", "reset", code=2, of=alone)
    wrong = imagine("--env", "CartPole-v1", "--start", "reset", code=2, of=alone)
    assert "CartPole-v1" in wrong and wrong.count("\n") == 1


def test_what_cannot_be_imagined_is_named_in_a_line(imagine, run, tmp_path, tmp_path_factory):
    np.save(tmp_path / "wide.npy", np.zeros((STEPS, 3)))
    for words, message in (
        (["--start", "row:999"], "--start row:999: "),
        (["--start", "none.npy"], "none.npy: there is no such file"),
        (["--actions", "wide.npy"], "--actions: wide.npy holds float64 [20, 3], not [20, 20] or [2, 20, 20] or i"),
        (["--data", "nothing"], "nothing: there is no such file or folder"),
        (["--image", "depth"], "observes no image 'depth', its images are image"),
        (["--steps", "0"], "steps"),
    ):
        printed = imagine(*words, code=2)
        assert message in printed and printed.count("\n") == 1, printed
    blind = tiny_runs.trained(tmp_path_factory)
    assert "observes no image, which imagine shows" in imagine(code=2, of=blind)


def test_behaviors_that_need_rewards_are_refused_before_a_run_begins(capsys):
    words = ["--agent.behavior.name", "actor_critic", "--agent.world-model.rewarded", "false", "--run-dir", "x"]
    assert cli.main(["train", "--env", "blocks:shapes", *words]) == 2
    assert "needs cont, reward, which the world model does not predict with" in capsys.readouterr().err
