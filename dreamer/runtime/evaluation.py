"""Whole episodes in fresh environments with a policy that does not learn."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from dreamer.errors import UserError
from dreamer.interfaces import Agent, Params
from dreamer.plugins import EnvName
from dreamer.runtime import devices, pictures
from dreamer.runtime.metrics import Episode, EpisodeTracker
from dreamer.runtime.rows import empty_step
from dreamer.runtime.steps import Step
from dreamer.runtime.workers import Config as WorkersConfig
from dreamer.runtime.workers import Incident, InlineWorkers, make_workers
from dreamer.spaces import for_device

MOST_ENVS = 16  # side by side
SEED = 1_000_003  # apart from the seeds of the training environments


@dataclasses.dataclass(frozen=True)
class Config:
    """Evaluation while training; the same environment seeds every time."""

    every: int = 10_000
    """Agent steps between two evaluations, open-loop pictures with each; 0 = only at the end."""
    episodes: int = 10
    """Episodes of each evaluation, of several agents in an environment those of each; 0 = none."""
    mode: Literal["sample", "mode"] = "sample"
    """Sample actions, as the reference does in evaluation too, or take the most likely one."""
    video: Literal["auto", "on", "off"] = "auto"
    """Film the first episode; auto = if the environment can draw itself or shows pictures."""


class Result(NamedTuple):
    """episodes in order of environments | films: frames [H, W, 3] uint8 of the first episode of each filmed environment
    incidents: environments that failed and were made anew | seeds: of each episode, that of its environment
    agents: in each environment, every one a stream: Episode.env is environment * agents + agent
    """

    episodes: list[Episode]
    films: list[list[np.ndarray]]
    incidents: list[Incident]
    seeds: list[int]
    agents: int = 1

    @property
    def frames(self) -> list[np.ndarray]:
        """The film of the first environment, empty when nothing was filmed."""
        return self.films[0] if self.films else []

    @property
    def returns(self) -> list[float]:
        """The return of each episode."""
        return [episode.episode_return for episode in self.episodes]


def run_episodes(
    agent: Agent, policy: Callable[..., Any], params: Params, workers: InlineWorkers, *, episodes: int, seed: int,
    mode: str, film: int = 0, check: Callable[[], None] = lambda: None,
) -> Result:  # fmt: skip
    """Plays `episodes` episodes, each environment its fixed share, so that short ones are not favoured.

    With several agents in an environment each of them plays as many. policy: `devices.jit_policy(agent)`. film: number
    of environments, from the first, whose first episode is filmed; fewer when there are fewer. check: called at every
    step, to raise what shall end it. Raises UserError as the environments do.
    """
    envs, streams, agents = workers.envs, workers.streams, workers.spec.agents
    quota = np.array([episodes // envs + (i < episodes % envs) for i in range(envs)]).repeat(agents)
    tracker = EpisodeTracker(streams)
    films: list[list[np.ndarray]] = [[] for _ in range(min(int(film), envs))]
    filmed = [False] * len(films)
    done: list[list[tuple[Episode, int]]] = [[] for _ in range(streams)]
    key, count = jax.random.fold_in(jax.random.key(seed), 2), 0
    carry = devices.first_copy(agent.initial_carry(streams))
    rows = empty_step(workers.spec, streams)
    while any(len(own) < share for own, share in zip(done, quota, strict=True)):
        check()
        ready, step = workers.receive()
        rows = _with(rows, ready, step)
        for env, frames in enumerate(films):
            if filmed[env]:
                continue
            own = ready // agents == env
            if step.is_first[own].all():
                frames.clear()  # an environment that was made anew begins again
            frames.append(frame(workers, rows, env))
            filmed[env] = bool(step.is_last[own].all())
        for episode in tracker.observe(step, ready):
            done[episode.env].append((episode, workers.seed(episode.env // agents)))
        obs = for_device(workers.spec.obs, rows.obs)
        carry, action, _ = policy(params, key, count, carry, obs, rows.is_first, mode)
        workers.send(ready, np.asarray(action)[ready])
        count += 1
    kept = [pair for own, share in zip(done, quota, strict=True) for pair in own[:share]]
    episodes_, seeds = [list(side) for side in zip(*kept, strict=True)]
    return Result(episodes_, films, workers.incidents(), seeds, agents)


def _with(rows: Step, streams: np.ndarray, step: Step) -> Step:
    """The rows of all streams, with those of `streams` new; an agent that is out of its game keeps its last."""
    if len(streams) == len(rows.reward):
        return step

    def put(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        old = old.copy()
        old[streams] = new
        return old

    obs = {key: put(array, step.obs[key]) for key, array in rows.obs.items()}
    return Step(obs, *(put(old, new) for old, new in zip(rows[1:], step[1:], strict=True)))


def frame(workers: InlineWorkers, step: Step, env: int = 0) -> np.ndarray:
    """A picture [H, W, 3] uint8 of one environment: drawn by itself, else its (first agent's) first image observation.

    step: rows of all streams. UserError when it has neither.
    """
    drawn = workers.rows[env].render()
    if drawn is not None:
        return drawn
    images = sorted(key for key, space in workers.spec.obs.items() if space.image)
    if not images:
        name = workers.rows[env].name
        raise UserError(f"env {name!r} neither draws itself (render_mode rgb_array) nor shows pictures")
    return pictures.rgb(pictures.to_bytes(workers.spec.obs[images[0]], step.obs[images[0]][env * workers.spec.agents]))


def make_eval_workers(
    env: EnvName, options: Mapping[str, Any], *, episodes: int, action_repeat: int, seed: int, film: bool
) -> InlineWorkers:
    """Fresh environments in this process, at most 16 side by side; seeds depend on `seed` alone."""
    config = WorkersConfig(backend="inline", envs=min(episodes, MOST_ENVS))
    workers = make_workers(
        config, env, options, action_repeat=action_repeat, seed=SEED + seed,
        render_mode="rgb_array" if film else None,
    )  # fmt: skip
    assert isinstance(workers, InlineWorkers)
    return workers


def can_film(env: EnvName, options: Mapping[str, Any], wanted: Literal["auto", "on", "off"]) -> tuple[bool, str]:
    """Whether videos will be made, and one line that says why not. With "on", UserError instead of that line."""
    if wanted == "off":
        return False, ""
    try:
        with contextlib.closing(
            make_eval_workers(env, options, episodes=1, action_repeat=1, seed=0, film=True)
        ) as workers:
            ready, step = workers.receive()
            frame(workers, _with(empty_step(workers.spec, workers.streams), ready, step))
        return True, ""
    except Exception as error:
        # Whatever a renderer raises, a training that needs no pictures goes on, and says so.
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        if wanted == "on":
            raise UserError(f"eval.video=on, but {env!r} cannot be filmed: {cause}") from error
        return False, f"no episode videos: {cause}"
