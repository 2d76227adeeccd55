"""The host loop: collect, train as the replay ratio asks, log, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import gymnasium
import numpy as np

from dreamer import agent as agents
from dreamer.config import Config, load, to_yaml
from dreamer.errors import UserError
from dreamer.plugins import EnvName, maker
from dreamer.runtime import capacity, devices, disk_tier, evaluation, header, pictures, ratio, replay, resume
from dreamer.runtime.checkpoint import Checkpoints
from dreamer.runtime.collector import Collecting, Collector
from dreamer.runtime.device_rows import DeviceRows, describe_observations
from dreamer.runtime.distributed import refuse_several
from dreamer.runtime.following import Following
from dreamer.runtime.init_from import begin_with
from dreamer.runtime.learner import Learner, Update
from dreamer.runtime.limiter import Limiter
from dreamer.runtime.metrics import EpisodeTracker, Logger, episode_metrics
from dreamer.runtime.prefetch import Prefetch
from dreamer.runtime.replay import Replay
from dreamer.runtime.resume import Found, Parts
from dreamer.runtime.row_store import RowStore
from dreamer.runtime.run_dir import CONFIG, ROWS, create_run_dir, existing_run_dir, refuse_used, write_config
from dreamer.runtime.steps import Batch, Rows
from dreamer.runtime.stopping import Stopped, Stopping
from dreamer.runtime.terminal import Display
from dreamer.runtime.workers import Incident, Workers, make_workers

FPS = 30
Resume = Literal["no", "yes", "auto"]


def train(
    config: Config, *, resume: Resume = "no", make_env: Callable[..., gymnasium.Env] | None = None
) -> Path:
    """Trains one agent in a run directory and returns that directory.

    resume: "no" makes a new run; "yes" goes on with the one in config.run_dir, "auto" too if there is one.
    make_env: makes the environment, called with config.env_options, in place of config.env.
    Raises UserError for everything that the user can mend. Interrupted, it saves first and raises Stopped.
    """
    refuse_several(config.devices)
    env: EnvName = maker(make_env) if make_env else config.env
    config = dataclasses.replace(config, env=str(env))
    given, config = config, dataclasses.replace(config, run_dir=config.run_dir or header.default_run_dir(config))
    found, used = _found(given, resume)
    if found and found.step >= config.env_steps:
        print(f"{config.run_dir} has made its {found.step:,} env_steps; give more to go on")
        return Path(config.run_dir)
    with contextlib.ExitStack() as stack:
        run = Run(config, stack, found, used, env)
        write_config(run.run_dir, to_yaml(given))
        try:
            run.start(found)
            if config.lockstep:
                run.take_turns()
            else:
                run.side_by_side()
            run.finish()
        except (KeyboardInterrupt, UserError) as error:
            run.rescue(error)
            raise
    return Path(config.run_dir)


def _found(config: Config, resume_: Resume) -> tuple[Found | None, bool]:
    """The checkpoint to go on from, if any, and whether the run directory is in use already."""
    if resume_ == "no":
        if config.run_dir:
            refuse_used(config.run_dir)
        return None, False
    if not config.run_dir:
        raise UserError("resume needs the run directory: --run-dir runs/NAME")
    if resume_ == "auto" and not (Path(config.run_dir).expanduser() / CONFIG).exists():
        return None, False
    run_dir = existing_run_dir(config.run_dir)
    resume.check_config(config, run_dir)
    with Checkpoints(run_dir) as checkpoints:
        return resume.find(checkpoints, run_dir), True


class Run:
    """Owns all that a run consists of. In lockstep `collect`, `learn` and `tend` make one turn of the loop."""

    def __init__(
        self, config: Config, stack: contextlib.ExitStack, found: Found | None = None, used: bool = False,
        env: EnvName | None = None,
    ):  # fmt: skip
        """Opens everything on `stack`. The run directory is made last of all that may be refused."""
        self.config, self.env = config, env or config.env
        self.rate = ratio.updates_per_step(config.replay_ratio, config.replay.batch_size, config.replay.batch_length)
        self.display = stack.enter_context(Display(config.env_steps, every=config.log.every))
        self.stopping = stack.enter_context(Stopping(self.display.message))
        self.workers: Workers = stack.enter_context(
            make_workers(
                config.workers, self.env, config.env_options, action_repeat=config.action_repeat, seed=config.seed
            )
        )
        self.stopping.then(self.workers.hurry)
        spec, streams = self.workers.spec, self.workers.streams
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
            longer = config.env_steps > load(Path(config.run_dir).expanduser() / CONFIG).env_steps
            length = resume.ring_length(found, size.rows_per_env, longer)
            size = dataclasses.replace(size, rows_per_env=length, bound="the run that is resumed")
        self.learner = Learner(
            self.agent, spec, seed=config.seed, batch_size=config.replay.batch_size, lockstep=config.lockstep,
            config=config.devices,
        )  # fmt: skip
        most = capacity.rows_bound(
            size, capacity.row_bytes(self.agent.storage), keep=config.checkpoint.keep, env_steps=config.env_steps
        )
        rows = capacity.describe_rows(most, disk_tier.free_space(config.run_dir))
        lines = [*header.describe(config, spec, self.learner), self.workers.describe(), size.describe(), rows]
        if config.replay.on_device:
            lines.append(describe_observations(spec, size.steps))
        self.display.header([*lines, *filter(None, [why_not])])
        self.run_dir = create_run_dir(config.run_dir, used)
        self.identity = found.meta["run"] if found else uuid.uuid4().hex
        self.checkpoints = stack.enter_context(
            Checkpoints(self.run_dir, config.checkpoint.keep, config.checkpoint.keep_every)
        )
        self.replay = Replay(
            spec, self.agent.storage, config.replay, envs=streams, seed=config.seed, env_steps=config.env_steps,
            size=size, run_dir=self.run_dir,
        )  # fmt: skip
        stack.callback(self.replay.close)
        self.store = stack.enter_context(RowStore(self.run_dir / ROWS, self.identity))
        restored = resume.load_rows(found, self.store, self.replay, config.lockstep) if found else None
        on_device = config.replay.on_device
        self.source = DeviceRows(self.learner.mesh, spec, self.replay) if on_device else self.replay
        # Closed before the replay is. In lockstep nothing may depend on when a thread runs.
        self.batches = Prefetch(self._draw, depth=0 if config.lockstep else config.replay.prefetch)
        stack.callback(self.batches.close)
        self.following = Following(self._take, threaded=not config.lockstep)
        stack.callback(self.following.close)
        self.collector = Collector(self.agent, self.learner.part, self.workers, self.replay, seed=config.seed)
        self.tracker = EpisodeTracker(streams)
        self.limiter = Limiter(self.rate, streams)
        going_on = resume.resumed_logger(restored, self.replay) if restored else None
        self.logger = stack.enter_context(
            Logger(self.run_dir, config.log, dataclasses.asdict(config), resumed=going_on)
        )
        self.incidents = 0
        self._restored = restored
        self._collecting: Collecting | None = None
        self._eval_policy = devices.jit_policy(self.agent)
        self._compiled = False
        self._eval_due = config.eval.every or config.env_steps
        self._oldest: dict[int, np.ndarray] = {}
        self._logged = self._saved = self._flushed = time.monotonic()
        self._saved_at = self._flushed_at = 0  # environment steps
        self._idle = 0.0  # of the learner, at the last line of metrics
        self._logged_at = (0, 0)
        self.display.phase("collecting")
        self.stopping.begun()

    def start(self, found: Found | None) -> None:
        """Takes up the run that was found, else saves a new one before its first row, so that none is ever lost."""
        if not found:
            if self.config.init_from:
                taken = begin_with(self.learner.state, self.config.init_from, self.config.init_parts)
                self.learner.load(taken.state, 0)
                for line in taken.lines:
                    self.display.message(line)
            self.save()
            self.checkpoints.wait()
            return
        state, _ = self.checkpoints.restore(self.learner.state, found.step)
        self.learner.load(state, int(found.meta["updates"]))
        self._saved_at = self._flushed_at = found.step
        for step in self.checkpoints.steps():
            self._oldest[step] = np.array(self.checkpoints.meta(step)["oldest"])
        restored, self._restored = self._restored, None
        assert restored is not None
        for line in resume.load_rest(restored, self.parts):
            self.display.message(line)
        self._eval_due = restored.head["loop"]["eval_due"]
        if not self.config.eval.every:
            self._eval_due = self.config.env_steps
        self._logged_at = (self.replay.steps, self.learner.updates)
        self._tell_limiter()

    @property
    def parts(self) -> Parts:
        """Who remembers what, apart from the learner."""
        return Parts(
            self.workers, self.replay, self.store, self.collector, self.tracker, self.limiter, self.logger
        )

    def take_turns(self) -> None:
        """Lockstep: a row of every environment, all updates that are due, and again."""
        while self.replay.steps < self.config.env_steps:
            self.collect()
            while self.limiter.due():
                self.learn()
            self.tend()

    def side_by_side(self) -> None:
        """A thread collects from whichever environments are ready, this one trains; the limiter holds the ratio."""
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
        if steps >= self._eval_due and steps < self.config.env_steps:
            self.evaluate()
            self._eval_due += self.config.eval.every
        if now - self._logged >= self.config.log.every:
            self.log()
        full = steps - self._flushed_at >= capacity.rows_between_flushes(self.replay.size)
        if full or now - self._flushed >= self.config.replay.flush > 0:
            self._flushed, self._flushed_at = now, steps
            self.store.flush(self.replay)
        many = steps - self._saved_at >= capacity.rows_between_checkpoints(self.replay.size)
        if many or now - self._saved >= self.config.checkpoint.every:
            self._saved = now
            self.save()
        self.stopping.check()

    def finish(self) -> None:
        """The last evaluation with its line of metrics, the last checkpoint."""
        self.evaluate()
        self.save()
        self.display.message(f"done: {self.run_dir}")

    def evaluate(self) -> None:
        """Episodes in fresh environments, their video, open-loop pictures of the world model; a line of metrics."""
        config, steps = self.config, self.replay.steps
        self.settle()
        self.learner.sync()
        self.display.phase("evaluating")
        if config.eval.episodes:
            with self.learner.told("evaluating"):
                result = evaluation.evaluate(
                    self.agent, self._eval_policy, devices.first_copy(self.learner.state.params), config.eval,
                    self.env, config.env_options, evaluation.like_training(config.workers, self.workers.backend),
                    action_repeat=config.action_repeat, seed=config.seed, film=int(self.film),
                    folder=self.workers.folder, check=self.stopping.check, tell=self.display.message,
                    begun=lambda workers: self.stopping.then(workers.hurry),
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
                    pictures.write_episode_video(path, result.frames, FPS)
                    self.display.message(f"what the agent does: {path}")
                except UserError as error:
                    self.display.message(f"no film of this evaluation: {error}")
        if len(self.replay):
            batch, _ = self.replay.sample(min(6, config.replay.batch_size), online=False)
            report = self.learner.report(batch)
            if report:
                paths = pictures.write_report(
                    self.run_dir, steps, pictures.in_bytes(self.workers.spec.obs, report), show=self.logger
                )
                self.display.message(f"what the world model dreams: {', '.join(map(str, paths))}")
        self.log()
        self.display.phase("training" if self._compiled else "collecting")

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
            self._saved_at = step = self.replay.steps
            if self.checkpoints.latest() == step:
                return
            meta = resume.save(self.parts, step, self.identity, {"eval_due": self._eval_due}, whole=whole)
            self._oldest[step] = np.array(meta["oldest"])
            numbers = {"env_steps": step, "updates": self.learner.updates}
            self.checkpoints.save(step, self.learner.state, {**numbers, **meta})
        kept = [*self.checkpoints.steps()[-self.config.checkpoint.keep :], step]
        self.store.prune(np.min([self._oldest[one] for one in kept], axis=0), kept)

    def rescue(self, error: BaseException) -> None:
        """Saves what there is; should that fail too, the first error stays the one that is told."""
        lost = self.learner.lost()
        if lost:
            self.following.close()
            self.display.message(
                f"the train state went down with the device; checkpoint {self._saved_at:,} and all rows are kept"
            )
        whole = isinstance(error, Stopped)
        save = self._save_rows if lost else functools.partial(self.save, whole)
        for keep in (save, self._hear, self.log):
            try:
                keep()
            except UserError as second:
                error.add_note(str(second))

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
