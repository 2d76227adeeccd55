"""The tree-structured Parzen estimator of Optuna, through Ray Tune, for the trials of a sweep.

Each suggestion is written into the file of the sweep before it is tried. A later start gives all results to Optuna
again. So the state of Optuna need not be kept, and Optuna also knows results that were made without Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from dreamer.apps.sweep import state
from dreamer.apps.sweep.packing import Program, next_number
from dreamer.apps.sweep.ray_schedule import SCORE
from dreamer.apps.sweep.ray_space import Dimension
from dreamer.apps.sweep.state import Known
from dreamer.apps.sweep.trials import Trial

MOST_ATTEMPTS = 50  # suggestions in a row that were tried before


class Setting(NamedTuple):
    """The programs of one combination of values, with the final score of each that has ended; None: it failed."""

    values: Mapping[str, Any]
    programs: tuple[Program, ...]
    scores: dict[str, float | None]


class Suggestions(Searcher):
    """Gives Tune the programs of suggested settings: first those that are not done, then new ones."""

    def __init__(
        self, root: Path, known: Known, space: Sequence[Dimension], make: Callable[[Mapping[str, Any]], list[Trial]],
        given: Callable[[Known, Program], dict], settings: Sequence[Setting], samples: int, mode: str, seed: int,
        published: Callable[[Known], None],
    ):  # fmt: skip
        """known: the sweep; `published` is called with it after each change

        make: makes the trials of a combination of values | given: makes the config of a program for Tune
        settings: all that the sweep has, with the scores that are known | samples: number of settings to try in all
        """
        super().__init__(metric=SCORE, mode=mode)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._root, self._known, self._space, self._make, self._given = root, known, space, make, given
        self._samples, self._published = samples, published
        done = [one for one in settings if len(one.scores) == len(one.programs)]
        opened = [one for one in settings if len(one.scores) < len(one.programs)]
        self._inner = OptunaSearch(
            space={one.name: one.distribution for one in space}, metric=SCORE, mode=mode, seed=seed + len(settings),
            points_to_evaluate=[self._point(one.values) for one in opened],
        )  # fmt: skip
        for one in done:
            score = _mean(one)
            self._inner.add_evaluated_point(self._point(one.values), score or 0.0, error=score is None)
        self._settings = {f"setting{number}": one for number, one in enumerate([*done, *opened])}
        self._queue: list[tuple[str, Program]] = []
        for name, one in [*self._settings.items()][len(done) :]:
            self._inner.suggest(name)  # the next of the points to evaluate
            self._queue += [(name, program) for program in one.programs if program.name not in one.scores]
        self._running: dict[str, tuple[str, Program]] = {}

    def suggest(self, trial_id: str) -> Any:
        """Returns the config of the next program, or FINISHED if there is none."""
        if not self._queue and len(self._settings) < self._samples:
            self._add()
        if not self._queue:
            return Searcher.FINISHED
        self._running[trial_id] = self._queue.pop(0)
        return self._given(self._known, self._running[trial_id][1])

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Receives the last score of a program. A setting has the mean of its seeds; it fails if one of them fails."""
        name, program = self._running.pop(trial_id)
        setting = self._settings[name]
        score = None if error or not result else result.get(SCORE)
        failed = any(state.failure(self._root, trial) for trial in program.trials)
        setting.scores[program.name] = None if failed else score
        if len(setting.scores) == len(setting.programs):
            mean = _mean(setting)
            self._inner.on_trial_complete(name, None if mean is None else {SCORE: mean}, error=mean is None)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing, because the file of the sweep holds all of it."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, see `save`."""

    def _add(self) -> None:
        """Adds the setting that Optuna suggests. Adds none if Optuna repeats settings that were tried before."""
        for attempt in range(MOST_ATTEMPTS):
            name = f"setting{len(self._settings)}" + (f".{attempt}" if attempt else "")
            found = self._inner.suggest(name) or {}
            values = {key: value for one in self._space for key, value in one.values(found[one.name]).items()}
            trials = self._make(values)
            if any(trial.name in self._known.trials for trial in trials):
                self._inner.on_trial_complete(name, None, error=True)
                continue
            first = next_number(self._known.programs)
            programs = tuple(Program(f"program{first + n}", (trial.name,)) for n, trial in enumerate(trials))
            entries = {**self._known.trials, **state.entries(trials, programs)}
            self._known = self._known._replace(trials=entries, programs=(*self._known.programs, *programs))
            state.write(self._root, self._known)
            self._published(self._known)
            self._settings[name] = Setting(values, programs, {})
            self._queue += [(name, program) for program in programs]
            return

    def _point(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {one.name: one.x(values) for one in self._space}


def _mean(setting: Setting) -> float | None:
    scores = [score for score in setting.scores.values() if score is not None]
    return float(np.mean(scores)) if len(scores) == len(setting.programs) else None
