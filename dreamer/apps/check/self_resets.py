"""Checks whether an environment resets inside step(), so that the last observation is the next episode's first.

There are three tests, the cheapest first. The first looks for a final observation in info. The second asks whether the
last observations of the random steps look like first observations. The third plays episodes again, with a reset in
place of the last step, and compares. Imports no jax.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from dreamer.apps.check.answers import Answer, NoAnswer, begin, take
from dreamer.apps.check.looks import Key, Look, look, same
from dreamer.apps.check.verdicts import Tally, Verdict, counted, wrong
from dreamer.apps.check.walk import Row, Walk, chooser
from dreamer.apps.check.watch import EnvFailed, Watch, close_quietly

FEW = 3  # with fewer episodes, properties that they share are not reported
ENOUGH = 10  # least number of rows in the middle of episodes
CHANCE = 1e-4  # the probability that chance explains a finding must be below this
INSIDE, ALL = 0.8, 0.95  # shares of last rows near the starts of episodes, if the environment resets itself
OUTSIDE = 0.2  # share of other rows near the starts
SPREAD, STARTS = 1.2, 5  # largest distance from the starts' centre, relative to theirs; least number of starts
TWINS, BUDGET = 5, 2000  # most episodes that are played twice, and most steps of these episodes
BEYOND = 20  # most steps after an end
ADVICE = "so the end is lost; return the true last observation, the runtime calls reset() itself"


def of_walk(walk: Walk, episodes: list[list[Row]], env: gymnasium.Env) -> list[Verdict]:
    """Returns a verdict if the random steps show that step() resets by itself, else []. May step `env` to confirm."""
    odd = [rows[-1] for rows in episodes if rows[-1].final is not None and not same(rows[-1].final, rows[-1].looks)]
    if odd:
        text = f"the final observation in info is not the one returned with the end ({odd[0].where}): "
        return [wrong("reset-inside", f"{text}step() resets by itself, {ADVICE}")]
    last = [rows[-1] for rows in episodes]
    middle = [row for row in walk.rows if row.step and not row.last]
    if len(last) < FEW or len(middle) < ENOUGH:
        return []
    near = _starts([row for row in walk.rows if not row.step])
    ends, others = (np.array([near(row) for row in rows]) for rows in (last, middle))
    rare = _tail(int(ends.sum()), ends.size, (others.sum() + 1) / (others.size + 2)) <= CHANCE
    few = ends.mean() >= ALL and others.mean() <= OUTSIDE  # too few episodes for a test against chance
    if not (few or (ends.mean() >= INSIDE and rare)) or not _goes_on(env, min(rows[-1].step for rows in episodes)):
        return []
    text = (
        f"{100 * ends.mean():.0f} % of the last observations look like a first one, and {100 * others.mean():.2g} % of "
        "those in the middle: step() seems to reset by itself"
    )
    return [wrong("reset-inside", f"{text}, {ADVICE}")]


def check(
    make: Callable[[], gymnasium.Env], keys: Sequence[Key], watch: Watch, walk: Walk, seed: int
) -> list[Verdict]:
    """Plays some episodes twice, the second time with a reset instead of the last step, and compares the observations.

    make: returns a new environment at each call; the seed must determine all that it does. Raises EnvFailed.
    """
    episodes = walk.episodes()
    if not episodes:
        return []
    one, other = make(), make()
    try:
        watch.place = "episodes with a reset in place of their last step"
        twins = _twins(one, other, keys, seed, BUDGET // 2)
        if not twins or not all(same(twin.last, twin.first) and twin.differs for twin in twins):
            return []
        shares = [(sum(same(row.looks, twin.first) for row in walk.rows) + 1) / (len(walk.rows) + 2) for twin in twins]
        varied = not all(same(twin.first, twins[0].first) for twin in twins)
        if np.prod(shares) > CHANCE or not (varied or _goes_on(one, min(rows[-1].step for rows in episodes))):
            return []
    finally:
        close_quietly(one)
        close_quietly(other)
    text = f"the last observation of {counted(len(twins), 'episode')} is what reset() returns in place of that step"
    return [wrong("reset-inside", f"{text}: step() resets by itself, {ADVICE}")]


def _tail(hits: int, tries: int, chance: float) -> float:
    """Returns the probability of at least `hits` hits in `tries` tries that hit with probability `chance` each."""
    return sum(math.comb(tries, k) * chance**k * (1 - chance) ** (tries - k) for k in range(hits, tries + 1))


class _Twin(NamedTuple):
    """An episode that was played twice.

    last: the last observation | first: the first observation after a reset instead of the last step
    differs: whether a step in the middle and a reset in its place give different observations; if not, `last` and
    `first` may be equal without a fault
    """

    last: Mapping[str, Look]
    first: Mapping[str, Look]
    differs: bool


def _twins(one: gymnasium.Env, other: gymnasium.Env, keys: Sequence[Key], seed: int, steps: int) -> list[_Twin]:
    """Plays up to TWINS episodes in `one`, at most `steps` steps in all.

    Repeats each episode in `other`, with a reset in place of a step. Skips episodes of one step. Raises EnvFailed.
    """
    choose, twins = chooser(one, seed + 3), []
    for own in range(seed + 100, seed + 100 + TWINS):
        answer, shown = begin(one, own, Tally(), ""), []
        actions: list[Any] = []
        while not _over(answer) and len(actions) < steps:
            actions.append(choose(answer))
            answer = take(one, actions[-1], Tally(), "")
            shown.append(look(keys, answer.obs))
        steps -= len(actions)
        if not _over(answer):
            break
        if len(actions) > 1:
            half = len(actions) // 2
            differs = not same(shown[half - 1], _reset_after(other, own, actions[: half - 1], keys))
            twins.append(_Twin(shown[-1], _reset_after(other, own, actions[:-1], keys), differs))
    return twins


def _reset_after(env: gymnasium.Env, seed: int, actions: list[Any], keys: Sequence[Key]) -> Mapping[str, Look]:
    """Resets with the seed, takes the actions, resets again and returns that observation; {} if the episode ended."""
    begin(env, seed, Tally(), "")
    for action in actions:
        if _over(take(env, action, Tally(), "")):
            return {}
    return look(keys, begin(env, None, Tally(), "").obs)


def _goes_on(env: gymnasium.Env, shortest: int) -> bool:
    """Whether `env` still accepts steps after the end of an episode, as if it had begun a new episode.

    shortest: the number of steps of the shortest known episode; the function takes fewer steps than that after the end.
    """
    tally, choose = Tally(), chooser(env, 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # many environments warn about such a step
            for number in range(FEW):
                answer, taken = begin(env, 200 + number, tally, ""), 0
                while not _over(answer) and taken < BUDGET:
                    answer, taken = take(env, choose(answer), tally, ""), taken + 1
                for _ in range(min(BEYOND, shortest - 1)):
                    answer = take(env, choose(answer), tally, "")
                    if _over(answer):
                        return False
    except (EnvFailed, NoAnswer):
        return False
    return shortest > 1


def _over(answer: Answer) -> bool:
    return answer.terminated or answer.truncated


class _Cloud(NamedTuple):
    """The first observations of episodes, for one key.

    marks: the `Look.mark` of each | values [n, m]: the m numbers of each; None: some have none, or another m
    """

    marks: set
    values: np.ndarray | None

    def near(self, seen: Look) -> bool:
        """Whether an observation looks like the first observation of an episode."""
        numbers = _numbers(seen)
        if seen.mark in self.marks:
            return True
        if self.values is None or numbers is None or numbers.shape != self.values.shape[1:]:
            return False
        low, high = self.values.min(0), self.values.max(0)
        air = 0.1 * (high - low)
        if ((numbers >= low - air) & (numbers <= high + air)).all():
            return True
        return len(self.values) >= STARTS and self._close(numbers)

    def _close(self, numbers: np.ndarray) -> bool:
        """Like `near`, but compares the mean distance from the centre of the first observations.

        If there are many numbers and few first observations, some numbers always lie outside their range.
        """
        assert self.values is not None
        middle, spread = self.values.mean(0), self.values.std(0)
        moves = spread > 0
        if not moves.any() or not np.array_equal(numbers[~moves], middle[~moves]):
            return False
        far = np.square((np.vstack([self.values, numbers]) - middle)[:, moves] / spread[moves]).mean(1)
        return far[-1] <= SPREAD**2 * far[:-1].max()


def _numbers(seen: Look) -> np.ndarray | None:
    return seen.coarse if seen.value is None else seen.value


def _starts(rows: list[Row]) -> Callable[[Row], bool]:
    """Returns a function that tells whether a row looks like the first row of an episode. rows: known first rows."""
    clouds = {key: _cloud([row.looks[key] for row in rows if key in row.looks]) for key in rows[0].looks}
    return lambda row: all(key in row.looks and cloud.near(row.looks[key]) for key, cloud in clouds.items())


def _cloud(looks: list[Look]) -> _Cloud:
    values = [numbers for numbers in map(_numbers, looks) if numbers is not None]
    fit = len(values) == len(looks) and len({value.shape for value in values}) == 1
    return _Cloud({seen.mark for seen in looks}, np.stack(values) if fit else None)
