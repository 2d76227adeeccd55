"""Every error of the user ends with one line that names the cause and exit code 2, and loses nothing written before."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import types
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import pytest
from tiny_runs import lines, saved, tiny, trained

import dreamer
from dreamer import trust
from dreamer.apps import cli
from dreamer.config import to_yaml
from dreamer.errors import UserError
from dreamer.runtime.devices import programs
from dreamer.runtime.learning.collector import Collector
from dreamer.runtime.learning.device_rows import DeviceRows
from dreamer.runtime.log import sinks

PREFIX = "dreamer: error: "


@pytest.fixture
def run(tmp_path) -> Path:
    """The run directory of this test."""
    return tmp_path / "run"


@pytest.fixture
def preset(tmp_path):
    """Writes the tiny config with overrides as a preset and returns its path."""

    def write(run: Path, **overrides) -> str:
        path = tmp_path / "preset.yaml"
        path.write_text(to_yaml(tiny(run, **overrides)))
        return str(path)

    return write


def error_line(capsys, *args: str) -> str:
    """Runs a command that must end with code 2, and returns its only line on stderr."""
    assert cli.main([*args, "--trust"] if args[0] == "train" else args) == 2
    err = capsys.readouterr().err
    assert err.startswith(PREFIX) and err.count("\n") == 1 and err.endswith("\n"), err
    return err


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# ---- refused before anything is written


UNUSABLE = pytest.mark.parametrize(
    "env, options, parts",
    [
        ("broken_envs:fails", {"how": "spaces"}, ["broken_envs:fails", "Text", "supported are Box"]),
        ("broken_envs:fails", {"how": "action space"}, ["broken_envs:fails", "Text", "Discrete, MultiDiscrete"]),
        ("broken_envs:fails", {"howw": "nan"}, ["broken_envs:fails", "'howw'", "did you mean 'how'?"]),
        ("no_such_lab.envs:make", {}, ["no module 'no_such_lab'", "no_such_lab.envs:make"]),
        ("no_such_suite:walk", {}, ["no suite envs/no_such_suite.py", "no module 'no_such_suite'"]),
        ("broken_envs:sund", {}, ["'broken_envs' has no 'sund'", "did you mean"]),
        ("CartPol-v1", {}, ["CartPol-v1", "no registered gymnasium id", "did you mean 'CartPole-v1'?"]),
        ("raises_at_import:make", {}, ["raises_at_import", "failed to import", "RuntimeError: no licence", "line 1"]),
        ("needs_a_package:make", {}, ["needs_a_package", "failed to import", "No module named 'not_installed'"]),
    ],
)


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """Makes a current folder with a module that raises, and one that imports a missing package."""
    (tmp_path / "raises_at_import.py").write_text("raise RuntimeError('no licence')")
    (tmp_path / "needs_a_package.py").write_text("import not_installed")
    monkeypatch.chdir(tmp_path)


@UNUSABLE
def test_an_environment_that_cannot_be_used(capsys, preset, modules, run, env, options, parts):
    line = error_line(capsys, "train", preset(run, env=env, env_options=options))
    for part in parts:
        assert part in line, line
    assert not run.exists()


@pytest.mark.parametrize("env, options", [("broken_envs:fails", {"how": "spaces"}), ("raises_at_import:make", {})])
def test_worker_processes_raise_the_same_line(capsys, preset, modules, run, env, options):
    here = error_line(capsys, "train", preset(run, env=env, env_options=options))
    there = error_line(capsys, "train", preset(run, env=env, env_options=options, workers__backend="processes"))
    assert here == there
    assert not run.exists()


@pytest.mark.parametrize(
    "overrides, parts",
    [
        ({"replay__capacity_steps": 10}, ["replay.capacity_steps leaves 5 rows", "one sequence", "needs 9"]),
        ({"env_steps": 10}, ["env_steps leaves 5 rows", "needs 9"]),
        ({"replay__capacity_gb": 1e-6}, ["replay.capacity_gb leaves", "needs 9"]),
        (
            {"replay__capacity_gb": 1e6, "replay__capacity_steps": 10**13, "env_steps": 10**13},
            ["replay.capacity_gb", "GB are free"],
        ),
    ],
)
def test_a_replay_that_is_too_small_or_too_large(capsys, preset, run, overrides, parts):
    line = error_line(capsys, "train", preset(run, **overrides))
    for part in parts:
        assert part in line, line
    assert not run.exists()


def test_a_preset_with_an_unknown_key(capsys, tmp_path, run):
    path = tmp_path / "mine.yaml"
    path.write_text(f"seed: 1\nrun_dir: {run}\nreplay:\n  batch_sise: 4\n")
    line = error_line(capsys, "train", str(path))
    assert "unknown key 'replay.batch_sise'" in line and f"{path}:4" in line and "'replay.batch_size'" in line
    assert not run.exists()


def test_a_run_directory_that_cannot_be_made(capsys, tmp_path, preset):
    (tmp_path / "file").touch()
    assert f"cannot write {tmp_path}/file/run" in error_line(capsys, "train", preset(tmp_path / "file" / "run"))


def test_a_run_directory_that_holds_a_run_is_left_as_it_is(capsys, tmp_path_factory, preset):
    base = trained(tmp_path_factory)
    before = contents(base)
    assert f"run_dir {base} already holds a run" in error_line(capsys, "train", preset(base))
    assert contents(base) == before


# ---- an environment that breaks while it is used


@pytest.mark.parametrize(
    "how, restarts, parts",
    [
        ("outside", 0, ["key 'vector' at [2] is 7", "outside its space's bounds"]),
        ("raise", 3, ["failed: RuntimeError: the cable is loose", "broken_envs.py", "(incident 4 in a row)"]),
    ],
)
def test_an_environment_that_breaks_its_promises(capsys, preset, run, how, restarts, parts):
    options = {"how": how, "after": 3}
    path = preset(run, env="broken_envs:fails", env_options=options, workers__restarts=restarts)
    line = error_line(capsys, "train", path)
    for part in ["env 'broken_envs:fails #0'", *parts]:
        assert part in line, line
    assert lines(run)[-1]["env_steps"] == saved(run)[1]["env_steps"] == 6 * (1 + restarts)


def test_a_nan_in_the_middle_of_training_loses_nothing(capsys, preset, run):
    options = {"how": "nan", "after": 20}
    path = preset(run, env="broken_envs:fails", env_options=options, workers__restarts=0)
    line = error_line(capsys, "train", path)
    assert "env 'broken_envs:fails #0', episode 4, step 5: key 'vector' at [1] is nan" in line
    found, (_, meta) = lines(run), saved(run)
    assert any("loss/dyn" in line for line in found)
    assert meta == {name: found[-1][name] for name in meta} and meta["updates"] > 0


def test_a_save_after_the_collecting_thread_has_failed_names_what_it_failed_of(run):
    def on_line(line):
        """Lets the thread collect until it fails, and then asks for an evaluation, which saves first."""
        for thread in threading.enumerate():  # it may have ended already
            if thread.name == "collector":
                thread.join()
        return "evaluate"

    config = tiny(run, lockstep=False, env="broken_envs:fails", env_options={"how": "raise", "after": 3},
                  workers__restarts=0, workers__backend="processes", replay_ratio=0)  # fmt: skip
    with pytest.raises(UserError, match="the cable is loose") as failure:
        dreamer.train(config, callbacks=[on_line], trust=True)
    assert "closed its sockets" not in str(failure.value) and (run / "error.txt").exists()


def test_an_environment_that_fails_sometimes_is_reported_and_the_run_continues(capsys, preset, run):
    overrides = {"env_steps": 60, "replay_ratio": 0, "eval__episodes": 0}
    options = {"how": "raise", "after": 18}
    assert cli.main(["train", preset(run, env="broken_envs:fails", env_options=options, **overrides), "--trust"]) == 0
    std = capsys.readouterr()
    assert "environment restarted: env 'broken_envs:fails #1' failed: RuntimeError: the cable" in std.out + std.err
    assert lines(run)[-1]["env_steps"] == 60


# ---- a disk that is full


class NearlyFull:
    """A file on a disk with `room` bytes: the last write is done in part, and the next one fails."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_no_space_for_metrics(capsys, monkeypatch, preset, run):
    monkeypatch.setattr(sinks, "open", lambda *args, **kwargs: NearlyFull(open(*args, **kwargs), 3000), raising=False)
    line = error_line(capsys, "train", preset(run, replay_ratio=0))
    assert f"no space left on the disk of {run}/metrics.jsonl" in line and "bytes free" in line
    assert 2000 < (run / "metrics.jsonl").stat().st_size <= 3000
    assert lines(run)[-1]["env_steps"] + 2 == saved(run)[1]["env_steps"]


