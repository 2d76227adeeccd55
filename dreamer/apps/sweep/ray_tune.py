"""Runs the programs of a sweep on a Ray cluster, as trials of Ray Tune. Imports no jax.

The directory of the sweep records the status of all trials. Each start makes a new Tune experiment from the unfinished
trials. `Tuner.restore` would know less: Tune does not save the rungs and scores of its schedulers, and does not see
what was trained without Ray in between. Nothing reads the files that Tune writes to SWEEP/ray/tune.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreamer.apps.sweep import local, ray_cluster, ray_scores, state
from dreamer.apps.sweep.packing import Program
from dreamer.apps.sweep.ray_config import Config, metric_of, perturb_every
from dreamer.apps.sweep.ray_trial import STOP, Job, TrialProcess, described
from dreamer.apps.sweep.spec import Sweep, axes_of
from dreamer.apps.sweep.state import Known
from dreamer.apps.sweep.trials import Trial
from dreamer.config import Config as RunConfig
from dreamer.errors import UserError, one_line

FOLDER, TUNE = "ray", "tune"
TELL = 5.0  # seconds between two looks at which programs have ended
MOST_LOSSES = 10  # times that a program may lose its worker or its machine
PASSED_ON = ("JAX_", "XLA_", "MUJOCO_", "PYTHONPATH", "PYOPENGL_", "GLIBC_TUNABLES")  # variables, by their beginning


class Request(NamedTuple):
    """What `dreamer sweep --on ray` runs.

    root: the directory of the sweep | given: its file | base: the config that all trials share
    trials: those of the file, by name | known: the sweep with all trials | todo: the programs that are open
    make: makes the trials of a combination of values | words: those after `dreamer` that run one program
    environment: variables for the processes | jobs: programs at a time; 0: as many as the cluster has room for
    """

    root: Path
    given: Sweep
    base: RunConfig
    trials: Mapping[str, Trial]
    known: Known
    todo: Sequence[Program]
    make: Callable[[Mapping[str, Any]], list[Trial]]
    words: Sequence[str]
    environment: Mapping[str, str]
    jobs: int
    config: Config


class Experiment:
    """Owns the thread in which Tune runs, because signals belong to the main thread."""

    def __init__(self, request: Request, report: Callable[[str], None]):
        """report: called with a line of text"""
        self._request, self._report = request, report
        self.known = request.known
        self.lengths = {name: self._length(name) for name in request.known.trials}
        self._untold = {program.name: program for program in request.todo}
        self._told_at = time.monotonic()
        self._stop = request.root / STOP
        self._stopper: Any = None
        self._results: Any = None
        self._error: BaseException | None = None

    def run(self, ray: Any, check: Callable[[], None], tick: Callable[[], None]) -> None:
        """Runs all programs until they have ended or failed. check: raises when the sweep must stop | tick: progress.

        Raises UserError if Tune itself fails.
        """
        tuner = self._tuner(ray)
        thread = threading.Thread(target=self._fit, args=[tuner], name="tune", daemon=True)
        self._stop.unlink(missing_ok=True)
        thread.start()
        try:
            while thread.is_alive():
                check()
                tick()
                self._tell()
                thread.join(local.POLL)
        finally:
            if thread.is_alive():
                self._end(thread)
            self._stop.unlink(missing_ok=True)
        self._record_errors()
        self._tell(every=0.0)
        if self._error:
            raise UserError(f"Ray Tune has failed: {one_line(self._error)}") from self._error

    def _tell(self, every: float = TELL) -> None:
        """Reports the programs that have ended, at most every `every` seconds."""
        if time.monotonic() - self._told_at < every:
            return
        self._told_at = time.monotonic()
        for program in [*self._untold.values()]:
            stands = {name: self._standing(name) for name in program.trials}
            if not all(one in state.SETTLED for one in stands.values()):
                continue
            del self._untold[program.name]
            why = next((why for name in stands if (why := state.failure(self._request.root, name))), None)
            failed = f"{program.name} failed, the others continue: {why.cause}" if why else ""
            early = f"{program.name} was stopped early" if "stopped early" in stands.values() else ""
            self._report(failed or early or f"{program.name} is done")

    def _standing(self, trial: str) -> state.Standing:
        return state.standing(self._request.root, self.known, trial, self.lengths[trial])

    def _end(self, thread: threading.Thread) -> None:
        """Makes all programs save and end, then Tune."""
        self._stop.touch()
        deadline = time.monotonic() + local.PATIENCE
        while thread.is_alive() and time.monotonic() < deadline:
            if not any(local.held(self._request.root, self.known, one) for one in self.known.programs):
                self._stopper.ended = True
            thread.join(local.POLL)

    def _fit(self, tuner: Any) -> None:
        try:
            self._results = tuner.fit()
        except BaseException as error:
            self._error = error

    def _tuner(self, ray: Any) -> Any:
        request = self._request
        from ray import tune

        share = ray_cluster.share_of(request.config, ray.nodes(), request.jobs)
        self._report(f"Ray: {len(ray.nodes())} machines; a program takes {share.cpus} CPUs and {share.gpus:g} GPUs")
        every, config = 0, request.config
        if config.scheduler == "pbt":
            every = perturb_every(config, next(iter(request.trials.values())).config)
        passed = {name: text for name, text in request.environment.items() if name.startswith(PASSED_ON)}
        job = Job(
            str(request.root), tuple(request.words), passed, os.getcwd(), metric_of(request.given, request.base),
            share.cpus, share.gpus, every, local.CHILD,
        )  # fmt: skip
        folder = request.root / FOLDER
        shutil.rmtree(folder / TUNE, ignore_errors=True)
        search, space, count = self._search(job)
        self._stopper = stopper()
        return tune.Tuner(
            tune.with_resources(trainable(job), {"cpu": share.cpus, "gpu": share.gpus}),
            param_space=space,
            tune_config=tune.TuneConfig(
                search_alg=search, scheduler=self._scheduler(job), num_samples=count,
                max_concurrent_trials=request.jobs or None, trial_name_creator=_name, trial_dirname_creator=_name,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=TUNE, storage_path=str(folder), verbose=0, stop=self._stopper,
                failure_config=tune.FailureConfig(max_failures=MOST_LOSSES),
            ),
        )  # fmt: skip

    def _search(self, job: Job) -> tuple[Any, dict, int]:
        """Returns the searcher, the space of Tune, and the number of trials to begin."""
        request = self._request
        if request.given.search != "tpe":
            from ray import tune

            each = [self._described(self.known, program)["program"] for program in request.todo]
            return None, {"program": tune.grid_search(each)}, 1
        from dreamer.apps.sweep.ray_search import Suggestions
        from dreamer.apps.sweep.ray_space import space_of

        given = request.given
        space = space_of(given, axes_of(given, request.base))
        search = Suggestions(
            request.root, self.known, space, request.make, self._described, self._settings(job.metric),
            given.samples, given.mode, given.draw_seed, self._publish,
        )  # fmt: skip
        seeds = max(1, len(request.make({key: value for d in space for key, value in d.values(_any(d)).items()})))
        return search, {}, given.samples * seeds

    def _described(self, known: Known, program: Program) -> dict:
        """Returns the config of a Tune trial. The newest score is reported again, as nobody may have received it."""
        for name in program.trials:
            self.lengths.setdefault(name, self._length(name))
        run_dirs = [known.run_dir(self._request.root, name) for name in program.trials]
        scores = ray_scores.of_program(run_dirs, metric_of(self._request.given, self._request.base))
        since = scores[-2].env_steps if len(scores) > 1 else 0
        return {"program": described(self._request.root, known, program, self.lengths, since)}

    def _settings(self, metric: str) -> list[Any]:
        """Returns the settings of the sweep, with the scores of the programs that have ended."""
        from dreamer.apps.sweep.ray_search import Setting

        root, known, opened = self._request.root, self.known, {one.name for one in self._request.todo}
        found: dict[str, Setting] = {}
        for program in known.programs:
            names = [name for name in program.trials if name in self._request.trials]
            if not names:
                continue
            values = known.trials[names[0]]["values"]
            one = found.setdefault(repr(values), Setting(values, (), {}))
            found[repr(values)] = one = one._replace(programs=(*one.programs, program))
            if program.name not in opened:
                scores = ray_scores.of_program([known.run_dir(root, name) for name in names], metric)
                failed = not scores or any(state.failure(root, name) for name in names)
                one.scores[program.name] = None if failed else scores[-1].value
        return [*found.values()]

    def _scheduler(self, job: Job) -> Any:
        request, config = self._request, self._request.config
        if config.scheduler == "none":
            return None
        from dreamer.apps.sweep import ray_schedule

        if config.scheduler == "pbt":
            names = [name for program in request.todo for name in program.trials]
            configs = {name: request.trials[name].config for name in names}
            axes = axes_of(request.given, request.base)
            return ray_schedule.Pbt(
                request.root, self.known, config, request.given.mode, job.every, axes, configs, request.given.draw_seed
            )
        opened = {program.name for program in request.todo}
        history = {}
        for program in self.known.programs:
            run_dirs = [self.known.run_dir(request.root, name) for name in program.trials]
            scores = ray_scores.of_program(run_dirs, job.metric)
            history[program.name] = scores[:-1] if program.name in opened else scores
        longest = max([request.base.env_steps, *self.lengths.values()])
        return ray_schedule.Asha(request.root, config, request.given.mode, longest, history)

    def _publish(self, known: Known) -> None:
        new = known.programs[len(self.known.programs) :]
        self.known = known
        for name in known.trials:
            self.lengths.setdefault(name, self._length(name))
        self._untold.update({program.name: program for program in new})

    def _length(self, trial: str) -> int:
        own = self.known.trials[trial]["values"].get(self._request.base.counted)
        one = self._request.trials.get(trial)
        return one.config.length if one else int(own or self._request.base.length)

    def _record_errors(self) -> None:
        """Records the trials that have lost their workers too often."""
        for result in self._results or ():
            if result.error is None or not result.config:
                continue
            given = result.config["program"]
            lines = str(result.error).strip().splitlines()
            cause = f"its worker on Ray has failed: {lines[-1] if lines else type(result.error).__name__}"
            for name in given["trials"]:
                if self._standing(name) not in state.SETTLED:
                    state.set_failed(self._request.root, name, state.Failure(cause, 1))


def _any(dimension: Any) -> Any:
    """Returns one value that Optuna may suggest."""
    return getattr(dimension.distribution, "low", 0)


def _name(trial: Any) -> str:
    return trial.config["program"]["name"]


def trainable(job: Job) -> type:
    """Returns the class whose objects Tune makes on the machines of the cluster."""
    from ray import tune

    class Program(tune.Trainable):
        """A program of the sweep as Tune sees it. All state is in the directory of the sweep."""

        def setup(self, config: dict) -> None:
            self.process = TrialProcess(job, config["program"])

        def reset_config(self, new_config: dict) -> bool:
            self.process.close()
            self.setup(new_config)
            return True

        def step(self) -> dict:
            return self.process.step()

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            (Path(checkpoint_dir) / "see_the_run_directory").touch()

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

        def cleanup(self) -> None:
            self.process.close()

    return Program


def stopper() -> Any:
    """Returns an object that ends the experiment of Tune once its `ended` is set."""
    from ray import tune

    class AfterSignal(tune.Stopper):
        """Ends everything after a signal, when all programs have saved."""

        ended = False

        def __call__(self, trial_id: str, result: dict) -> bool:
            return False

        def stop_all(self) -> bool:
            return self.ended

    return AfterSignal()
