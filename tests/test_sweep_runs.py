"""Whole sweeps of tiny runs: killed launchers, failing trials, array tasks, and a SLURM of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fake_slurm
import psutil
import pytest
import tiny_runs
import yaml

from dreamer.apps import cli
from dreamer.apps.sweep import state
from dreamer.errors import UserError
from dreamer.runtime.files import checkpoint_files
from dreamer.runtime.population.host_loop import HostPopulation

ROOT = Path(__file__).parent.parent
RATE = "agent.optimizer.learning_rate"
WITHIN = 400.0  # seconds: the test fails instead of waiting forever


def written(tmp_path: Path, axes: dict, seeds: int = 1, **settings) -> Path:
    """Writes the file of a sweep of tiny runs that only collect, and returns its path."""
    own = {key.replace("__", "."): value for key, value in settings.items()}
    base = {**tiny_runs.flat(tiny_runs.TINY), "env": "jax_probes:both", "replay_ratio": 0, **own}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"base": [base], "axes": axes, "seeds": seeds}))
    return file


def command(file: Path, root: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "dreamer", "sweep", str(file), "--run-dir", str(root), "--trust", *words]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **more}


def called(
    file: Path, root: Path, *words: str, within: float = WITHIN, **more: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(file, root, *words), env=environment(**more), capture_output=True, text=True, timeout=within
    )


@contextlib.contextmanager
def launched(file: Path, root: Path, **more: str) -> Iterator[subprocess.Popen]:
    with subprocess.Popen(command(file, root), env=environment(**more), stdout=subprocess.PIPE, text=True) as process:
        yield process


def wait_for(condition, process: subprocess.Popen, within: float = WITHIN) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def runs(root: Path) -> list[Path]:
    """Returns the run directories of a sweep. Nothing inside them is listed, because runs delete old checkpoints."""
    known = state.read(root)
    return [root / trial["run_dir"] for trial in known.trials.values()] if known else []


def collects(root: Path) -> bool:
    """Whether a run of a sweep has written metrics."""
    return any((run / "metrics.jsonl").is_file() for run in runs(root))


def left_behind(root: Path) -> list[str]:
    """Returns the command lines of the processes that still work for a sweep."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(root) in words:
            found.append(" ".join(words))
    return found


def steps_of(run_dir: Path) -> list[int]:
    return [line["env_steps"] for line in tiny_runs.lines(run_dir)]


@pytest.mark.slow
def test_a_sweep_goes_on_after_its_launcher_was_killed_and_runs_nothing_twice(tmp_path):
    axes = {RATE: [1e-4, 1e-3, 1e38], "env": ["jax_probes:both", "broken_envs:fails"]}
    file, root = written(tmp_path, axes, seeds=2, replay_ratio=2), tmp_path / "sweep"
    with launched(file, root) as process:
        wait_for(lambda: collects(root), process)
        process.kill()
    with launched(file, root) as process:
        wait_for(lambda: any(96 in checkpoint_files.steps(run) for run in runs(root)), process)
        process.kill()
    last = called(file, root)
    assert last.returncode == 1, last.stderr
    known = state.read(root)
    assert known is not None and len(known.trials) == 12
    # The environment cannot be made without its options; the largest learning rate makes the parameters infinite.
    for name, trial in known.trials.items():
        diverges, fails = trial["values"][RATE] > 1, "fails" in trial["values"]["env"]
        why = state.failure(root, name)
        if fails:
            assert why and "how" in why.cause
        elif diverges:
            assert why and "diverged" in why.cause
        else:
            assert why is None and state.ended(root / trial["run_dir"], 96)
            steps = steps_of(root / trial["run_dir"])
            assert steps == sorted(steps) and steps[-1] == 96
    assert "8 failed" in last.stdout and "4 done" in last.stdout
    before = {path: path.stat().st_mtime_ns for path in root.rglob("metrics.jsonl")}
    again = called(file, root)
    assert again.returncode == 1 and {path: path.stat().st_mtime_ns for path in before} == before
    assert not left_behind(root)


