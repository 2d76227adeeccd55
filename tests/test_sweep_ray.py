"""Sweeps on Ray: what is refused, the rules of the schedulers held against Tune's own, suggestions, and inheritance."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from dreamer.apps import cli
from dreamer.apps.sweep import ray_cluster, ray_config, ray_inherit, ray_scores, ray_trial, spec, state
from dreamer.apps.sweep.packing import Program
from dreamer.apps.sweep.ray_config import Config
from dreamer.apps.sweep.ray_scores import Score
from dreamer.apps.sweep.trials import trials_of
from dreamer.errors import UserError
from dreamer.runtime.population.exploit import Descent

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of ray's own modules
GAIN, DETER = "agent.behavior.entropy", "agent.world_model.deter"


def written(tmp_path: Path, axes: dict, base: dict | None = None, **top: Any) -> Path:
    file = tmp_path / "sweep.yaml"
    own = {"env_steps": 160, "eval.every": 20, "eval.episodes": 2, **(base or {})}
    file.write_text(yaml.safe_dump({"base": [own], "axes": axes, **top}))
    return file


def sweep_of(tmp_path: Path, axes: dict, **top: Any) -> tuple[spec.Sweep, list]:
    sweep = spec.read(str(written(tmp_path, axes, **top)))
    return sweep, trials_of(sweep, spec.base_config(sweep))


# ---- what is refused


def called(tmp_path: Path, axes: dict, *words: str, **top: Any) -> int:
    return cli.main(["sweep", str(written(tmp_path, axes, **top)), "--run-dir", str(tmp_path / "sweep"), *words])


@pytest.mark.parametrize("words, top, message", [
    (["--on", "local"], {"search": "tpe", "samples": 3}, "search: tpe suggests trials.*give --on ray"),
    (["--ray.scheduler", "asha"], {}, "--ray.scheduler asha is one of Ray Tune: give --on ray"),
    (["--on", "ray", "--ray.scheduler", "ashe"], {}, "did you mean 'asha'"),
    (["--on", "ray", "--pack", "on"], {"search": "tpe", "samples": 3}, "none share a program: leave out --pack"),
    (["--on", "ray"], {"search": "tpe"}, "search: tpe needs samples"),
    (["--on", "ray", "--ray.reduction-factor", "1"], {}, "ray.reduction_factor"),
])  # fmt: skip
def test_wrong_words_end_in_one_line(tmp_path, capsys, words, top, message):
    assert called(tmp_path, {GAIN: [1, 2]}, *words, **top) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    message = r"--on ray needs the package 'optuna': pip install \"dreamer-jax\[distributed\]\""
    with pytest.raises(UserError, match=message):
        ray_cluster.libraries()


def test_an_address_where_nothing_listens_is_refused_at_once(tmp_path):
    config = Config(address="127.0.0.1:9")
    with pytest.raises(UserError, match="--ray.address: no Ray cluster answers at 127.0.0.1:9"):
        with ray_cluster.connected(tmp_path, config, 1):
            pass


WRONG: dict[str, tuple[dict, dict, str]] = {
    "zip": ({GAIN: [1, 2], "agent.horizon": [5, 6]}, {"zip": [[GAIN, "agent.horizon"]]}, "leave out zip"),
    "no axis": ({}, {"seeds": 2}, "at least one axis"),
    "no number": ({"env": ["a", "b"]}, {}, "axes.env is not a number"),
    "lengths": ({"env_steps": [100, 200]}, {}, "trials of equal env_steps"),
    "evaluations": ({GAIN: [1, 2]}, {"base": {"eval.every": 30}}, "eval.every so that it divides"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_sweep_that_pbt_cannot_train_is_refused(tmp_path, what):
    axes, top, message = WRONG[what]
    sweep, trials = sweep_of(tmp_path, axes, **top)
    with pytest.raises(UserError, match=message):
        ray_config.check(Config(scheduler="pbt", perturb_every=40), sweep, trials, [])


def test_a_scheduler_refuses_trials_that_share_a_program(tmp_path):
    sweep, trials = sweep_of(tmp_path, {GAIN: [1, 2]})
    shared = Program("program0", tuple(trial.name for trial in trials))
    with pytest.raises(UserError, match="program0 trains 2 trials in one program: give --pack off"):
        ray_config.check(Config(scheduler="asha"), sweep, trials, [shared])


def test_pbt_refuses_an_axis_that_changes_the_program():
    plans = [SimpleNamespace(program="a"), SimpleNamespace(program="b")]
    with pytest.raises(UserError, match="changes the program of the agent"):
        ray_config.check_numbers("pbt", plans)
    ray_config.check_numbers("pbt", plans[:1])
    ray_config.check_numbers("asha", plans)


# ---- shares and cores


def node(cpus: int, gpus: int = 0, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}}


@pytest.mark.parametrize("config, nodes, jobs, expected", [
    (Config(), [node(8)], 0, (1, 0)),
    (Config(), [node(8)], 2, (4, 0)),
    (Config(), [node(8), node(4, alive=False)], 4, (2, 0)),
    (Config(), [node(32, 4), node(16)], 0, (8, 1)),
    (Config(gpus=0.5), [node(32, 4)], 0, (4, 0.5)),
    (Config(gpus=0), [node(32, 4)], 0, (1, 0)),
    (Config(cpus=3), [node(8)], 0, (3, 0)),
])  # fmt: skip
def test_a_program_takes_an_even_share_of_a_machine(config, nodes, jobs, expected):
    assert ray_cluster.share_of(config, nodes, jobs) == expected


def test_more_than_a_machine_has_is_refused():
    with pytest.raises(UserError, match="no machine of the cluster has 9 CPUs and 0 GPUs for a program; it has 8 CPUs"):
        ray_cluster.share_of(Config(cpus=9), [node(8)], 0)


def test_trials_on_one_machine_have_cores_of_their_own():
    cores = [100_001, 100_002, 100_003]
    first, held = ray_trial.claim_cores(cores, 2)
    second, more = ray_trial.claim_cores(cores, 1)
    crowded, none = ray_trial.claim_cores(cores, 1)
    assert (first, second, crowded, none) == ((100_001, 100_002), (100_003,), tuple(cores), [])
    for claim in (*held, *more):
        claim.close()
    again, held = ray_trial.claim_cores(cores, 3)
    assert again == tuple(cores)
    for claim in held:
        claim.close()


def test_a_part_of_a_gpu_is_a_part_of_its_memory_and_rays_own_variables_stay_behind():
    job = ray_trial.Job("root", (), {"JAX_X": "1"}, ".", "eval/return", 1, 0.5)
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "3"}
    assert ray_trial.environment_of(job, own) == {
        "CUDA_VISIBLE_DEVICES": "3", "JAX_X": "1", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"
    }  # fmt: skip


# ---- scores


def metrics(run_dir: Path, lines: list[dict], more: str = "") -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + more)


def test_scores_are_the_evaluations_and_damaged_lines_are_skipped(tmp_path):
    lines = [{"env_steps": 10, "eval/return": 1.0}, {"env_steps": 15}, {"env_steps": 20, "eval/return": 3.0}]
    metrics(tmp_path, lines, '{"env_steps": 30, "eval/return"')
    assert ray_scores.of_run(tmp_path, "eval/return") == [Score(10, 1.0), Score(20, 3.0)]


def test_without_evaluations_the_score_is_the_mean_of_the_last_tenth_of_training(tmp_path):
    metrics(tmp_path, [{"env_steps": at, "episode/return": float(at)} for at in (10, 91, 95, 100)])
    assert ray_scores.of_run(tmp_path, "episode/return")[-1] == Score(100, pytest.approx((91 + 95 + 100) / 3))


def test_the_score_of_a_program_is_the_mean_of_its_trials(tmp_path):
    metrics(tmp_path / "a", [{"env_steps": 10, "eval/return": 1.0}, {"env_steps": 20, "eval/return": 5.0}])
    metrics(tmp_path / "b", [{"env_steps": 10, "eval/return": 3.0}])
    assert ray_scores.of_program([tmp_path / "a", tmp_path / "b"], "eval/return") == [Score(10, 2.0)]


# ---- schedulers, held against those of Tune


class Controller:
    """As much of Tune's controller as a scheduler sees."""

    def __init__(self, trials: list):
        self.search_alg, self.trials = None, trials

    def get_trials(self) -> list:
        return self.trials

    def get_live_trials(self) -> list:
        return [trial for trial in self.trials if not trial.is_finished()]

    def pause_trial(self, trial: Any, should_checkpoint: bool = True) -> None:
        trial.status = "PAUSED"

    def _schedule_trial_save(self, trial: Any, result: Any) -> str:
        return "checkpoint"


