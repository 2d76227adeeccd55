"""A sweep of 24 packed trials, with others that diverge, raise, hang and die, while its launcher is killed twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats
from test_sweep_runs import called, collects, launched, left_behind, runs, wait_for

from dreamer.apps.report import ranking
from dreamer.apps.report.sweep import read_sweep
from dreamer.apps.sweep import state
from dreamer.runtime.files import checkpoint_files

pytestmark = pytest.mark.slow
pytest.importorskip("gymnax")

RATE, ENTROPY = "agent.optimizer.learning_rate", "agent.behavior.entropy"
STEPS = 5000
WITHIN = 7200.0  # seconds
EVERY = 1000  # env steps between evaluations
INFINITE = 1e38  # a learning rate that makes the parameters infinite
FAILURES = {"raises": "the cable is loose", "hangs": "has not answered for 10", "dies": "died with signal SIGKILL"}
ROWS = [(rate, entropy) for rate in (3e-4, 6e-4, 1.2e-3) for entropy in (3e-4, 3e-3)]
SEEDS = 4
OPTIMIZED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}  # the runs are long, unlike those of other tests


def sweep_file(folder: Path) -> Path:
    """Writes a sweep of 6 settings of CartPole, the last of which diverges, and of 3 environments that fail."""
    rates = [rate for rate, _ in ROWS[:-1]] + [INFINITE] + [6e-4] * 3
    entropies = [entropy for _, entropy in ROWS] + [3e-4] * 3
    envs = ["gymnax:CartPole-v1"] * len(ROWS) + [f"ending_envs:{name}" for name in FAILURES]
    backends = ["auto"] * len(ROWS) + ["processes"] * 3
    own = {
        "env_steps": STEPS, "workers.timeout": 10, "workers.restarts": 0, "checkpoint.every": 30, "log.every": 5,
        "eval.every": EVERY, "eval.episodes": 10, "eval.video": "off",
    }  # fmt: skip
    axes = {RATE: rates, ENTROPY: entropies, "env": envs, "workers.backend": backends}
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({"base": ["quickstart", own], "axes": axes, "zip": [[*axes]], "seeds": SEEDS}))
    return file


def last_evaluation(run_dir: Path) -> float:
    """Reads the return of the last evaluation from the file, without any code of the report."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return next(line["eval/return"] for line in reversed(lines) if "eval/return" in line)


def test_a_sweep_with_failing_trials_ends_under_kills_and_its_report_is_right(tmp_path):
    file, root = sweep_file(tmp_path), tmp_path / "sweep"
    with launched(file, root, **OPTIMIZED) as process:
        wait_for(lambda: collects(root), process, WITHIN)
        process.kill()
    with launched(file, root, **OPTIMIZED) as process:
        wait_for(lambda: saved_after(root, EVERY), process, WITHIN)
        process.kill()
    last = called(file, root, within=WITHIN, **OPTIMIZED)
    assert last.returncode == 1, last.stderr
    assert not left_behind(root)

    known = state.read(root)
    assert known is not None and len(known.trials) == (len(ROWS) + len(FAILURES)) * SEEDS
    packed = [program for program in known.programs if len(program.trials) > 1]
    assert sum(len(program.trials) for program in packed) == len(ROWS) * SEEDS
    scores: dict[str, list[float]] = {}
    for name, trial in known.trials.items():
        values, why = trial["values"], state.failure(root, name)
        fails = values["env"].removeprefix("ending_envs:")
        if fails in FAILURES:
            assert why and FAILURES[fails] in why.cause, (name, why)
        elif values[RATE] == INFINITE:
            assert why and "diverged" in why.cause, (name, why)
        else:
            assert why is None and state.ended(root / trial["run_dir"], STEPS), name
            lines = (root / trial["run_dir"] / "metrics.jsonl").read_text().splitlines()
            steps = [json.loads(line)["env_steps"] for line in lines]
            assert steps == sorted(steps) and steps[-1] == STEPS
            scores.setdefault(json.dumps(values), []).append(last_evaluation(root / trial["run_dir"]))
    assert {len(own) for own in scores.values()} == {SEEDS} and len(scores) == len(ROWS) - 1

    before = {path: path.stat().st_mtime_ns for path in root.rglob("metrics.jsonl")}
    assert called(file, root, **OPTIMIZED).returncode == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    check_report(root, scores)


def saved_after(root: Path, step: int) -> bool:
    """Whether a run of a sweep has a checkpoint at `step` or later."""
    return any((checkpoint_files.steps(run) or [0])[-1] >= step for run in runs(root))


def check_report(root: Path, scores: dict[str, list[float]]) -> None:
    """Compares the ranking of a sweep with numbers computed here. scores {setting as JSON: scores of its seeds}"""
    [(_, part)] = [one for one in ranking.by_task(read_sweep(root)) if "CartPole" in one[0]]
    found = {json.dumps(dict(one.setting.values)): one for one in ranking.rank("cartpole", part).results}
    assert set(scores) <= set(found)
    best = max(scores, key=lambda key: float(np.mean(scores[key])))
    for key, own in scores.items():
        result = found[key]
        assert result.mean == pytest.approx(np.mean(own))
        assert result.iqm == pytest.approx(stats.trim_mean(own, 0.25))
        if key != best:
            higher = np.subtract.outer(scores[best], own)
            assert result.improvement == pytest.approx(np.mean(higher > 0) + np.mean(higher == 0) / 2)
