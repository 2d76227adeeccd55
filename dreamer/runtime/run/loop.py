"""The host loop: collect, train as the replay ratio asks, log, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import numpy as np

from dreamer import agent as agents
from dreamer.config import Config, expect_config
from dreamer.errors import UserError
from dreamer.plugins import EnvName, maker
from dreamer.runtime.devices import placement, programs
from dreamer.runtime.devices.distributed import refuse_several
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.files.lock import RunLock
from dreamer.runtime.files.run_dir import ERROR, ROWS
from dreamer.runtime.log import images, open_loop
from dreamer.runtime.log.episodes import EpisodeTracker, episode_metrics
from dreamer.runtime.log.logger import Logger
from dreamer.runtime.log.terminal import Display
from dreamer.runtime.replay import capacity, columns, disk_tier, replay
from dreamer.runtime.replay.flushing import Flushing
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.replay.store import RowStore
from dreamer.runtime.run import evaluation, header, ratio, resume, start
from dreamer.runtime.run.collector import Collecting, Collector
from dreamer.runtime.run.device_rows import DeviceRows, describe_observations
from dreamer.runtime.run.init_from import begin_with
from dreamer.runtime.run.learner import Learner, Update
from dreamer.runtime.run.limiter import Limiter
from dreamer.runtime.run.prefetch import Prefetch
from dreamer.runtime.run.resume import Parts, Restored
from dreamer.runtime.run.start import Decision
from dreamer.runtime.run.stopping import Stopped, Stopping
from dreamer.runtime.run.writeback import Following
from dreamer.runtime.workers import Incident, Workers, make_workers
from dreamer.steps import Batch, Rows

FPS = 30
Resume = Literal["no", "yes", "auto"]


def train(
    config: Config, *, resume: Resume = "no", resume_from: int | None = None,
    make_env: Callable[..., gymnasium.Env] | None = None, trust: bool = False,
) -> Path:  # fmt: skip
    """Trains one agent in a run directory and returns that directory.

    resume: "no" makes a new run; "yes" goes on with the one in config.run_dir, "auto" too if there is one.
    resume_from: number of the checkpoint to go on from, None = the newest; implies resume "yes".
    make_env: makes the environment, called with config.env_options, in place of config.env.
    trust: read pickled states of environments that were not made by this user on this machine.
    Raises UserError for everything that the user can mend. Interrupted, it saves first and raises Stopped. After any
    other failure of a run that has begun it saves too, writes the traceback into error.txt of the run directory, and
    raises RunFailed. A start that is refused changes nothing on the disk.
    """
    expect_config(config, "dreamer.train")
    if resume not in get_args(Resume):
        raise UserError(f"resume must be one of {', '.join(get_args(Resume))}, not {resume!r}")
    refuse_several(config.devices)
    env: EnvName = config.env if make_env is None else maker(make_env)
    config = dataclasses.replace(config, env=str(env))
    if resume_from is not None and resume == "no":
        resume = "yes"
    decision = start.decide(config, env, resume, resume_from, trust=trust)
    if decision.done and decision.found:
        print(f"{decision.given.run_dir} has made its {decision.found.step:,} env_steps; give more to go on")
        return decision.run_dir
    with contextlib.ExitStack() as stack:
        run = Run(decision, stack)
        run.start()
        try:
            if config.lockstep:
                run.take_turns()
            else:
                run.side_by_side()
            run.finish()
        except KeyboardInterrupt as stop:
            run.rescue(stop)
            raise
        except BaseException as error:
            raise run.failed(error) from error
    return run.run_dir


class RunFailed(UserError):
    """A run that had begun has ended with an error. It has saved what it could; the line says where."""


class Run:
    """Owns all that a run consists of. In lockstep `collect`, `learn` and `tend` make one turn of the loop."""

    def __init__(self, decision: Decision, stack: contextlib.ExitStack):
        """Starts as runtime/run/start.py says, and opens everything on `stack`. `start` comes next.

        Raises UserError for every reason not to begin or go on; the disk is as it was then.
        """
        self.config, self.env = decision.config, decision.env
        config = self.config
        self.display = stack.enter_context(Display(config.env_steps, every=config.log.every))
        self.stopping = stack.enter_context(Stopping(self.display.message))
        self._stack = stack
        self._taken_over: UserError | None = None
        self._created: start.Created | None = None
        self._evaluating: Workers | None = None
        if decision.used:
            self.run_dir = decision.run_dir
            stack.enter_context(RunLock(self.run_dir, self.display.message, self._lost_lock))
            decision = start.decide(
                decision.given, decision.env, decision.resume, decision.step, trust=decision.trust, own_lock=True
            )
        self._build(decision)
        if not decision.used:
            self._created = stack.enter_context(
                start.Created(
                    decision.run_dir, not decision.given.run_dir, self.display.message, self._lost_lock
                )
            )
            self.run_dir = self._created.path
            self.config = dataclasses.replace(config, run_dir=str(self.run_dir))
        elif not decision.found:
            self.display.message("no checkpoint yet: the run begins from its start")
        self.display.message(f"run: {self.run_dir}")
        self._restore(decision)
        self.stopping.begun()
        self._change(decision)

    def _build(self, decision: Decision) -> None:
        """Environments, agent, weights, and the sizes of all: in memory, nothing on the disk."""
        config, found = self.config, decision.found
        start.check_sinks(config)
        self.rate = ratio.updates_per_step(config.replay_ratio, config.replay.batch_size, config.replay.batch_length)
        self.workers = self._make_workers()
        self._stack.callback(self._close_workers)
        os.chdir(self.workers.folder)  # an environment in this process may have left it, and plug-ins are found from it
        self.stopping.then(self._hurry)
        spec, streams = self.workers.spec, self.workers.streams
        if found:
            resume.check_spec(found, spec, str(self.env))
        self.film, why_not = evaluation.can_film(
            self.env, config.env_options, config.eval.video,
            evaluation.like_training(config.workers, self.workers.backend), self.workers.folder,
        )  # fmt: skip
        self.agent = agents.make(config.agent, spec, priorities=config.replay.priority > 0)
        # An agent that outlives the others makes most of its environment's rows: its ring is to hold them.
        size = replay.plan(
            spec, self.agent.storage, config.replay, envs=streams, env_steps=config.env_steps * spec.agents,
            run_dir=config.run_dir,
        )  # fmt: skip
        if found:
            length = resume.ring_length(found, size.rows_per_env, decision.longer)
            size = dataclasses.replace(size, rows_per_env=length, bound="the run that is resumed")
        self.size = size
        self.learner = Learner(
            self.agent, spec, seed=config.seed, batch_size=config.replay.batch_size, lockstep=config.lockstep,
            config=config.devices,
        )  # fmt: skip
        most = capacity.rows_bound(
            size, columns.row_bytes(self.agent.storage), keep=config.checkpoint.keep, env_steps=config.env_steps,
            keep_every=config.checkpoint.keep_every,
        )  # fmt: skip
        rows = capacity.describe_rows(most, disk_tier.free_space(config.run_dir))
        lines = [*header.describe(config, spec, self.learner), self.workers.describe(), size.describe(), rows]
        if config.replay.on_device:
            lines.append(describe_observations(spec, size.steps))
        self.display.header([*lines, *filter(None, [why_not])])
        if not found and config.init_from:
            taken = begin_with(self.learner.state, config.init_from, config.init_parts, config.init_missing)
            self.learner.load(taken.state, 0)
            self.display.header(taken.lines)

    def _restore(self, decision: Decision) -> None:
        """The replay, and what a checkpoint holds, into memory; the disk is read only."""
        config, found, spec = self.config, decision.found, self.workers.spec
        self.identity = found.files.run if found else uuid.uuid4().hex
        self.checkpoints = self._stack.enter_context(
            Checkpoints(self.run_dir, config.checkpoint.keep, config.checkpoint.keep_every)
        )
        self.replay = Replay(
            spec, self.agent.storage, config.replay, envs=self.workers.streams, seed=config.seed,
            env_steps=config.env_steps, size=self.size, run_dir=self.run_dir,
        )  # fmt: skip
        self._stack.callback(self.replay.close)
        self.store = self._stack.enter_context(RowStore(self.run_dir / ROWS, self.identity))
        self.tracker = EpisodeTracker(self.workers.streams)
        self.limiter = Limiter(self.rate, self.workers.streams)
        self._restored: Restored | None = None
        self._came_back: list[str] = []
        if not found:
            self.collector = self._make_collector()
            return
        with resume.advising(self.run_dir, found.step):
            restored = resume.load_rows(found, self.store, self.replay, decision.trust)
            self._came_back += start.check_lines(found, restored, self.run_dir)
            state, _ = self.checkpoints.restore(self.learner.state, found.step)
            restored, self.workers, lost = resume.restore_envs(
                restored, self.store, self.replay, self.workers, config.lockstep, self._new_workers
            )
        self.learner.load(state, found.manifest.updates)
        self.collector = self._make_collector()
        self._restored = restored
        resume.load_rest(restored, self.parts)
        self._came_back += resume.describe(restored, self.replay, lost, self.workers.envs)

    def _change(self, decision: Decision) -> None:
        """The run directory becomes that of this run; what needs threads begins."""
        config, found, restored = self.config, decision.found, self._restored
        going_on = start.change(
            decision, self.run_dir, restored, self.store, steps=self.replay.steps, run=self.identity,
            tell=self.display.message,
        )  # fmt: skip
        on_device = config.replay.on_device
        self.source = DeviceRows(self.learner.mesh, self.workers.spec, self.replay) if on_device else self.replay
        self.logger = self._stack.enter_context(
            Logger(self.run_dir, config.log, dataclasses.asdict(config), resumed=going_on)
        )
        # Closed before the replay is. In lockstep nothing may depend on when a thread runs.
        self.batches = Prefetch(self._draw, depth=0 if config.lockstep else config.replay.prefetch)
        self._stack.callback(self.batches.close)
        self.following = Following(self._take, threaded=not config.lockstep)
        self._stack.callback(self.following.close)
        self.flushing = self._stack.enter_context(
            Flushing(
                self.store, self.replay, every=config.replay.flush, most=capacity.rows_between_flushes(self.replay.size)
            )
        )
        self.incidents = 0
        self._collecting: Collecting | None = None
        self._eval_policy = programs.jit_policy(self.agent)
        self._compiled = False
        self._eval_due = config.eval.every or config.env_steps
        if restored and config.eval.every:
            self._eval_due = restored.head["loop"]["eval_due"]
        self._logged = self._saved = time.monotonic()
        self._saved_at = found.step if found else -1  # environment steps, -1 = never
        self._needed = {step: self._names(step) for step in self.checkpoints.steps()}
        self._set_aside, self._resumed_at = found is not None, found.step if found else -1
        self._idle = 0.0  # of the learner, at the last line of metrics
        self._logged_at = (self.replay.steps, self.learner.updates)
        self.display.phase("collecting")

    def start(self) -> None:
        """Says what came back, or saves a new run before its first row, so that none is ever lost."""
        if self._restored:
            for line in self._came_back:
                self.display.message(line)
            self._tell_limiter()
            self._restored = None
        else:
            self.save()
            self.checkpoints.wait()
            if self._created:
                self._created.keep()

    def _names(self, step: int) -> set[str]:
        """The files of rows that a checkpoint on the disk needs; all there are, if it is too damaged to say."""
        try:
            return resume.names(step, self.checkpoints.manifest(step))
        except UserError as error:
            self.display.message(f"not used, and kept as it is: {error}")
            return {path.name for path in (self.run_dir / ROWS).iterdir()}

    def _make_workers(self) -> Workers:
        config = self.config
        return make_workers(
            config.workers, self.env, config.env_options, action_repeat=config.action_repeat, seed=config.seed
        )

    def _hurry(self) -> None:
        """A signal has come: environments that hang shall not hold the end of the run."""
        self.workers.hurry()
        if self._evaluating:
            self._evaluating.hurry()

    def _close_workers(self) -> None:
        self.workers.close()
        self._tell(self.workers.incidents())

    def _new_workers(self) -> Workers:
        self.workers.close()
        self.workers = self._make_workers()
        return self.workers

    def _make_collector(self) -> Collector:
        return Collector(self.agent, self.learner.part, self.workers, self.replay, seed=self.config.seed)

    def _lost_lock(self, error: UserError) -> None:
        """Another process has taken the lock: this one must not write any more. From the thread of the heartbeat."""
        self._taken_over = error
        self.stopping.fail(error)
        if store := getattr(self, "store", None):
            store.stop(error)

    @property
    def parts(self) -> Parts:
        """Who remembers what, apart from the learner and the logger."""
        return Parts(self.workers, self.replay, self.store, self.collector, self.tracker, self.limiter)

    def take_turns(self) -> None:
        """Lockstep: a row of every environment, all updates that are due, and again."""
        self.evaluate_if_due()  # the run that is resumed may have been killed in one
        while self.replay.steps < self.config.env_steps:
            self.collect()
            while self.limiter.due():
                self.learn()
            self.tend()

    def side_by_side(self) -> None:
        """A thread collects from whichever environments are ready, this one trains; the limiter holds the ratio."""
        self.evaluate_if_due()
        with Collecting(self._collect_turn) as self._collecting:
            while self.replay.steps < self.config.env_steps or self.limiter.due():
                self._collecting.check()
                if self.limiter.due():
                    self.learn()
                else:
                    self.settle()  # what is waited for next are rows, not the device
                    self.limiter.wait_for_rows()
                self.tend()

    def collect(self, least: int | None = None, patience: float = 0.0) -> None:
        """Rows of the environments that are ready into the replay."""
        snapshot = self.learner.snapshot()
        with self.learner.told("acting"):
            envs, step = self.collector.collect(snapshot, least, patience)
        self._hear()
        for episode in self.tracker.observe(step, envs, self.workers.finished()):
            self.logger.add(episode_metrics([episode]))
        self.logger.add({"collect/staleness": self.learner.updates - snapshot.updates, "collect/ready": len(envs)})
        self._tell_limiter()

    def learn(self) -> None:
        """One update."""
        batch, rows = self.batches.next()
        if not self._compiled:
            self._compile(batch)
        update = self.learner.step(batch, rows)
        self.limiter.trained()
        self.following.put(update)

    def tend(self) -> None:
        """Whatever is due of showing, evaluating, logging, saving and stopping."""
        steps, now = self.replay.steps, time.monotonic()
        self.display.update(steps, self.learner.updates)
        self.evaluate_if_due()
        if now - self._logged >= self.config.log.every:
            self.log()
        self.flushing.tend()
        many = steps - max(self._saved_at, 0) >= capacity.rows_between_checkpoints(self.replay.size)
        if many or now - self._saved >= self.config.checkpoint.every:
            self.save()
        self.stopping.check()

    def evaluate_if_due(self) -> None:
        """An evaluation before the last one, when it is due."""
        if self._eval_due <= self.replay.steps < self.config.env_steps:
            self.evaluate()
            self._eval_due += self.config.eval.every

    def finish(self) -> None:
        """The last checkpoint, the last evaluation with its line of metrics, and the word that this was all."""
        self.save()
        self.evaluate()
        self.checkpoints.wait()
        self._forget_aside()
        self.stopping.check_failed()
        state = resume.files_of(self.checkpoints.manifest(self._saved_at), f"checkpoint {self._saved_at}").state
        self.store.save_end(self._saved_at, state, {"logger": self.logger.position(), "loop": self._remembered()})
        (self.run_dir / ERROR).unlink(missing_ok=True)
        self.display.message(f"done: {self.run_dir}")

    def evaluate(self) -> None:
        """Episodes in fresh environments, their video, open-loop pictures of the world model; a line of metrics."""
        config, steps = self.config, self.replay.steps
        self.save()  # whatever happens in there, nothing that was learned is lost
        self.learner.sync()
        self.display.phase("evaluating")
        if config.eval.episodes:
            with self.learner.told("evaluating"):
                result = evaluation.evaluate(
                    self.agent, self._eval_policy, placement.first_copy(self.learner.state.params), config.eval,
                    self.env, config.env_options, evaluation.like_training(config.workers, self.workers.backend),
                    action_repeat=config.action_repeat, seed=config.seed, film=int(self.film),
                    folder=self.workers.folder, check=self.stopping.check, tell=self.display.message,
                    begun=self._begin_evaluation,
                )  # fmt: skip
            self._tell(result.incidents)
            for line in result.lines:
                self.display.message(line)
            returns = result.returns
            self.logger.add(evaluation.metrics(result), latest=True)
            self.display.message(
                f"evaluation at {steps:,} steps: return {np.mean(returns):.1f} +- {np.std(returns):.1f} "
                f"over {len(returns)} episodes"
            )
            if result.frames:
                path = self.run_dir / "pictures" / f"episode_{steps:09d}.mp4"
                try:
                    images.write_episode_video(path, result.frames, FPS)
                    self.display.message(f"what the agent does: {path}")
                except UserError as error:
                    self.display.message(f"no film of this evaluation: {error}")
        if len(self.replay):
            batch, _ = self.replay.sample(min(6, config.replay.batch_size), online=False)
            report = self.learner.report(batch)
            if report:
                paths = open_loop.write_report(
                    self.run_dir, steps, images.in_bytes(self.workers.spec.obs, report), show=self.logger
                )
                self.display.message(f"what the world model dreams: {', '.join(map(str, paths))}")
        self.log()
        self.display.phase("training" if self._compiled else "collecting")

    def _begin_evaluation(self, workers: Workers) -> None:
        """From now on a signal hurries these workers too."""
        self._evaluating = workers

    def log(self) -> None:
        """One line of metrics; rates and shares are those since the line before."""
        now, steps, updates = time.monotonic(), self.replay.steps, self.learner.updates
        seconds = max(now - self._logged, 1e-9)
        for_envs, self.collector.seconds_for_envs = self.collector.seconds_for_envs, 0.0
        before, self._idle = self._idle, self.learner.idle
        waited = {"collector_for_envs": for_envs, "device_for_learner": self._idle - before, **self.limiter.drain()}
        self.logger.add(
            {
                "speed/env_steps_per_s": (steps - self._logged_at[0]) / seconds,
                "speed/updates_per_s": (updates - self._logged_at[1]) / seconds,
                "speed/env_frames": steps * self.config.action_repeat,
                "replay/rows": self.replay.rows,
                "collect/incidents": self.incidents,
                **{f"wait/{name}": share / seconds for name, share in waited.items()},
            },
            latest=True,
        )
        self._logged, self._logged_at = now, (steps, updates)
        self.display.update(steps, updates, self.logger.write(steps, updates))

    def save(self, whole: bool = True) -> None:
        """A checkpoint of everything at this step. whole: False when the environments can no longer be asked."""
        self.settle()
        with self._collecting.paused() if self._collecting else contextlib.nullcontext():
            step = self.replay.steps
            if self._saved_at == step:
                return
            self.stopping.check_failed()
            self._forget_aside()
            updates, more = self.learner.updates, self._remembered()
            manifest = resume.save(self.parts, self.logger, step, updates, self.identity, more, whole=whole)
            self.checkpoints.save(step, self.learner.state, manifest.to_json())
            self._needed[step] = resume.names(step, manifest)
            self._saved, self._saved_at = time.monotonic(), step
        kept = {*self.checkpoints.steps(), step}
        self._needed = {one: names for one, names in self._needed.items() if one in kept}
        self.store.prune(set().union(*self._needed.values()))

    def _remembered(self) -> dict[str, Any]:
        """What the loop itself knows, as JSON values."""
        return {"eval_due": self._eval_due}

    def _forget_aside(self) -> None:
        """Removes what a resume has set aside, once a newer checkpoint than the one it went on from is on the disk."""
        if self._set_aside and (self.checkpoints.latest() or 0) > self._resumed_at:
            start.remove_aside(self.run_dir)
            self._set_aside = False

    def failed(self, error: BaseException) -> BaseException:
        """Saves what can be saved, writes error.txt, and gives the error to raise: one line that says where."""
        if self._taken_over:
            return self._taken_over
        self.rescue(error)
        path = start.write_error(self.run_dir, error)
        notes = "; ".join(" ".join(note.split()) for note in getattr(error, "__notes__", ()) if "\n" not in note)
        saved = f"checkpoint {self.checkpoints.latest()} and all rows are saved in {self.run_dir}"
        return RunFailed(f"{start.error_line(error)}; {notes or saved}; go on with --resume; details: {path}")

    def rescue(self, error: BaseException) -> None:
        """Saves what there is; should that fail too, the first error stays the one that is shown."""
        if self._taken_over:
            return
        try:
            self.checkpoints.wait()
        except UserError as second:  # the save under way has failed: the one before it is the newest
            error.add_note(str(second))
        self._saved_at = self.checkpoints.latest() or 0
        lost, diverged = self.learner.lost(), False
        if lost:
            self.following.close()
            self.display.message(
                f"the train state went down with the device; checkpoint {self._saved_at:,} and all rows are kept"
            )
        else:
            diverged = self.learner.diverged()
        if diverged:
            self.display.message(
                f"parameters are not finite any more and not saved; checkpoint {self._saved_at:,} and all rows are kept"
            )
        whole = isinstance(error, Stopped)
        save = self._save_rows if lost or diverged else functools.partial(self.save, whole)
        for keep in (save, self.checkpoints.wait, self._hear, self.log):
            try:
                keep()
            except Exception as second:
                error.add_note(start.error_line(second))

    def _save_rows(self) -> None:
        """The rows alone: with them a run that is resumed from its last checkpoint catches up."""
        with self._collecting.paused() if self._collecting else contextlib.nullcontext():
            self.store.flush(self.replay)
            self.store.wait()

    def settle(self) -> None:
        """Takes the update that is still under way."""
        self.following.settle()

    def _collect_turn(self) -> bool:
        """What the collecting thread does again and again; whether there is more to collect."""
        if self.limiter.wait_for_learner():
            config = self.config.workers
            self.collect(min(config.least or -(-config.envs // 2), config.envs), config.patience)
        return self.replay.steps < self.config.env_steps

    def _tell_limiter(self) -> None:
        self.limiter.collected(self.replay.steps, self.replay.ready(self.config.replay.batch_size))

    def _draw(self) -> tuple[Batch, Rows]:
        """A batch on the devices and where its rows lie; called by the thread that draws ahead."""
        with self.learner.told("drawing a batch"):
            batch, rows = self.source.sample(self.config.replay.batch_size)
            return self.learner.place(batch), rows

    def _hear(self) -> None:
        """Counts and shows what has happened to environments."""
        self.incidents += self._tell(self.workers.incidents())

    def _tell(self, incidents: list[Incident]) -> int:
        """Shows what happened to environments; returns how many incidents."""
        for incident in incidents:
            self.display.message(incident.line)
        return len(incidents)

    def _compile(self, batch: Batch) -> None:
        self.display.phase("compiling")
        self.learner.compile(batch)
        self._compiled = True
        self.display.phase("training")

    def _take(self, update: Update) -> None:
        latent, metrics, priority = self.learner.fetch(update)
        self.replay.refresh(update.rows, latent)
        if priority is not None:
            self.replay.prioritise(update.rows, priority)
        self.logger.add(metrics)