class TuneTrial:
    """As much of a trial of Tune as a scheduler sees."""

    def __init__(self, name: str, values: dict | None = None):
        manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None), _latest_checkpoint_result=None)
        self.trial_id = self.experiment_tag = name
        self.config = {"program": {"name": name, "trials": {name: ["", 0]}}, **(values or {})}
        self.status, self.checkpoint, self.evaluated_params = "RUNNING", "checkpoint", {}
        self.temporary_state = SimpleNamespace(saving_to=None)
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager)

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")

    def set_config(self, config: dict) -> None:
        self.config = config

    def set_experiment_tag(self, tag: str) -> None:
        self.experiment_tag = tag


def stream(trials: int, evaluations: int, seed: int) -> list[tuple[str, int, float]]:
    """Returns reports (trial, steps, score) in an order that varies from trial to trial."""
    rng = np.random.default_rng(seed)
    each = [(i, j) for i in range(trials) for j in range(evaluations)]
    found = [(f"t{i}", 10 * (j + 1), float(rng.normal() + i * j / 4)) for i, j in each]
    order = rng.permutation(len(found))
    at = {name: iter([one for one in found if one[0] == name]) for name, _, _ in found}
    return [next(at[found[n][0]]) for n in order]


def stopped_by_tune(reports: list, grace: int, factor: float, mode: str) -> set[str]:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    tune = AsyncHyperBandScheduler(
        "env_steps", "score", mode, max_t=200, grace_period=grace, reduction_factor=factor, stop_last_trials=False
    )
    stopped: set[str] = set()
    for name in dict.fromkeys(name for name, _, _ in reports):
        tune.on_trial_add(None, SimpleNamespace(trial_id=name))
    for name, steps, score in reports:
        result = {"env_steps": steps, "score": score}
        if name not in stopped and tune.on_trial_result(None, SimpleNamespace(trial_id=name), result) == "STOP":
            stopped.add(name)
    return stopped


