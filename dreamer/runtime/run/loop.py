"""The loop of a run: collects, trains at the replay ratio, logs, evaluates and saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from dreamer.runtime.files.manifest import files_of
from dreamer.runtime.files.run_dir import ERROR
from dreamer.runtime.learning.collector import Collecting
from dreamer.runtime.log.episodes import episode_metrics
from dreamer.runtime.replay import capacity
from dreamer.runtime.run import header, periodic_evaluation, resume, schedule
from dreamer.runtime.run.build import Opened
from dreamer.runtime.run.listening import Callback, Line, ask
from dreamer.runtime.run.schedule import NEVER, Mark, Saved
from dreamer.steps import Batch


class Run:
    """A run from start to end.

    In turns, one turn of the loop calls `collect`, then `learn` for each update that is due, then `tend`.
    parts: the components of the run | saved: its newest checkpoint | stopped: whether a callback has requested a stop
    """

    def __init__(
        self, opened: Opened, callbacks: Sequence[Callback] = (), saving: Callable[[int], object] | None = None
    ):
        """opened: from `open_run`. callbacks: as in `train`. Call `start` next.

        saving: called with the step before a checkpoint is written. It belongs to a population, which decides when to
        save; None: the run decides.
        """
        self.parts, self._saving = opened.parts, saving
        self.stopped = False
        self._callbacks, self._evaluation_wanted = callbacks, False
        self._opened = opened
        self._logged = self._mark()
        known = min(self.steps, opened.resumed_at)  # newer rows may have been loaded, which no checkpoint contains
        self.saved = Saved(self._logged.time, opened.resumed_at, known, self.parts.learner.updates)
        self._eval_due = opened.eval_due
        self._compiled = False
        self._programs: set[int] = set()  # the numbers of updates for which a program is compiled
        self._collecting = Collecting(self._collect_turn)

    @property
    def steps(self) -> int:
        """Returns the progress of the run: its env_steps so far."""
        return self.parts.replay.steps

    def start(self) -> None:
        """Prints what was restored, or saves a new run before its first row, so that no row can be lost."""
        opened, parts = self._opened, self.parts
        if opened.resumed_at != NEVER:
            parts.display.header(opened.lines)
            self._update_limiter()
            return
        parts.store.flush_in_parts(parts.replay)  # the rows of datasets
        self.save()
        parts.checkpoints.wait()
        if opened.created:
            opened.created.keep()

    def go(self) -> None:
        """Runs until the end, in turns, in two threads or on the device, as was chosen for the run."""
        {"device": self.on_device, "turns": self.take_turns, "thread": self.side_by_side}[self.parts.way]()

    def take_turns(self) -> None:
        """Runs in turns: repeatedly collects a row of every environment and makes all updates that are due."""
        parts = self.parts
        self.evaluate_if_due()  # a resumed run may have been killed during an evaluation
        while parts.replay.steps < parts.config.env_steps and not self.stopped:
            self.collect()
            while parts.limiter.due():
                self.learn()
            self.tend()

    def on_device(self) -> None:
        """Runs the fused loop: the device makes turns while the host tends the turns before them.

        Evaluations, checkpoints and the end wait until no turns are in flight, so that all parts are at the same step.
        """
        parts, device = self.parts, self.parts.device
        assert device is not None
        self.evaluate_if_due()
        parts.display.phase("compiling")
        device.compile()
        self.compiled()
        while device.in_flight or (parts.replay.steps < parts.config.env_steps and not self.stopped):
            device.advance(self.turns_until_due)
            self.tend()

    def compiled(self) -> None:
        """Records that the program is compiled: from now on the run trains."""
        self._compiled = True
        self.parts.display.phase("training")

    def turns_until_due(self, ahead: int = 0) -> int:
        """Returns the number of turns of all environments until the next evaluation, or until the end.

        ahead: the turns in flight. The number is 0 if something is due after them that needs no turns in flight.
        """
        parts = self.parts
        steps = parts.replay.steps + ahead * parts.workers.streams
        left = -(-(min(parts.config.env_steps, self._eval_due) - steps) // parts.workers.streams)
        if not ahead:
            return max(1, left)
        waits = self.stopped or self._evaluation_wanted or self._save_due(steps)
        return 0 if waits else max(0, left)

    def side_by_side(self) -> None:
        """Collects in a second thread while this thread trains. The limiter keeps the replay ratio between them."""
        parts = self.parts
        self.evaluate_if_due()
        with self._collecting:
            while (parts.replay.steps < parts.config.env_steps or parts.limiter.due()) and not self.stopped:
                self._collecting.check()
                if parts.limiter.due():
                    self.learn()
                else:
                    self.settle()  # so that the next wait counts as waiting for rows, not for the device
                    parts.limiter.wait_for_rows()
                self.tend()

    def collect(self, min_ready: int | None = None, max_wait: float = 0.0) -> None:
        """Adds rows of the environments that are ready to the replay.

        min_ready: the number of environments to wait for; None: all
        max_wait: the seconds after which one ready environment is enough; ignored if min_ready is None
        """
        parts = self.parts
        snapshot = parts.learner.snapshot()
        with parts.learner.as_user_errors("acting"):
            envs, step = parts.collector.collect(snapshot, min_ready, max_wait)
        parts.environments.report_incidents()
        for episode in parts.tracker.observe(step, envs, parts.workers.finished()):
            parts.logger.add(episode_metrics([episode]))
        parts.logger.add({"collect/staleness": parts.learner.updates - snapshot.updates, "collect/ready": len(envs)})
        self._update_limiter()

    def learn(self) -> None:
        """Makes the updates of one call of the device: one, or several if so many are due. At least one must be due."""
        parts = self.parts
        batches, rows = zip(*[parts.batches.next() for _ in range(parts.limiter.at_once())], strict=True)
        if len(rows) not in self._programs:
            self._compile(batches)
        several = len(rows) > 1
        update = parts.learner.step_several(batches, rows) if several else parts.learner.step(batches[0], rows[0])
        parts.limiter.trained(len(rows))
        parts.writeback.put(update)

    def tend(self) -> None:
        """Evaluates, logs, writes rows to the disk and saves, each if it is due. Raises Stopped after a signal.

        While turns are in flight, no evaluation is due, and requests that were made since they began have to wait.
        """
        parts = self.parts
        in_flight = parts.device.in_flight if parts.device else 0
        steps, now = self.steps, time.monotonic()
        parts.display.update(steps, parts.learner.updates)
        self.evaluate_if_due()
        if self._log_due(now):
            self._ask(self.log())
        if self._evaluation_wanted and not in_flight:
            self._evaluation_wanted = False
            self.evaluate()
        parts.flushing.tend()
        if not self._saving and not in_flight and self.save_due():
            self.save()
        self._check_stopping()

    def _log_due(self, now: float) -> bool:
        return schedule.log_due(self._logged, now, every=self.parts.config.log.every)

    def _check_stopping(self) -> None:
        self.parts.stopping.check()

    def save_due(self) -> bool:
        """Whether a checkpoint is due, by time or by rows."""
        return self._save_due(self.steps)

    def _save_due(self, steps: int) -> bool:
        parts = self.parts
        rows = capacity.rows_between_checkpoints(parts.replay.size)
        every = parts.config.checkpoint.every
        return schedule.save_due(self.saved, time.monotonic(), steps, every=every, rows=rows)

    def evaluate_if_due(self) -> None:
        """Evaluates if an evaluation is due. `finish` makes the last evaluation of the run, not this method."""
        if self.evaluation_due():
            self.evaluate()
            self._eval_due += self.parts.config.eval.every

    def evaluation_due(self) -> bool:
        """Whether an evaluation is due, except for the last one."""
        parts = self.parts
        return schedule.evaluation_due(self._eval_due, self.steps, last=parts.config.length)

    def finish(self) -> None:
        """Saves and evaluates for the last time, and marks the run as ended."""
        parts = self.parts
        self.save()
        self._evaluate()
        parts.checkpoints.wait()
        parts.retention.remove_aside()
        parts.stopping.check_failed()
        step = self.saved.step
        head = {"logger": parts.logger.position(), "loop": self._remembered()}
        files = files_of(parts.checkpoints.manifest(step), f"checkpoint {step}")
        parts.store.save_end(step, files.state, head)
        (parts.run_dir / ERROR).unlink(missing_ok=True)
        parts.display.end("done", header.next_steps(parts.run_dir))

    def leave(self) -> None:
        """Saves a run that a callback has stopped, so that it can be resumed."""
        parts = self.parts
        self.save()
        parts.checkpoints.wait()
        where = f"stopped by a callback at {self.steps:,} {parts.config.counted}"
        what = f"{where}; to continue: {header.to_go_on(parts.run_dir)}"
        parts.display.end("stopped", [what])

    def evaluate(self) -> None:
        """Evaluates the newest parameters and writes a line of metrics. The display then shows the earlier phase."""
        self._evaluate()
        self.parts.display.phase("training" if self._compiled else "collecting")

    def _evaluate(self) -> None:
        parts, env_steps = self.parts, self.steps
        self.save()  # so that an evaluation that fails loses no training
        parts.learner.sync()
        parts.display.phase("evaluating")
        self._play(env_steps)
        self._ask(self.log())

    def _play(self, env_steps: int) -> None:
        periodic_evaluation.evaluate(self.parts, env_steps)

    def log(self) -> Line:
        """Writes a line of metrics and returns it. Its rates (speed/, wait/) cover the time since the previous line."""
        parts = self.parts
        before, self._logged = self._logged, self._mark()
        steps, updates = self._logged.env_steps, self._logged.updates
        for_envs, parts.collector.seconds_for_envs = parts.collector.seconds_for_envs, 0.0
        waited = {"collector_for_envs": for_envs, **parts.limiter.drain()}
        own = self._numbers(schedule.rates(before, self._logged, waited), steps)
        parts.logger.add({**own, "replay/rows": parts.replay.rows, **parts.data}, latest=True)
        values = parts.logger.write(steps, updates)
        parts.display.update(steps, updates, values)
        return Line(steps, updates, values, str(parts.run_dir))

    def _numbers(self, rates: Mapping[str, float], steps: int) -> dict[str, float]:
        """Returns the metrics about the run itself. rates: of `schedule.rates`. steps: the progress of the run."""
        parts = self.parts
        frames = steps * parts.config.action_repeat
        return {**rates, "speed/env_frames": frames, "collect/incidents": parts.environments.incidents}

    def save(self, whole: bool = True) -> None:
        """Saves a checkpoint, unless nothing has changed since the newest one.

        whole: whether to save the states of the environments; False if they can no longer return them.
        Raises the error of the collecting thread if that has failed, since its environments cannot be asked then.
        """
        parts = self.parts
        self.settle()
        with self.paused():
            if whole:
                self._collecting.check()
            env_steps, updates = self.steps, parts.learner.updates
            step = schedule.next_checkpoint(self.saved, env_steps, updates)
            if step is None or (self._saving and self.saved.step == env_steps):  # populations save at common steps
                return
            parts.stopping.check_failed()
            if self._saving:
                self._saving(step)
            parts.retention.remove_aside()
            manifest = resume.save(parts, step, env_steps, self._remembered(), whole=whole)
            parts.checkpoints.save(step, parts.learner.state, manifest.to_json())
            self.saved = Saved(time.monotonic(), step, env_steps, updates)
        parts.retention.saved(step, manifest)

    def settle(self) -> None:
        """Brings the parts of the run up to date: handles the update in flight, or copies what is on the device."""
        self.parts.writeback.settle()
        self.parts.learner.settle()
        if self.parts.device:
            self.parts.device.settle()

    def paused(self) -> AbstractContextManager[None]:
        """A context in which no other thread collects."""
        return self._collecting.paused()

    @property
    def collector_failed(self) -> bool:
        """Whether an error has ended the collecting thread."""
        return self._collecting.failed

    def _ask(self, line: Line) -> None:
        """Passes a line of metrics to the callbacks and stores their requests."""
        requests = ask(self._callbacks, line)
        self.stopped |= "stop" in requests
        self._evaluation_wanted |= "evaluate" in requests

    def _collect_turn(self) -> bool:
        """Makes one turn of the collecting thread. Returns whether there is more to collect."""
        parts, workers = self.parts, self.parts.config.workers
        if parts.replay.steps >= parts.config.env_steps:  # a resumed run may have all its rows, but not all its updates
            return False
        if parts.limiter.wait_for_learner():
            half = -(-workers.envs // 2)
            self.collect(min(workers.min_ready or half, workers.envs), workers.max_wait)
        return parts.replay.steps < parts.config.env_steps

    def _compile(self, batches: Sequence[Batch]) -> None:
        """Compiles the program that makes one update with each of these batches."""
        learner = self.parts.learner
        self.parts.display.phase("compiling")
        learner.compile_several(batches) if len(batches) > 1 else learner.compile(batches[0])
        self._programs.add(len(batches))
        self.compiled()

    def _update_limiter(self) -> None:
        """Tells the limiter how many rows the replay has received, and whether training may start."""
        replay = self.parts.replay
        self.parts.limiter.collected(replay.steps, replay.ready(self.parts.config.replay.batch_size))

    def _mark(self) -> Mark:
        """Returns the current time and counters of the run."""
        parts = self.parts
        return Mark(time.monotonic(), self.steps, parts.learner.updates, parts.learner.idle)

    def _remembered(self) -> dict[str, Any]:
        """Returns the loop's own state for a checkpoint, as JSON values."""
        return {"eval_due": self._eval_due, **({"data": dict(self.parts.data)} if self.parts.data else {})}
