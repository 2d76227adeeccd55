"""Evaluation: plays whole episodes in new environments with a fixed policy."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from dreamer.errors import UserError
from dreamer.fields import SAME_GROUP, at_least
from dreamer.interfaces import Agent, Variables
from dreamer.plugins import EnvName
from dreamer.runtime.devices import placement
from dreamer.runtime.env.rows import empty_step
from dreamer.runtime.fused.workers import JaxWorkers
from dreamer.runtime.log import images
from dreamer.runtime.log.episodes import Episode, mean_of
from dreamer.runtime.run import device_evaluation
from dreamer.runtime.run.environments import make_workers
from dreamer.runtime.run.shares import Shares
from dreamer.runtime.workers import Config as WorkersConfig
from dreamer.runtime.workers import Incident, Workers
from dreamer.spaces import for_device
from dreamer.steps import Step

MOST_ENVS = 16  # environments at the same time
PROGRESS = 30.0  # seconds between two progress lines of an evaluation
LONGEST_VIDEO = 10**9  # bytes of the frames of one video
SEED = 1_000_003  # keeps the seeds apart from those of the training environments


@dataclasses.dataclass(frozen=True)
class Config:
    """Evaluation while training. All evaluations use the same environment seeds."""

    every: Annotated[int, at_least(0)] = 10_000
    """Agent steps between two evaluations, each with open-loop images; 0 = only at the end."""
    episodes: Annotated[int, at_least(0)] = 10
    """Episodes per evaluation, counted per agent in multi-agent environments; 0 = none."""
    mode: Literal["sample", "mode"] = "sample"
    """Sample actions, as the reference does even in evaluation, or take the most likely one."""
    video: Annotated[Literal["auto", "on", "off"], SAME_GROUP] = "auto"
    """Record a video of the first episode; auto = if the environment can render or has image observations."""
    max_steps: int = 108_000
    """Agent steps after which an episode is cut off and counted as it is; 0 = no limit, with which an environment that
    never ends would block the run. The default is the longest Atari episode without action_repeat."""


class Result(NamedTuple):
    """The result of an evaluation.

    episodes: the episodes, in the order of the environments | seeds: the seed of each episode's environment
    videos: for each recorded environment, the frames [H, W, 3] uint8 of its first episode
    incidents: failures of environments during the evaluation
    agents: the number of agents per environment. Each episode belongs to one agent: Episode.env is
    environment * agents + agent
    lines: lines to print about videos that end early and episodes that were cut off
    """

    episodes: list[Episode]
    videos: list[list[np.ndarray]]
    incidents: list[Incident]
    seeds: list[int]
    agents: int = 1
    lines: Sequence[str] = ()

    @property
    def frames(self) -> list[np.ndarray]:
        """Returns the video of the first environment, frames [H, W, 3] uint8. It is empty if nothing was recorded."""
        return self.videos[0] if self.videos else []

    @property
    def returns(self) -> list[float]:
        """Returns the sum of rewards of each episode."""
        return [episode.episode_return for episode in self.episodes]


def evaluate(
    agent: Agent, policy: Callable[..., Any], variables: Mapping[str, Variables], config: Config, env: EnvName,
    options: Mapping[str, Any], workers: WorkersConfig, *, action_repeat: int, seed: int, record: int = 0,
    folder: str = "", check: Callable[[], None] = lambda: None, report: Callable[[str], None] = lambda line: None,
    begun: Callable[[Workers], None] = lambda workers: None,
) -> Result:  # fmt: skip
    """Makes environments, plays `config.episodes` episodes in them, and closes them.

    policy: `programs.jit_act(agent)`. options: keyword arguments of the environment.
    workers: where environments run and how failures are handled, from `like_training`.
    seed: determines the seeds of the environments and the random key of the policy.
    record, check: as in `run_episodes`. folder: the current folder while environments are made; "": unchanged.
    report: called with a progress line every 30 seconds. begun: called with the environments once they are made.
    Raises UserError if an environment cannot be made, or fails too often in a row.
    """
    made = make_eval_workers(
        env, options, episodes=config.episodes, action_repeat=action_repeat, seed=seed, record=bool(record),
        config=workers, folder=folder,
    )  # fmt: skip
    with contextlib.closing(made):
        begun(made)
        result = run_episodes(
            agent, policy, variables, made, episodes=config.episodes, seed=seed, mode=config.mode, record=record,
            check=check, max_steps=config.max_steps, progress=Progress(report),
        )  # fmt: skip
    # Also the incidents while closing.
    return result._replace(incidents=[*result.incidents, *made.incidents()])


class Progress:
    """Reports the progress of an evaluation every PROGRESS seconds."""

    def __init__(self, report: Callable[[str], None]):
        self._report = report
        self._due = time.monotonic() + PROGRESS

    def __call__(self, steps: int, episodes: int) -> None:
        """Reports if PROGRESS (30) seconds have passed since the last report.

        steps: the number of steps in each environment. episodes: the number of finished episodes.
        """
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + PROGRESS
            self._report(f"evaluating: {steps:,} steps in each environment, {episodes} episodes finished")


def run_episodes(
    agent: Agent, policy: Callable[..., Any], variables: Mapping[str, Variables], workers: Workers, *, episodes: int,
    seed: int, mode: str, record: int = 0, check: Callable[[], None] = lambda: None, max_steps: int = 0,
    progress: Callable[[int, int], None] = lambda steps, episodes: None,
) -> Result:  # fmt: skip
    """Plays `episodes` episodes, a fixed share in each environment, see `Shares`. policy: `programs.jit_act(agent)`.

    Environments written in JAX play in one program on the device, unless episodes are recorded.
    mode: "sample" or "mode", as in Config. record: the first `record` environments record their first episode.
    check: called at every step; it may raise an error to end the evaluation. max_steps: as in Config.
    progress: called at every step with the steps of each environment and the number of finished episodes.
    On the device, both are called after 1,000 steps or fewer.
    Raises UserError if an environment fails too often.
    """
    shares = Shares(workers, episodes, max_steps)
    videos = [_Recording() for _ in range(min(int(record), workers.envs))]
    key = jax.random.fold_in(jax.random.key(seed), 2)
    if isinstance(workers, JaxWorkers) and not videos:
        device_evaluation.play(
            agent, variables, workers, shares, key=key, mode=mode, max_steps=max_steps, check=check, progress=progress
        )
    else:
        _play_on_host(agent, functools.partial(policy, variables, key), workers, shares, videos, mode, check, progress)
    episodes_, seeds = shares.kept()
    lines = [*(one.fault for one in videos if one.fault), *shares.lines()]
    recorded = [one.frames for one in videos if one.frames]
    return Result(episodes_, recorded, workers.incidents(), seeds, workers.spec.agents, lines)


def _play_on_host(
    agent: Agent, policy: Callable[..., Any], workers: Workers, shares: Shares, videos: Sequence[_Recording], mode: str,
    check: Callable[[], None], progress: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Plays the episodes that `shares` counts, with one call of the policy for each turn, and records `videos`."""
    count, carry = 0, placement.first_copy(agent.initial_carry(workers.streams))
    rows = empty_step(workers.spec, workers.streams)
    while not shares.over:
        check()
        progress(count, shares.finished)
        ready, step = workers.receive()
        rows = _with(rows, ready, step)
        for env, one in enumerate(videos):
            one.add(workers, rows, env, ready, step)
        for env in shares.observe(ready, step, workers.finished()):
            if env < len(videos):
                videos[env].over = True
        obs = for_device(workers.spec.obs, rows.obs)
        carry, action, _ = policy(count, carry, obs, rows.is_first, mode)
        workers.send(ready, np.asarray(action)[ready])
        count += 1