@pytest.mark.parametrize("grace, factor, mode, seed", [(10, 2, "max", 0), (20, 3, "max", 1), (30, 4, "min", 2)])
def test_asha_stops_the_trials_that_tune_would_stop(tmp_path, grace, factor, mode, seed):
    from dreamer.apps.sweep.ray_schedule import Asha

    reports = stream(9, 20, seed)
    asha = Asha(tmp_path, Config(grace_period=grace, reduction_factor=factor), mode, 200, {})
    trials = {name: TuneTrial(name) for name, _, _ in reports}
    for trial in trials.values():
        asha.on_trial_add(None, trial)
    for name, steps, score in reports:
        if not state.early(tmp_path, name):
            assert asha.on_trial_result(None, trials[name], {"env_steps": steps, "score": score}) == "CONTINUE"
    stopped = {name for name in trials if state.early(tmp_path, name)}
    assert stopped == stopped_by_tune(reports, grace, factor, mode)
    assert 2 <= len(stopped) < 9


def test_asha_knows_its_rungs_after_a_restart(tmp_path):
    from dreamer.apps.sweep.ray_schedule import Asha

    reports = stream(9, 20, 3)
    half = len(reports) // 2
    before = stopped_by_tune(reports[:half], 10, 2, "max")
    alive = [one for n, one in enumerate(reports) if n >= half or one[0] not in before]
    history = {
        name: [Score(steps, score) for own, steps, score in reports[:half] if own == name]
        for name in dict.fromkeys(name for name, _, _ in reports)
    }
    asha = Asha(tmp_path, Config(grace_period=10, reduction_factor=2), "max", 200, history)
    for name, steps, score in alive[len(alive) - (len(reports) - half):]:
        if name not in before and not state.early(tmp_path, name):
            trial = TuneTrial(name)
            asha.on_trial_add(None, trial)
            asha.on_trial_result(None, trial, {"env_steps": steps, "score": score})
    after = {name for name in history if state.early(tmp_path, name)}
    assert before | after == stopped_by_tune(reports, 10, 2, "max")