@pytest.mark.slow
def test_a_program_that_is_killed_goes_on_from_its_last_checkpoint(tmp_path):
    file, root = written(tmp_path, {}, checkpoint__every=0), tmp_path / "sweep"
    with launched(file, root) as process:
        wait_for(lambda: any(checkpoint_files.steps(run) for run in runs(root)), process)
        [child] = psutil.Process(process.pid).children()
        child.kill()
        out = process.communicate(timeout=WITHIN)[0]
    assert process.returncode == 0 and "was killed by SIGKILL; it continues from its last checkpoint" in out


def test_a_signal_to_the_launcher_saves_the_runs_and_ends_with_its_code(tmp_path):
    file, root = written(tmp_path, {}, env_steps=1_000_000), tmp_path / "sweep"
    with launched(file, root) as process:
        wait_for(lambda: collects(root), process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WITHIN)
    assert process.returncode == 143 and not left_behind(root)
    [run_dir] = [path.parent for path in root.rglob("config.yaml")]
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] != ["0"]


def test_each_program_can_be_run_by_its_number(tmp_path, capsys):
    file, root = written(tmp_path, {RATE: [1e-4, 1e-3]}), tmp_path / "sweep"
    words = ["sweep", str(file), "--run-dir", str(root), "--trust", "--pack", "off", "--compilation-cache", "off"]
    for number in ("0", "1"):
        assert cli.main([*words, "--index", number]) == 0
    assert cli.main([*words, "--status"]) == 0
    assert "2 trials: 2 done" in capsys.readouterr().out
    assert cli.main([*words, "--index", "0"]) == 0
    assert "has nothing to do" in capsys.readouterr().out
    assert cli.main([*words, "--index", "2"]) == 2
    assert "--index 2 is not a program of the sweep; give 0 to 1" in capsys.readouterr().err


def test_a_program_that_fails_is_not_run_again_unless_asked(tmp_path, capsys):
    file, root = written(tmp_path, {}, env="broken_envs:fails"), tmp_path / "sweep"
    words = ["sweep", str(file), "--run-dir", str(root), "--trust", "--compilation-cache", "off", "--index", "0"]
    assert cli.main(words) == 2
    why = state.failure(root, "seed0")
    assert why and "missing 1 required positional argument: 'how'" in why.cause and why.code == 2
    capsys.readouterr()
    assert cli.main(words) == 1
    assert "has nothing to do: failed, see --status; --retry runs them again: seed0" in capsys.readouterr().out
    assert cli.main([*words, "--retry"]) == 2


def test_a_changed_sweep_says_which_trials_are_new_and_which_are_gone(tmp_path, capsys):
    file, root = written(tmp_path, {RATE: [1e-4, 1e-3]}), tmp_path / "sweep"
    words = ["sweep", str(file), "--run-dir", str(root), "--trust", "--pack", "off", "--compilation-cache", "off"]
    assert cli.main([*words, "--index", "0"]) == 0
    written(tmp_path, {RATE: [1e-4, 1e-2]})
    assert cli.main([*words, "--print"]) == 0
    out = capsys.readouterr().out
    assert "1 trials are new" in out and "1 trials are gone, their runs stay: learning_rate=0.001" in out
    written(tmp_path, {RATE: [1, 2]})
    assert cli.main([*words, "--print"]) == 2
    assert "contains another sweep, without one trial in common" in capsys.readouterr().err


def packed(tmp_path: Path, axes: dict, **settings) -> tuple[Path, list[str]]:
    """Writes a sweep whose trials share a program, and returns its directory and the command that runs a program."""
    file, root = written(tmp_path, axes, env="probes:both", lockstep=False, **settings), tmp_path / "sweep"
    words = ["sweep", str(file), "--run-dir", str(root), "--trust", "--pack", "on", "--jobs", "1"]
    return root, [*words, "--compilation-cache", "off"]