class _Recording:
    """Records the first episode of one environment. fault: a line with the reason if the video ends early, else ""."""

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []
        self.over = False
        self.fault = ""

    def add(self, workers: Workers, rows: Step, env: int, ready: np.ndarray, step: Step) -> None:
        """Adds the image of one step of environment `env`, unless the recording is over.

        rows [E * agents]: the newest row of each stream. step: the R rows received last. ready [R]: their streams.
        """
        if self.over:
            return
        own = ready // workers.spec.agents == env
        if step.is_first[own].all():
            self.frames.clear()  # a new environment starts a new video
        try:
            image = frame(workers, rows, env)
            if self.frames and image.shape != self.frames[0].shape:
                sizes = f"{list(self.frames[0].shape)} to {list(image.shape)}"
                raise UserError(f"its frames change from {sizes}")
        except UserError as error:
            self.over = True
            self.fault = f"the video of environment {env} ends after {len(self.frames)} frames: {error}"
            return
        self.frames.append(image)
        self.over = bool(step.is_last[own].all())
        if not self.over and len(self.frames) * image.nbytes >= LONGEST_VIDEO:
            self.over = True
            self.fault = f"the video of environment {env} ends after {len(self.frames)} frames, which are 1 GB"


def metrics(result: Result) -> dict[str, float]:
    """Returns the metrics of an evaluation, named `eval/<name>`, including the environment's own metrics."""
    own = mean_of([episode.metrics for episode in result.episodes])
    return {
        "eval/return": float(np.mean(result.returns)),
        "eval/return_std": float(np.std(result.returns)),
        "eval/length": float(np.mean([episode.length for episode in result.episodes])),
        **{f"eval/{name}": value for name, value in own.items()},
    }