def known_of(tmp_path: Path, gains: list) -> tuple[state.Known, dict]:
    sweep, trials = sweep_of(tmp_path, {GAIN: gains})
    programs = tuple(Program(f"program{n}", (trial.name,)) for n, trial in enumerate(trials))
    known = state.Known({}, state.entries(trials, programs), programs)
    state.write(tmp_path, known)
    return known, {trial.name: trial.config for trial in trials}


def pbt_of(tmp_path: Path, known: state.Known, configs: dict, every: int = 20, **config: Any) -> Any:
    from dreamer.apps.sweep.ray_schedule import Pbt

    axis = spec.axis(GAIN, {"loguniform": [1e-3, 10]})
    return Pbt(tmp_path, known, Config(**config), "max", every, [axis], configs, seed=5)


def saved_at(known: state.Known, root: Path, steps: int) -> None:
    for name in known.trials:
        (known.run_dir(root, name) / "checkpoints" / str(steps)).mkdir(parents=True, exist_ok=True)


def compare(scheduler: Any, trials: list, scores: list[float], steps: int, every: list | None = None) -> None:
    """Reports the scores of all trials, in order, as Tune does."""
    controller = Controller(every or trials)
    for trial, score in zip(trials, scores, strict=True):
        trial.status = "RUNNING"
        if scheduler.on_trial_result(controller, trial, {"env_steps": steps, "score": score}) == "PAUSE":
            trial.status = "PAUSED"


def test_pbt_makes_the_choices_of_tune(tmp_path):
    from ray.tune.schedulers import PopulationBasedTraining

    gains, scores = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [3.0, 8.0, 1.0, 5.0, 2.0, 7.0, 4.0, 6.0]
    known, configs = known_of(tmp_path, gains)
    saved_at(known, tmp_path, 20)
    ours = [TuneTrial(name) for name in known.trials]
    mine = pbt_of(tmp_path, known, configs, quantile=0.25, resample=0.0)
    theirs = [TuneTrial(name, {GAIN: gain}) for name, gain in zip(known.trials, gains, strict=True)]
    tune = PopulationBasedTraining(
        "env_steps", "score", "max", perturbation_interval=20, quantile_fraction=0.25, resample_probability=0.0,
        hyperparam_mutations={GAIN: lambda: 1.0}, synch=True, log_config=False,
    )  # fmt: skip
    for scheduler, trials in ((mine, ours), (tune, theirs)):
        for trial in trials:
            scheduler.on_trial_add(Controller(trials), trial)
        before = random.getstate()
        random.seed("5 20")  # as our scheduler seeds the comparison at this step
        compare(scheduler, trials, scores, 20)
        random.setstate(before)
    assert [trial.config[GAIN] for trial in ours] == [trial.config[GAIN] for trial in theirs]
    descents = ray_inherit.lineage(tmp_path)
    names = list(known.trials)
    assert {one.member for one in descents} == {names[2], names[4]}
    assert {one.parent for one in descents} <= {names[1], names[5]}
    factors = [one.values[GAIN] / gains[names.index(one.parent)] for one in descents]
    assert all(factor in (pytest.approx(0.8), pytest.approx(1.2)) for factor in factors)
    assert ray_inherit.compared(tmp_path) == 20 and ray_inherit.next_due(tmp_path, 20) == 40