def test_no_space_for_a_checkpoint(capsys, monkeypatch, preset, run):
    save = ocp.CheckpointManager.save

    def refuse_late(self, step, **kwargs):
        if step > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, step, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", refuse_late)
    line = error_line(capsys, "train", preset(run, checkpoint__every=0))
    assert f"no space left on the disk of {run}/checkpoints" in line and "bytes free" in line
    assert sorted(file.name for file in (run / "checkpoints").iterdir()) == ["6", "8"]
    assert saved(run)[1]["env_steps"] == 8
    assert lines(run)[-1]["env_steps"] == 10


# ---- a device that has no memory left, or is gone


class FailingUpdate:
    """An update that fails like a device: while compiling, or at the second call, when its state is already donated."""

    def __init__(self, update, text: str, compiles: bool):
        self.update, self.text, self.compiles, self.calls = update, text, compiles, 0

    def lower(self, *args):
        return self

    def compile(self):
        if not self.compiles:
            raise jax.errors.JaxRuntimeError(self.text)
        return self

    def memory_analysis(self):
        return types.SimpleNamespace(temp_size_in_bytes=3.5e9)

    def __call__(self, state, batch):
        self.calls += 1
        if self.calls == 2:
            jax.tree.map(lambda x: x.delete(), state)
            raise jax.errors.JaxRuntimeError(self.text)
        return self.update(state, batch)


