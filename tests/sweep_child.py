"""Stands for the process of a program of a sweep, in the place of `dreamer.apps.sweep.child`: trains in no time.

Its arguments, its files and its exit codes are those of a real one, and what it "learns" can be computed in a test. An
evaluation gives gain * steps, summed over what the trial has trained; the gain is the entropy of its config, or what a
descent gave it.

    gain below 5: waits after its first evaluation, until it is stopped | 13: fails
    17: is killed once | 19: kills the worker of Ray once | 21: waits once, until its node is killed
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from dreamer.apps.sweep import ray_inherit, spec, state
from dreamer.apps.sweep.child import tied
from dreamer.apps.sweep.state import Known
from dreamer.runtime.files import checkpoint_files, sealed
from dreamer.runtime.files.lock import RunLock
from dreamer.runtime.files.manifest import FORMAT, Files, Manifest
from dreamer.runtime.files.run_dir import ROWS
from dreamer.runtime.files.sealed import Seal
from dreamer.runtime.replay.store import end_name

GAIN = "agent.behavior.entropy"
RUN = "0" * 32  # the identity of every run
STATE = Seal("state-000000000000.dreamer", 1, 0)


def save(run_dir: Path, steps: int, learned: float, length: int) -> None:
    """Writes what `state.ended` and a descent look at."""
    folder = run_dir / "checkpoints" / f"{steps}"
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "learned").write_text(repr(learned))
    manifest = Manifest(steps, 0, FORMAT, Files(RUN, (), (), STATE, (0,), 1))
    content = {"meta": json.loads(json.dumps(manifest.to_json())), "leaf_crc32": {}}
    (folder / "meta" / "metadata").write_text(json.dumps(checkpoint_files.seal(content)))
    if steps >= length:
        (run_dir / ROWS).mkdir(exist_ok=True)
        head = {"run": RUN, "state": list(STATE), "logger": {"bytes": 0, "crc": 0}}
        sealed.write(run_dir / ROWS / end_name(steps), head, {})


def inherited(root: Path, known: Known, trial: str, run_dir: Path) -> None:
    """Does what `ray_inherit.catch_up` does, for the number that stands for the parameters."""
    own = [one for one in ray_inherit.lineage(root) if one.member == trial]
    if own and checkpoint_files.steps(run_dir)[-1] == own[-1].env_steps:
        at = f"{own[-1].env_steps}"
        parent = root / ray_inherit.PARENTS / at / own[-1].parent / "checkpoints" / at / "learned"
        shutil.copy(parent, run_dir / "checkpoints" / at / "learned")


def train(root: Path, known: Known, trial: str, every: int, length: int, until: int) -> int:
    """Trains one trial and returns the exit code."""
    run_dir = known.run_dir(root, trial)
    run_dir.mkdir(parents=True, exist_ok=True)
    gain = ray_inherit.newest_values(root, {trial: known.trials[trial]["values"]})[trial][GAIN]
    with RunLock(run_dir, print, print):
        (run_dir / "config.yaml").touch()
        with open(run_dir / "starts", "a") as file:
            file.write(f"{os.getpid()}\n")
        steps = (checkpoint_files.steps(run_dir) or [0])[-1]
        if steps:
            inherited(root, known, trial, run_dir)
        learned = float((run_dir / "checkpoints" / f"{steps}" / "learned").read_text()) if steps else 0.0
        while steps < length:
            if gain == 13:
                print("dreamer: error: it fails", flush=True)
                return 2
            steps += every
            learned += gain * every
            save(run_dir, steps, learned, length)
            with open(run_dir / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"env_steps": steps, "eval/return": learned}) + "\n")
            first = len((run_dir / "starts").read_text().split()) == 1
            if gain in (17, 19) and first:
                os.kill(os.getpid() if gain == 17 else os.getppid(), signal.SIGKILL)
            if (gain < 5 and not until) or (gain in (19, 21) and first):
                signal.pause()  # until SIGTERM, also from the kernel when the worker is gone
            if until and steps >= until:
                return 0
    return 0


def main(words: list[str]) -> int:
    """Runs the program that the words after `dreamer` name."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    flags = dict(zip(words[2::1], words[3::1], strict=False))
    root = Path(flags["--run-dir"])
    known = state.read(root)
    assert known
    (base,) = spec.read(words[1]).base
    program = next(one for one in known.programs if one.name == flags["--index"])
    until = int(flags.get("--until", 0))
    return max(train(root, known, one, base["eval.every"], base["env_steps"], until) for one in program.trials)


if __name__ == "__main__":
    sys.exit(main(sys.argv[3:]) if tied(int(sys.argv[1]), {int(core) for core in sys.argv[2].split(",")}) else 143)
