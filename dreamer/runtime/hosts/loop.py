"""The loop of a run that several processes train together, in turns.

In each turn every process collects one row of each of its environments. Then all exchange what only one of them may
know: errors, signals, rows, and whether it is time to log or to save. So they make the same updates, and log, save,
evaluate and stop at the same turn: at most one turn after a process has noticed the reason.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from dreamer.runtime.devices import placement
from dreamer.runtime.files.run_dir import CHECKPOINTS
from dreamer.runtime.hosts.host import Host, outcome
from dreamer.runtime.hosts.parts import ShareOfReplay, add_others, for_first
from dreamer.runtime.replay import capacity
from dreamer.runtime.run import process_files, resume, schedule
from dreamer.runtime.run.build import Opened
from dreamer.runtime.run.listening import Callback, Line, ask
from dreamer.runtime.run.loop import Run
from dreamer.runtime.run.schedule import Saved
from dreamer.runtime.run.stopping import Stopped
from dreamer.steps import Batch


class SharedRun(Run):
    """The part of a process in a run that several processes train. Every process makes the same calls."""

    def __init__(self, opened: Opened, host: Host, callbacks: Sequence[Callback] = ()):
        """callbacks: as in `train`; those of process 0 are called."""
        super().__init__(opened, callbacks if host.place.first else ())
        assert isinstance(self.parts.replay, ShareOfReplay)
        self._host, self._replay = host, self.parts.replay
        self._asked: set[str] = set()  # what callbacks have requested since the last exchange
        self._due = {"log": False, "save": False}
        self._fault: Exception | None = None

    def start(self) -> None:
        """Prints what was restored, or saves a new run before its first row."""
        self._agree()
        super().start()

    def collect(self, min_ready: int | None = None, max_wait: float = 0.0) -> None:
        """Adds a row of each environment to the replay, and agrees with the other processes on what is due.

        An error in one process is raised in all of them, so that they save the run together.
        """
        try:
            super().collect(min_ready, max_wait)
        except Exception as error:
            if self._host.agreed or error is self.parts.stopping.failure:
                raise
            self._fault = error
            self._agree()

    def finish(self) -> None:
        """Saves and evaluates for the last time; process 0 marks the run as ended."""
        if self._host.place.first:
            super().finish()
            return
        self.save()
        self._evaluate()
        self.parts.stopping.check_failed()

    def log(self) -> Line:
        """Writes a line of metrics of all processes in process 0, and returns it; without values in the others."""
        logger = self.parts.logger
        if self._host.failed:
            return super().log()
        others = self._host.exchange(for_first(logger))[1:]
        if self._host.place.first:
            add_others(logger, others)
        return super().log()

    def save(self, whole: bool = True) -> None:
        """Saves a checkpoint, if there is none of this step: every process its part, then process 0 the train state."""
        parts, host = self.parts, self._host
        self.settle()
        step = parts.replay.steps
        self.saved = self.saved._replace(step=host.from_first(self.saved.step))
        if self.saved.step == step:
            return
        parts.stopping.check_failed()
        parts.retention.remove_aside()
        _, every = host.together(
            lambda: resume.save(parts, step, step, self._remembered(), whole=whole), lambda part: part.to_json()
        )
        manifest = process_files.join(every, parts.run_dir / CHECKPOINTS / str(step))
        state = placement.local_copy(parts.learner.state)
        host.only_first(lambda: parts.checkpoints.save(step, state, manifest.to_json()))
        self.saved = Saved(time.monotonic(), step, step, parts.learner.updates)
        parts.retention.saved(step, manifest, host.from_first(parts.checkpoints.steps()))

    def _play(self, env_steps: int) -> None:
        play = super()._play
        self._host.only_first(lambda: play(env_steps))  # the others wait

    def _compile(self, batches: Sequence[Batch]) -> None:
        super()._compile(batches)
        self._host.exchange("compiled")  # or the first update of the fastest process may wait for too long

    def _log_due(self, now: float) -> bool:
        return self._due["log"]

    def save_due(self) -> bool:
        """Whether the processes have agreed to save."""
        return self._due["save"]

    def _check_stopping(self) -> None:
        """Does nothing: the next exchange stops all processes."""

    def _ask(self, line: Line) -> None:
        """Passes a line of metrics to the callbacks, and stores their requests for the next exchange."""
        self._asked |= ask(self._callbacks, line)

    def _update_limiter(self) -> None:
        self._agree()
        super()._update_limiter()

    def _agree(self) -> None:
        """Exchanges what only one process knows, and raises if one of them has failed or was asked to stop."""
        parts, replay, now = self.parts, self._replay, time.monotonic()
        parts.stopping.check_failed()  # without the lock, nothing may be saved
        ending: BaseException | None = self._fault
        try:
            parts.stopping.check()
        except Stopped as stop:
            ending = ending or stop
        rows = capacity.rows_between_checkpoints(replay.size) * self._host.place.count
        every: list[dict[str, Any]] = self._host.exchange({
            "steps": replay.own_steps, "held": replay.own_rows, "ready": replay.own_ready,
            "log": schedule.log_due(self._logged, now, every=parts.config.log.every),
            "save": schedule.save_due(self.saved, now, replay.steps, every=parts.config.checkpoint.every, rows=rows),
            "asked": sorted(self._asked), **(outcome(ending) if ending else {}),
        })  # fmt: skip
        self._asked.clear()
        replay.others = sum(one["steps"] for one in every) - replay.own_steps
        replay.others_held = sum(one["held"] for one in every) - replay.own_rows
        replay.everyone_ready = all(one["ready"] for one in every)
        self._due = {name: every[0][name] for name in self._due}
        self.stopped |= "stop" in every[0]["asked"]
        self._evaluation_wanted |= "evaluate" in every[0]["asked"]
        self._host.check(every, ending)