@pytest.fixture
def failing(monkeypatch):
    def fail(text: str, compiles: bool = True) -> None:
        jit_update = programs.jit_update
        monkeypatch.setattr(programs, "jit_update", lambda *args: FailingUpdate(jit_update(*args), text, compiles))

    return fail


MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.\nmore"


def test_no_device_memory_to_compile_saves_the_state(capsys, failing, preset, run):
    failing(MEMORY, compiles=False)
    line = error_line(capsys, "train", preset(run))
    for part in (
        "no device memory left for compiling the update", "the train state takes", "replay.batch_size (2)",
        "replay.batch_length (8)", "agent.behavior.imagine_length (", "agent.world_model", "devices.fsdp (1)",
        "allocate 17179869184 bytes",
    ):  # fmt: skip
        assert part in line, line
    found = lines(run)[-1]
    assert saved(run)[1] == {"env_steps": found["env_steps"], "updates": 0} and found["env_steps"] > 0


@pytest.mark.parametrize("lockstep", [True, False])
def test_no_device_memory_for_an_update_keeps_the_rows(capsys, failing, monkeypatch, preset, run, lockstep):
    failing(MEMORY)
    path = preset(run, lockstep=lockstep, replay__flush=0.0)
    line = error_line(capsys, "train", path)
    assert "no device memory left for an update" in line and "the update 3.5 GB in addition" in line
    assert saved(run)[1] == {"env_steps": 0, "updates": 0}
    monkeypatch.undo()
    assert cli.main(["train", path, "--trust", "--resume", "--env-steps", "60"]) == 0
    out = capsys.readouterr().out
    assert "rows flushed after the checkpoint" in out or lockstep
    assert lines(run)[-1]["env_steps"] >= 60