def test_pbt_finds_the_schedule_that_is_best(tmp_path):
    """The best gain falls by a tenth at each comparison; a trial earns less, the farther it is from it."""
    gains = [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 2.0, 4.0]
    known, configs = known_of(tmp_path, gains)
    trials = [TuneTrial(name) for name in known.trials]
    names = [*known.trials]
    learned, segments = dict.fromkeys(names, 0.0), 20

    def earned(gain: float, segment: int) -> float:
        return 1 - abs(np.log(gain / 0.9**segment))

    pbt = pbt_of(tmp_path, known, configs, resample=0.0)
    for trial in trials:
        pbt.on_trial_add(Controller(trials), trial)
    for segment in range(segments):
        for name, trial in zip(names, trials, strict=True):
            learned[name] += earned(trial.config[GAIN], segment)
        saved_at(known, tmp_path, 20 * (segment + 1))
        compare(pbt, trials, [learned[name] for name in names], 20 * (segment + 1))
        new = [one for one in ray_inherit.lineage(tmp_path) if one.env_steps == 20 * (segment + 1)]
        learned |= {one.member: learned[one.parent] for one in new}
    fixed = max(sum(earned(gain, segment) for segment in range(segments)) for gain in gains)
    assert max(learned.values()) > 0.85 * segments and fixed < 0.5 * segments
    best = trials[names.index(max(learned, key=lambda name: learned[name]))]
    assert best.config[GAIN] == pytest.approx(0.9**segments, rel=0.4)


def test_pbt_goes_on_after_a_restart_with_the_values_of_the_lineage(tmp_path):
    known, configs = known_of(tmp_path, [1.0, 2.0, 3.0, 4.0])
    names = [*known.trials]
    saved_at(known, tmp_path, 20)
    ray_inherit.commit(tmp_path, known, 20, [Descent(20, names[0], names[3], 1.0, 4.0, {GAIN: 4.8})])
    trials = [TuneTrial(name) for name in names]
    pbt = pbt_of(tmp_path, known, configs)
    for trial in trials:
        pbt.on_trial_add(Controller(trials), trial)
    assert [trial.config[GAIN] for trial in trials] == [4.8, 2.0, 3.0, 4.0]
    assert (tmp_path / "ray/parents/20" / names[3] / "checkpoints/20").is_dir()
    saved_at(known, tmp_path, 40)
    compare(pbt, trials, [1.0, 2.0, 3.0, 4.0], 40)
    assert [one.env_steps for one in ray_inherit.lineage(tmp_path)] == [20, 40]
    assert [path.name for path in (tmp_path / "ray/parents").iterdir()] == ["40"]


def test_pbt_does_not_wait_for_a_trial_that_has_failed(tmp_path):
    known, configs = known_of(tmp_path, [1.0, 2.0, 3.0, 4.0, 5.0])
    saved_at(known, tmp_path, 20)
    trials = [TuneTrial(name) for name in known.trials]
    pbt = pbt_of(tmp_path, known, configs)
    for trial in trials:
        pbt.on_trial_add(Controller(trials), trial)
    compare(pbt, trials[:4], [1.0, 2.0, 3.0, 4.0], 20, trials)
    assert not ray_inherit.lineage(tmp_path)
    pbt.on_trial_error(Controller(trials), trials[4])
    assert [one.env_steps for one in ray_inherit.lineage(tmp_path)] == [20]
    assert ray_inherit.compared(tmp_path) == 20


def test_a_value_that_its_field_refuses_stays_that_of_the_parent(tmp_path):
    known, configs = known_of(tmp_path, [1.0, 2.0])
    pbt = pbt_of(tmp_path, known, configs, resample=1.0)
    pbt._hyperparam_mutations[GAIN] = lambda: -1.0
    one, other = (TuneTrial(name, {GAIN: gain}) for name, gain in zip(known.trials, (1.0, 2.0), strict=True))
    assert pbt._get_new_config(one, other)[0][GAIN] == 2.0


# ---- what a trial inherits


def checkpoint(run_dir: Path, step: int, number: float) -> None:
    from dreamer.runtime.files.checkpoint import Checkpoints

    names = ("params/world_model/w", "extra/behavior/slow", "opt_state/0/mu", "hyper/behavior/entropy", "key", "step")
    leaves = {name: np.full((2,), number, np.float32) for name in names}
    with Checkpoints(run_dir) as checkpoints:
        checkpoints.save(step, leaves, {"env_steps": step, "updates": int(number), "spec": SPEC})


def leaves_of(run_dir: Path, step: int) -> dict[str, float]:
    from dreamer.runtime.files.checkpoint import Checkpoints

    with Checkpoints(run_dir) as checkpoints:
        return {name: float(leaf[0]) for name, leaf in checkpoints.leaves(step).items()}