@pytest.mark.slow
def test_a_packed_program_goes_on_without_a_trial_that_is_gone(tmp_path):
    root, words = packed(tmp_path, {RATE: [1e-4, 1e-3, 1e-2]}, env_steps=48)
    assert cli.main([*words, "--index", "0"]) == 0
    packed(tmp_path, {RATE: [1e-4, 1e-2]}, env_steps=96)
    assert cli.main([*words, "--index", "0"]) == 0
    ends = {name: steps_of(root / "program0" / f"learning_rate={name}")[-1] for name in ("0.0001", "0.001", "0.01")}
    assert ends == {"0.0001": 96, "0.001": 48, "0.01": 96}
    packed(tmp_path, {RATE: [1e-4, 1e-3, 1e-2]}, env_steps=96)
    assert cli.main([*words, "--index", "program1"]) == 0  # it comes back as a program of its own
    assert steps_of(root / "program0/learning_rate=0.001")[-1] == 96


def test_a_member_that_has_stopped_is_tried_again_alone(tmp_path, monkeypatch, capsys):
    root, words = packed(tmp_path, {RATE: [1e-4, 1e-3]})
    collect, name = HostPopulation._collect, "learning_rate=0.001"

    def collecting(population):
        collect(population)
        if name in population._alive and population._steps() >= 48:
            population._stop(name, UserError("the parameters have diverged"))

    with monkeypatch.context() as patch:
        patch.setattr(HostPopulation, "_collect", collecting)
        assert cli.main([*words, "--index", "0"]) == 1
    assert steps_of(root / "program0" / name)[-1] == 48
    assert cli.main([*words, "--index", "0", "--retry"]) == 0
    assert f"{name} had stopped in program0, and is a program of its own: --index program1" in capsys.readouterr().out
    assert cli.main([*words, "--index", "program1", "--retry"]) == 0
    steps = steps_of(root / "program0" / name)
    assert steps == sorted(steps) and steps[-1] == 96 and state.failure(root, name) is None
    assert cli.main([*words, "--status"]) == 0
    assert "2 trials: 2 done" in capsys.readouterr().out


def test_slurm_runs_every_program_once_and_a_preempted_job_goes_on(tmp_path):
    file, root, folder = written(tmp_path, {RATE: [1e-4, 1e-3]}), tmp_path / "sweep", tmp_path / "slurm"
    variables = fake_slurm.install(folder)
    (folder / "preempt").write_text(str(root))
    words = ("--on", "slurm", "--pack", "off", "--slurm.gpus", "0", "--slurm.setup", "echo begins")
    submitted = called(file, root, *words, **variables)
    assert submitted.returncode == 0 and "submitted 2 jobs" in submitted.stdout, submitted.stderr
    again = called(file, root, *words, **variables)
    assert "all programs are queued or run already" in again.stdout
    deadline = time.monotonic() + WITHIN
    while set(fake_slurm.state_of(folder).values()) & {"PENDING", "RUNNING", "REQUEUED"}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    logs = "\n".join(path.read_text() for path in root.joinpath("slurm").rglob("*.out"))
    assert set(fake_slurm.state_of(folder).values()) == {"COMPLETED"}, logs
    assert (folder / "preempted").exists()
    known = state.read(root)
    assert known and all(state.ended(known.run_dir(root, name), 96) for name in known.trials)
    assert json.loads((root / "slurm.json").read_text()).keys() == {"program0", "program1"}


@pytest.mark.parametrize("words, message", [
    (["--on", "slurm"], "this machine has no SLURM: the command sbatch is missing"),
    (["--index", "x", "--pack", "off"], "--index x is not a program of the sweep"),
])  # fmt: skip
def test_wrong_words_end_in_one_line(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    file = written(tmp_path, {})
    assert cli.main(["sweep", str(file), "--run-dir", str(tmp_path / "sweep"), "--trust", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