def test_no_device_memory_to_draw_a_batch_saves_what_was_learned(capsys, monkeypatch, preset, run):
    sample, calls = DeviceRows.sample, []

    def fail(self, batch_size):
        calls.append(batch_size)
        if len(calls) == 4:
            raise jax.errors.JaxRuntimeError(MEMORY)
        return sample(self, batch_size)

    monkeypatch.setattr(DeviceRows, "sample", fail)
    line = error_line(capsys, "train", preset(run, replay__on_device=True))
    assert "no device memory left for drawing a batch" in line and "leave replay.on_device off" in line
    assert saved(run)[1]["updates"] == 3


def test_a_device_that_fails_while_acting_saves_what_was_learned(capsys, monkeypatch, preset, run):
    collect = Collector.collect

    def fail(self, snapshot, *args):
        if snapshot.updates == 3:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: socket closed")
        return collect(self, snapshot, *args)

    monkeypatch.setattr(Collector, "collect", fail)
    line = error_line(capsys, "train", preset(run))
    assert "a device failed or is gone while acting" in line
    assert saved(run)[1]["updates"] == 3


def test_a_lost_device_is_reported(capsys, failing, preset, run):
    failing("UNAVAILABLE: TPU worker 3 stopped answering")
    line = error_line(capsys, "train", preset(run))
    assert "a device failed or is gone while an update" in line and "--resume" in line and "worker 3" in line


def test_another_error_of_an_update_is_one_line_with_its_traceback_in_a_file(capsys, failing, preset, run):
    failing("INVALID_ARGUMENT: a bug")
    line = error_line(capsys, "train", preset(run))
    assert "JaxRuntimeError: INVALID_ARGUMENT: a bug" in line and f"details: {run}/error.txt" in line
    assert "Traceback" in (run / "error.txt").read_text()


# ---- missing checkpoints, and checkpoints of another config


@pytest.fixture
def copy(tmp_path, tmp_path_factory) -> Path:
    """A copy of a trained run, to damage."""
    return Path(shutil.copytree(trained(tmp_path_factory), tmp_path / "copy"))


def edit_sealed(path: Path, old: str, new: str) -> None:
    """Changes the config of a run and seals it again, which only this user can do."""
    text, run, _ = trust.unsealed(path.read_text())
    assert run and text.count(old) == 1
    path.write_text(trust.sealed_text(text.replace(old, new), run))


def test_a_checkpoint_of_another_config(capsys, copy):
    edit_sealed(copy / "config.yaml", "deter: 16\n", "deter: 32\n")
    line = error_line(capsys, "eval", str(copy))
    assert f"checkpoint 96 in {copy}/checkpoints is of another config" in line
    assert "in the checkpoint" in line and "in this config" in line and "world_model" in line


def test_a_config_that_was_edited_wrongly(capsys, copy):
    edit_sealed(copy / "config.yaml", "deter:", "detter:")
    line = error_line(capsys, "eval", str(copy))
    assert f"{copy}/config.yaml" in line and "agent.world_model.detter" in line and "agent.world_model.deter'" in line


def test_a_run_without_checkpoints(capsys, copy):
    shutil.rmtree(copy / "checkpoints")
    assert f"no checkpoint in {copy}/checkpoints" in error_line(capsys, "eval", str(copy))


def test_a_directory_without_a_run(capsys, tmp_path):
    assert f"no run at {tmp_path}: it holds no config.yaml" in error_line(capsys, "eval", str(tmp_path))
    assert "there is no such directory" in error_line(capsys, "eval", str(tmp_path / "nowhere"))


def test_a_video_that_cannot_be_written(capsys, tmp_path, tmp_path_factory):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "episode.mp4"
    line = error_line(capsys, "eval", str(trained(tmp_path_factory)), "--episodes", "1", "--video", str(path))
    assert f"cannot write {path}" in line