def _with(rows: Step, streams: np.ndarray, step: Step) -> Step:
    """Returns `rows` with the rows of `streams` replaced by those in `step`. All other streams keep their row."""
    if len(streams) == len(rows.reward):
        return step

    def put(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        old = old.copy()
        old[streams] = new
        return old

    obs = {key: put(array, step.obs[key]) for key, array in rows.obs.items()}
    return Step(obs, *(put(old, new) for old, new in zip(rows[1:], step[1:], strict=True)))


def frame(workers: Workers, step: Step, env: int = 0) -> np.ndarray:
    """Returns an image [H, W, 3] uint8 of one environment: what it renders or, if it does not render, an observation.

    The observation is the first image observation of its first agent. step: the newest row of each stream.
    Raises UserError if the environment has no image, or fails to render.
    """
    drawn = workers.render(env)
    if isinstance(drawn, str):
        raise UserError(drawn)
    if drawn is not None:
        return drawn
    shown = sorted(key for key, space in workers.spec.obs.items() if space.image)
    if not shown:
        raise UserError(f"environment {env} neither renders (render_mode rgb_array) nor has image observations")
    return images.rgb(images.to_bytes(workers.spec.obs[shown[0]], step.obs[shown[0]][env * workers.spec.agents]))


INLINE = WorkersConfig(backend="inline")


def like_training(config: WorkersConfig, backend: str) -> WorkersConfig:
    """Returns the workers config of an evaluation: that of training, but with processes in place of Ray.

    config: that of training. backend: the backend that training uses, since config.backend can be "auto".
    """
    backend = {"ray": "processes", "jax": "auto"}.get(backend, backend)
    return dataclasses.replace(config, backend=backend)  # type: ignore[arg-type]


def make_eval_workers(
    env: EnvName, options: Mapping[str, Any], *, episodes: int, action_repeat: int, seed: int, record: bool,
    config: WorkersConfig = INLINE, folder: str = "",
) -> Workers:  # fmt: skip
    """Makes min(episodes, 16) new environments. Their seeds depend only on `seed`.

    record: whether the environments must render images. config: from `like_training`. folder: as in `evaluate`.
    """
    return make_workers(
        dataclasses.replace(config, envs=min(episodes, MOST_ENVS)), env, options, action_repeat=action_repeat,
        seed=SEED + seed, render_mode="rgb_array" if record else None, folder=folder,
    )  # fmt: skip


def can_record(
    env: EnvName, options: Mapping[str, Any], wanted: Literal["auto", "on", "off"], config: WorkersConfig = INLINE,
    folder: str = "",
) -> tuple[bool, str]:  # fmt: skip
    """Returns whether to record videos, and a line to print, such as the reason why not; "": nothing to print.

    Makes one environment to find out. wanted: "auto"; "on": raises UserError if videos cannot be recorded; "off":
    returns False. config, folder: as in `make_eval_workers`.
    """
    if wanted == "off":
        return False, ""
    try:
        workers = make_eval_workers(
            env, options, episodes=1, action_repeat=1, seed=0, record=True, config=config, folder=folder
        )
        with contextlib.closing(workers):
            ready, step = workers.receive()
            frame(workers, _with(empty_step(workers.spec, workers.streams), ready, step))
        return True, "; ".join(incident.text for incident in workers.incidents())
    except Exception as error:
        # Training does not need images, so any error of a renderer is reported and the run continues.
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        if wanted == "on":
            raise UserError(f"eval.video=on, but {env!r} cannot be recorded: {cause}") from error
        return False, f"no episode videos: {cause}"