SPEC = {
    "obs": {"vector": {"shape": [3], "dtype": "float32", "classes": None, "bounds": None}},
    "action": {"classes": [2], "continuous": 0}, "agents": 1,
}  # fmt: skip
INHERITED = {
    "params/world_model/w": 2.0, "extra/behavior/slow": 2.0, "opt_state/0/mu": 2.0, "hyper/behavior/entropy": 9.0,
    "key": 1.0, "step": 1.0,
}  # fmt: skip


def descended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[state.Known, dict, str]:
    """Makes two trials with checkpoints at step 20, of which the first shall continue from the second."""
    known, configs = known_of(tmp_path, [1.0, 2.0])
    own, parent = known.trials
    for number, name in enumerate((own, parent), 1):
        checkpoint(known.run_dir(tmp_path, name), 20, float(number))
    ray_inherit.commit(tmp_path, known, 20, [Descent(20, own, parent, 1.0, 2.0, {GAIN: 9.0})])
    hyper = {"hyper/behavior/entropy": np.full((2,), 9.0, np.float32)}
    monkeypatch.setattr(ray_inherit, "hyper_leaves", lambda *arguments: hyper)
    return known, configs, own


def test_a_trial_takes_over_what_its_parent_has_learned_and_keeps_its_own_keys_and_counters(tmp_path, monkeypatch):
    known, configs, own = descended(tmp_path, monkeypatch)
    run_dir = known.run_dir(tmp_path, own)
    line = ray_inherit.catch_up(tmp_path, known, own, configs[own])
    assert line == f"at 20 steps, {own} continues from entropy=2: {{'{GAIN}': 9.0}}"
    assert leaves_of(run_dir, 20) == INHERITED
    assert not [path for path in run_dir.iterdir() if path.name != "checkpoints"]


def test_a_trial_that_has_trained_on_inherits_nothing_again(tmp_path, monkeypatch):
    known, configs, own = descended(tmp_path, monkeypatch)
    checkpoint(known.run_dir(tmp_path, own), 40, 5.0)
    assert ray_inherit.catch_up(tmp_path, known, own, configs[own]) == ""
    assert leaves_of(known.run_dir(tmp_path, own), 40)["params/world_model/w"] == 5.0


@pytest.mark.parametrize("killed_at", [1, 2])
def test_an_inheritance_that_was_killed_in_the_middle_is_made_whole(tmp_path, monkeypatch, killed_at):
    known, configs, own = descended(tmp_path, monkeypatch)
    run_dir, renames, real = known.run_dir(tmp_path, own), [], ray_inherit.rename

    def rename(source: Any, target: Any) -> None:
        if "new" in f"{source} {target}":
            renames.append(source)
            if len(renames) == killed_at:
                raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(ray_inherit, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            ray_inherit.catch_up(tmp_path, known, own, configs[own])
    ray_inherit.catch_up(tmp_path, known, own, configs[own])
    assert leaves_of(run_dir, 20) == INHERITED
    assert [path.name for path in (tmp_path / "ray/parents/20").iterdir()] == ["entropy=2"]


def test_the_spaces_of_a_run_are_read_from_its_checkpoint():
    from dreamer.runtime.run.resume import as_json

    assert as_json(ray_inherit.spec_of(SPEC)) == SPEC


def test_the_numbers_of_a_descent_are_the_leaves_of_a_train_state_with_these_values(tmp_path, monkeypatch):
    import jax
    import tiny_runs

    from dreamer import agent as agents
    from dreamer import plugins
    from dreamer.runtime.env.adapter import spec_of
    from dreamer.runtime.files import checkpoint_files
    from dreamer.runtime.files.leaves import named_leaves
    from dreamer.runtime.run.resume import as_json

    config = tiny_runs.tiny(tmp_path)
    spec = spec_of(plugins.make_env(config.env))
    monkeypatch.setattr(checkpoint_files, "read_manifest", lambda *arguments: SimpleNamespace(spec=as_json(spec)))
    made = ray_inherit.hyper_leaves(config, {GAIN: 0.5}, tmp_path, 20)
    forms = named_leaves(jax.eval_shape(agents.make(config.agent, spec).init, jax.random.key(0)))
    assert made.keys() == {name for name in forms if name.startswith("hyper/")}
    assert [float(leaf) for name, leaf in made.items() if name.endswith("entropy")] == [0.5]
