"""The host loop: collect, train as the replay ratio asks, log, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np

from dreamer import agent as agents
from dreamer.config import Config, to_yaml
from dreamer.errors import UserError
from dreamer.runtime import devices, evaluation, pictures, ratio, replay
from dreamer.runtime.checkpoint import Checkpoints
from dreamer.runtime.collector import Collector
from dreamer.runtime.learner import Learner, Update
from dreamer.runtime.metrics import EpisodeTracker, Logger, episode_metrics
from dreamer.runtime.replay import Replay
from dreamer.runtime.run_dir import CONFIG, create_run_dir, disk_error, refuse_used
from dreamer.runtime.steps import Batch
from dreamer.runtime.terminal import Display
from dreamer.runtime.workers import Workers, make_workers
from dreamer.spaces import Space, Spec

FPS = 30


def train(config: Config) -> Path:
    """Trains one agent in a new run directory and returns that directory.

    Raises UserError for everything that the user can mend. Interrupted, it saves the train state first.
    """
    given, config = config, dataclasses.replace(config, run_dir=config.run_dir or default_run_dir(config))
    refuse_used(config.run_dir)
    with contextlib.ExitStack() as stack:
        run = Run(config, stack)
        write_config(run.run_dir, given)
        try:
            while run.replay.steps < config.env_steps:
                run.collect()
                run.learn()
                run.tend()
            run.finish()
        except (KeyboardInterrupt, UserError) as error:
            run.rescue(error)
            raise
    return Path(config.run_dir)


class Run:
    """Owns all that a run consists of. `collect`, `learn` and `tend` make one turn of the loop."""

    def __init__(self, config: Config, stack: contextlib.ExitStack):
        """Opens everything on `stack`. The run directory is made last of all that may be refused."""
        self.config = config
        self.rate = ratio.updates_per_step(config.replay_ratio, config.replay.batch_size, config.replay.batch_length)
        self.display = stack.enter_context(Display(config.env_steps, every=config.log.every))
        self.workers: Workers = stack.enter_context(
            make_workers(
                config.workers, config.env, config.env_options, action_repeat=config.action_repeat, seed=config.seed
            )
        )
        spec, envs = self.workers.spec, self.workers.envs
        self.film, why_not = evaluation.can_film(config.env, config.env_options, config.eval.video)
        self.agent = agents.make(config.agent, spec)
        size = replay.plan(spec, self.agent.storage, config.replay, envs=envs, env_steps=config.env_steps)
        self.learner = Learner(
            self.agent, seed=config.seed, batch_size=config.replay.batch_size, lockstep=config.lockstep
        )
        lines = [*describe(config, spec, self.learner), self.workers.describe(), size.describe()]
        self.display.header([*lines, *filter(None, [why_not])])
        self.run_dir = create_run_dir(config.run_dir)
        self.replay = Replay(
            spec, self.agent.storage, config.replay, envs=envs, seed=config.seed, env_steps=config.env_steps, size=size
        )
        self.collector = Collector(self.agent, self.workers, self.replay, seed=config.seed)
        self.tracker = EpisodeTracker(envs)
        self.logger = stack.enter_context(Logger(self.run_dir, config.log, dataclasses.asdict(config)))
        self.checkpoints = stack.enter_context(Checkpoints(self.run_dir, config.checkpoint.keep))
        self._eval_policy = devices.jit_policy(self.agent)
        self._credited: Fraction | None = None
        self._pending: Update | None = None
        self._compiled = False
        self._eval_due = config.eval.every or config.env_steps
        self._logged = self._saved = time.monotonic()
        self._logged_at = (0, 0)
        self.display.phase("collecting")

    def collect(self) -> None:
        """One row of every environment into the replay."""
        step = self.collector.collect(self.learner.acting)
        self._tell(self.workers)
        for episode in self.tracker.observe(step):
            self.logger.add(episode_metrics([episode]))

    def learn(self) -> None:
        """As many updates as the rows collected so far ask for."""
        sizes = self.config.replay
        if not self.replay.ready(sizes.batch_size):
            return
        updates, self._credited = ratio.due(self._credited, self.replay.steps, self.rate)
        for _ in range(updates):
            batch, rows = self.replay.sample(sizes.batch_size)
            if not self._compiled:
                self._compile(batch)
            update = self.learner.step(batch, rows)
            # One update late, so that nobody waits for the device; at once in lockstep.
            self._take(update if self.config.lockstep else self._pending)
            self._pending = None if self.config.lockstep else update

    def tend(self) -> None:
        """Whatever is due of showing, logging, evaluating and saving."""
        steps, now = self.replay.steps, time.monotonic()
        self.display.update(steps, self.learner.updates)
        if steps >= self._eval_due and steps < self.config.env_steps:
            self._eval_due += self.config.eval.every
            self.evaluate()
        if now - self._logged >= self.config.log.every:
            self.log()
        if now - self._saved >= self.config.checkpoint.every:
            self._saved = now
            self.save()

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
            with contextlib.closing(
                evaluation.make_eval_workers(
                    config.env, config.env_options, episodes=config.eval.episodes,
                    action_repeat=config.action_repeat, seed=config.seed, film=self.film,
                )
            ) as workers:  # fmt: skip
                result = evaluation.run_episodes(
                    self.agent, self._eval_policy, self.learner.acting, workers,
                    episodes=config.eval.episodes, seed=config.seed, mode=config.eval.mode, film=self.film,
                )  # fmt: skip
                self._tell(workers)
            returns = result.returns
            lengths = [episode.length for episode in result.episodes]
            self.logger.add(
                {
                    "eval/return": np.mean(returns),
                    "eval/return_std": np.std(returns),
                    "eval/length": np.mean(lengths),
                },
                latest=True,
            )
            self.display.message(
                f"evaluation at {steps:,} steps: return {np.mean(returns):.1f} +- {np.std(returns):.1f} "
                f"over {len(returns)} episodes"
            )
            if result.frames:
                path = self.run_dir / "pictures" / f"episode_{steps:09d}.mp4"
                pictures.write_episode_video(path, result.frames, FPS)
                self.display.message(f"what the agent does: {path}")
        if len(self.replay):
            batch, _ = self.replay.sample(min(6, config.replay.batch_size), online=False)
            report = self.learner.report(batch)
            if report:
                paths = pictures.write_report(self.run_dir, steps, report, show=self.logger)
                self.display.message(f"what the world model dreams: {', '.join(map(str, paths))}")
        self.log()
        self.display.phase("training" if self._compiled else "collecting")

    def log(self) -> None:
        """One line of metrics; rates are those since the line before."""
        now, steps, updates = time.monotonic(), self.replay.steps, self.learner.updates
        seconds = max(now - self._logged, 1e-9)
        self.logger.add(
            {
                "speed/env_steps_per_s": (steps - self._logged_at[0]) / seconds,
                "speed/updates_per_s": (updates - self._logged_at[1]) / seconds,
                "speed/env_frames": steps * self.config.action_repeat,
                "replay/rows": self.replay.rows,
            },
            latest=True,
        )
        self._logged, self._logged_at = now, (steps, updates)
        self.display.update(steps, updates, self.logger.write(steps, updates))

    def save(self) -> None:
        """The train state, as the checkpoint of this step."""
        self.settle()
        meta = {"env_steps": self.replay.steps, "updates": self.learner.updates}
        self.checkpoints.save(self.replay.steps, self.learner.state, meta)

    def rescue(self, error: BaseException) -> None:
        """Saves what there is; should that fail too, the first error stays the one that is told."""
        for keep in (self.save, self.log):
            try:
                keep()
            except UserError as second:
                error.add_note(str(second))

    def settle(self) -> None:
        """Takes the update that is still under way."""
        self._take(self._pending)
        self._pending = None

    def _tell(self, workers: Workers) -> None:
        for incident in workers.incidents():
            self.display.message(f"environment made anew: {incident.text}")

    def _compile(self, batch: Batch) -> None:
        self.display.phase("compiling")
        self.learner.compile(batch)
        self._compiled = True
        self.display.phase("training")

    def _take(self, update: Update | None) -> None:
        if update is not None:
            self.replay.refresh(update.rows, devices.to_host(update.latent))
            self.logger.add(update.metrics)


def describe(config: Config, spec: Spec, learner: Learner) -> list[str]:
    """The lines that introduce a run."""
    params = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in learner.state.params.items()}
    parts = ", ".join(f"{name} {count:,}" for name, count in params.items())
    dtype = agents.compute_dtype(config.agent.compute_dtype).name
    kinds = {device.device_kind for device in learner.mesh.devices.flat}
    sizes = config.replay
    return [
        f"run: {config.run_dir}",
        f"env: {config.env} x {config.workers.envs}, shows {', '.join(f'{k} {text(s)}' for k, s in spec.obs.items())}, "
        f"takes {text(spec.action)}",
        f"agent: {sum(params.values()):,} parameters ({parts}), {dtype} on {learner.mesh.size} x {', '.join(kinds)}",
        ratio.describe(config.replay_ratio, sizes.batch_size, sizes.batch_length),
    ]


def text(space: Space) -> str:
    """A space in a few characters: "uint8 64x64x3", "one of 18"."""
    size = "x".join(map(str, space.shape))
    if space.discrete:
        return f"{size + ' ' if size else ''}one of {space.classes}"
    return f"{space.dtype} {size}"


def default_run_dir(config: Config) -> str:
    """runs/<time>-<env>-seed<seed>."""
    env = "".join(c if c.isalnum() or c in "-_." else "-" for c in config.env)
    return f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{env}-seed{config.seed}"


def write_config(run_dir: Path, config: Config) -> None:
    """The resolved config, itself a preset."""
    try:
        (run_dir / CONFIG).write_text(to_yaml(config))
    except OSError as error:
        raise disk_error(error, run_dir / CONFIG) from error
