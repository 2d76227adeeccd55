"""Runs all checks of `dreamer check`, one after another. Imports no jax."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import gymnasium

from dreamer.apps.check import (
    channels,
    endings,
    gymnasium_checker,
    handed_out,
    picture,
    rewards,
    seeds,
    self_resets,
    spaces,
    times,
)
from dreamer.apps.check.answers import NoAnswer
from dreamer.apps.check.looks import Key, keys_of
from dreamer.apps.check.solo import Solo, check_team
from dreamer.apps.check.verdicts import Settings, Verdict, counted, note, ok, warning, wrong
from dreamer.apps.check.walk import Walk, walk
from dreamer.apps.check.watch import EnvFailed, Watch, close_quietly
from dreamer.errors import UserError
from dreamer.runtime.env.actions import action_reader
from dreamer.runtime.env.api_errors import NO_SEED, takes_no_seed
from dreamer.runtime.env.observations import readers
from dreamer.runtime.env.parallel import AGENT, is_parallel
from dreamer.runtime.workers.interface import WorkerPlan
from dreamer.spaces import MASK


def examine(name: str, settings: Settings, watch: Watch) -> Iterator[Verdict]:
    """Yields every verdict on the environment called `name` as soon as it is known.

    Raises UserError when there is no such environment, or when the file `settings.picture` cannot be written.
    """
    made = functools.partial(watch.made, name, settings.env_options)
    try:
        env = made()
    except EnvFailed as failure:
        yield _failed(failure)
        return
    parallel = yield from _of_agents(env, name, settings, watch)
    if parallel is None:
        return

    def make(render_mode: str | None = None) -> gymnasium.Env:
        return Solo(made(render_mode), name) if parallel else made(render_mode)

    env = make() if parallel else env
    lines = gymnasium_checker.lines(env, watch)
    own = []
    for verdict in _own(name, settings, watch, make, env):
        own.append(verdict)
        yield verdict
    yield from gymnasium_checker.verdicts(lines, own)


def _own(
    name: str, settings: Settings, watch: Watch, make: Callable[..., gymnasium.Env], env: gymnasium.Env
) -> Iterator[Verdict]:
    """Yields all verdicts on an environment with one agent, except those of gymnasium's checker."""
    keys, found = _spaces(env, name)
    yield from found
    whole = seeded = False
    of_steps: list[Verdict] = []
    if keys:
        taken = walk(
            env, keys, watch, steps=settings.steps, episodes=settings.episodes, seed=settings.seed,
            repeat=settings.action_repeat,
        )  # fmt: skip
        whole, seeded = taken.whole, all(verdict.key != "reset-seed" for verdict in taken.verdicts)
        of_steps = _of_walk(taken, keys, env)
        yield from of_steps
        if taken.rows and (MASK in taken.rows[0].info or any(key.name == MASK for key in keys)):
            yield note("mask", "it has an action mask, which the random steps obey; gymnasium's checker does not")
    watch.place = "the end of the random steps"
    yield from _attempt(lambda: _closed(env))
    if not whole or not seeded:
        yield note("stopped", "the remaining checks were skipped: seeds, times, pictures")
        return
    decided = _attempt(lambda: seeds.check(make, keys, watch, seed=settings.seed, steps=settings.steps))
    yield from decided
    if not {verdict.key for verdict in (*of_steps, *decided)} & {"reset-inside", "unseeded", "reset-leaks", "raises"}:
        yield from _attempt(lambda: self_resets.check(make, keys, watch, taken, settings.seed))
    plan = WorkerPlan(name, settings.env_options, settings.action_repeat, settings.seed, None, settings.workers)
    yield from _attempt(lambda: times.check(taken, plan, watch))
    yield from _attempt(lambda: _drawn(make, watch, settings))


def _of_agents(
    env: Any, name: str, settings: Settings, watch: Watch
) -> Generator[Verdict, None, bool | None]:
    """Yields the verdict on all agents, if `env` is a parallel environment (an environment with several agents).

    The generator returns whether `env` is a parallel environment, or None if the check cannot go on.
    """
    try:
        parallel = is_parallel(env)
    except UserError as error:
        yield wrong("agents", f"env {name!r}: {error}")
        return None
    if not parallel:
        return False
    found = _attempt(lambda: [check_team(env, name, settings, watch)])
    yield from found
    close_quietly(env)
    if found[0].level == "ok":
        return True
    yield note("stopped", "the remaining checks were skipped")
    return None


def _attempt(look: Callable[[], list[Verdict]]) -> list[Verdict]:
    """Calls `look` and returns its verdicts. If the environment fails, returns a verdict on this failure instead."""
    try:
        return look()
    except EnvFailed as failure:
        return [_failed(failure)]
    except NoAnswer as error:
        return [error.verdict]


def _closed(env: gymnasium.Env) -> list[Verdict]:
    env.close()
    return []


def _failed(failure: EnvFailed) -> Verdict:
    if failure.call == "close":
        return warning("close", str(failure))
    if failure.call == "reset" and takes_no_seed(failure.error):
        return wrong("reset-seed", NO_SEED)
    return wrong("construction" if failure.call == "make" else "raises", str(failure))


def _spaces(env: gymnasium.Env, name: str) -> tuple[list[Key], list[Verdict]]:
    """Returns the keys of the observation, and verdicts. There are no keys if a space is not supported."""
    try:
        keys = keys_of(env, readers(env, name, action_reader(env, name).action))
        return keys, spaces.check(env, keys)
    except UserError as error:
        return [], [wrong("space", str(error))]


def _of_walk(taken: Walk, keys: Sequence[Key], env: gymnasium.Env) -> list[Verdict]:
    fit = f"{counted(len(taken.rows), 'row')} of random actions fit their spaces, all numbers are finite"
    single = taken.verdicts or [ok("values", fit)]
    varied = [key for key in keys if not (isinstance(env, Solo) and key.name == AGENT)]
    several = channels.check(taken, varied) + handed_out.check(taken) + endings.check(taken, env)
    return single + several + rewards.check(taken)


def _drawn(make: Callable[..., gymnasium.Env], watch: Watch, settings: Settings) -> list[Verdict]:
    """Checks rendering. Then draws the picture of the observations if `settings.picture` is set. Returns verdicts."""
    mode: str | None = "rgb_array"
    try:
        env = make(mode)
    except (EnvFailed, UserError) as error:
        verdicts = [note("render", f"it cannot be made with render_mode 'rgb_array': {error}")]
    else:
        verdicts = times.render(env, watch, settings.seed)
        close_quietly(env)
    if settings.picture:
        env = make(mode if verdicts[0].level == "ok" else None)
        verdicts += picture.check(env, settings.picture, watch, settings.seed, settings.action_repeat)
        close_quietly(env)
    return verdicts
