"""Checks how episodes end, and whether the last observation is the true one. Imports no jax.

The agent assumes that the value after a `terminated` row is 0, and that the value after a `truncated` row is unknown.
Its continue and reward heads learn the end from the observation of the last row.
"""

from __future__ import annotations

from itertools import pairwise

import gymnasium
import numpy as np

from dreamer.apps.check import self_resets
from dreamer.apps.check.verdicts import Verdict, counted, note, ok, warning, wrong
from dreamer.apps.check.walk import Row, Walk

NEAR = 5  # steps before the last step to compare with it: some environments move at the start only
FEW = 3  # with fewer episodes, properties that they share are not reported
CHANCE = 1e-4  # the probability that chance explains a finding must be below this


def check(walk: Walk, env: gymnasium.Env) -> list[Verdict]:
    """Checks the flags and the lengths of episodes, and the last observations."""
    if not walk.steps:
        return []
    episodes = walk.episodes()
    if not episodes:
        return [_endless(walk, env)] if walk.whole else []
    verdicts = _lengths(episodes)
    resets = self_resets.of_walk(walk, episodes, env)
    stale = [] if resets else _stale(episodes, env)
    if not (resets or stale):
        verdicts.append(ok("last-row", "last observations differ from those before them and from the next first ones"))
    return verdicts + resets + stale


def _endless(walk: Walk, env: gymnasium.Env) -> Verdict:
    limit = getattr(getattr(env, "spec", None), "max_episode_steps", None)
    steps = counted(walk.steps, "random step")
    if limit is not None and limit > walk.steps:
        return note("endings", f"no episode ended in {steps}, its time limit is {limit:,} (--steps {2 * limit})")
    text = (
        f"no episode ended in {steps}, neither terminated nor truncated: the agent never sees a start again and no "
        "return is ever logged; set the flags or use gymnasium.wrappers.TimeLimit. Longer episodes need more --steps"
    )
    return warning("never-ends", text)


def _lengths(episodes: list[list[Row]]) -> list[Verdict]:
    lengths = np.array([rows[-1].step for rows in episodes])
    terminated = np.array([rows[-1].terminated for rows in episodes])
    shortest, longest, number = int(lengths.min()), int(lengths.max()), counted(len(episodes), "episode")
    span = f"of {longest:,} steps" if shortest == longest else f"of {shortest:,} to {longest:,} steps"
    ends, cuts = int(terminated.sum()), int((~terminated).sum())
    text = f"{number} {span}: {ends:,} terminated (a true end), {cuts:,} truncated (a time limit)"
    verdicts = [ok("endings", text, terminated=ends, truncated=cuts, shortest=shortest, longest=longest)]
    at_longest = float((lengths[terminated] == longest).mean()) if ends else 0.0
    if not cuts and ends >= FEW and longest > 1 and (at_longest == 1 or (at_longest >= 0.5 and longest >= 5)):
        share = "all" if at_longest == 1 else f"{100 * at_longest:.0f} % of"
        text = (
            f"{share} {number} are `terminated` at step {longest:,}, none is `truncated`: looks like a time limit "
            "reported as an end. The agent assumes a value of 0 after it; return truncated=True, unless it truly ends"
        )
        verdicts.append(warning("time-limit", text))
    if not ends and shortest == longest:
        text = "no episode truly ends: the agent expects all to go on; if one can be won or lost, return terminated"
        verdicts.append(note("no-true-end", text))
    if not ends and cuts >= FEW and shortest != longest:
        text = (
            f"all {number} are `truncated`, after {shortest:,} to {longest:,} steps, none is `terminated`: a time "
            "limit has one length. Return terminated=True where the task truly ends, else the agent expects it to go on"
        )
        verdicts.append(warning("uneven-limit", text))
    return verdicts


def _stale(episodes: list[list[Row]], env: gymnasium.Env) -> list[Verdict]:
    """Returns verdicts on observation keys that often change shortly before the end, but never in the last step."""
    stop = _stop_action(episodes, env)
    verdicts = []
    for key in episodes[0][-1].looks:
        pairs = [
            (after.last, before.looks[key].mark == after.looks[key].mark)
            for rows in episodes
            for before, after in pairwise(rows[-NEAR - 2 :])
            if key in before.looks and key in after.looks
        ]
        ends = [still for last, still in pairs if last]
        others = [still for last, still in pairs if not last]
        by_chance = ((sum(others) + 1) / (len(others) + 2)) ** len(ends)
        if not ends or not all(ends) or not others or np.mean(others) > 0.5 or by_chance > CHANCE:
            continue
        text = f"key {key!r} is the same in the last row as in the row before, in all {counted(len(ends), 'episode')}"
        if stop:
            verdicts.append(note("stale-end", f"{text}, each ended by an action that is taken nowhere else"))
            continue
        rate = f"{100 * (1 - np.mean(others)):.3g} %"
        end = f", though it changes at {rate} of the steps just before: the last step() returns the old observation"
        verdicts.append(wrong("stale-end", text + end))
    return verdicts


def _stop_action(episodes: list[list[Row]], env: gymnasium.Env) -> bool:
    """Whether the actions that end episodes occur in no other step. Such an action need not change the observation."""
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        return False
    ending = {int(rows[-1].action) for rows in episodes}
    return not ending & {int(row.action) for rows in episodes for row in rows[1:-1]}
