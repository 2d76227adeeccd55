"""Takes random steps in an environment, and records all its answers. Imports no jax.

Examines each observation when it is returned, and again after the next call, to find arrays that this call overwrites.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from dreamer.apps.check.answers import Answer, NoAnswer, begin, take
from dreamer.apps.check.looks import Key, Look, faults, look
from dreamer.apps.check.verdicts import Tally, Verdict, wrong
from dreamer.apps.check.watch import EnvFailed, Watch
from dreamer.runtime.env.actions import action_reader, flat_mask, random_actions
from dreamer.spaces import MASK

FINAL = (  # in the info of environments that reset themselves inside step
    "final_observation", "final_obs", "final_state", "terminal_observation", "terminal_obs", "terminal_state",
    "real_next_obs", "true_next_obs",
)  # fmt: skip


class Row(NamedTuple):
    """The result of one reset or step. Step 0 of an episode is the reset: it has no action, no flags, and reward 0.

    looks: the Look of each key of the observation | reward: None if it is not a finite number
    info: the keys of info | final: the Looks of the final observation that info contains; None: it contains none
    rewritten: the keys of the observation whose arrays were overwritten after they were returned
    """

    episode: int
    step: int
    looks: Mapping[str, Look]
    action: Any
    reward: float | None
    terminated: bool
    truncated: bool
    info: frozenset
    final: Mapping[str, Look] | None
    rewritten: tuple[str, ...] = ()

    @property
    def last(self) -> bool:
        """Whether the episode ends with this row."""
        return self.terminated or self.truncated

    @property
    def where(self) -> str:
        """The episode and the step of the row, as text."""
        return f"episode {self.episode}, step {self.step}"


class Walk(NamedTuple):
    """The record of the random steps of a check.

    rows: all rows in order | verdicts: the verdicts on single results of reset and step
    seconds {"step", "reset"}: the durations of the calls | whole: False if an error ended the steps early
    """

    rows: list[Row]
    verdicts: list[Verdict]
    seconds: Mapping[str, list[float]]
    whole: bool

    @property
    def steps(self) -> int:
        """The number of steps; resets do not count."""
        return len(self.seconds["step"])

    def episodes(self) -> list[list[Row]]:
        """The rows of each episode that has ended."""
        found: dict[int, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.episode, []).append(row)
        return [rows for rows in found.values() if rows[-1].last]


def walk(
    env: gymnasium.Env, keys: Sequence[Key], watch: Watch, *, steps: int, episodes: int, seed: int, repeat: int
) -> Walk:
    """Takes random steps until there are `steps` steps or `episodes` episodes. Holds each action for `repeat` steps.

    The steps end early when the environment raises an error, or breaks gymnasium's interface.
    """
    rows: list[Row] = []
    seconds: dict[str, list[float]] = {"step": [], "reset": []}
    tally, choose = Tally(), chooser(env, seed)
    answer, action = Answer(None), None
    try:
        while len(seconds["step"]) < steps and not (rows and rows[-1].last and rows[-1].episode >= episodes):
            begins = not rows or rows[-1].last
            episode, step = (rows[-1].episode if rows else 0) + begins, 0 if begins else rows[-1].step + 1
            where = f"episode {episode}, step {step}"
            watch.place = f"{where} of the random steps"
            before = answer
            if begins:
                answer = _timed(seconds["reset"], begin, env, None if rows else seed, tally, where)
            else:
                action = choose(answer) if (step - 1) % repeat == 0 else action
                answer = _timed(seconds["step"], take, env, action, tally, where)
            if rows:
                rows[-1] = rows[-1]._replace(rewritten=_rewritten(keys, before.obs, rows[-1].looks))
            rows.append(_row(keys, episode, step, None if begins else action, answer))
            for name, verdict in faults(keys, answer.obs):
                tally.add(verdict, name, where)
    except EnvFailed as failure:
        tally.add(wrong("raises", str(failure)))
    except NoAnswer as error:
        tally.add(error.verdict, place=where)
    else:
        return Walk(rows, tally.verdicts(), seconds, whole=True)
    return Walk(rows, tally.verdicts(), seconds, whole=False)


def chooser(env: gymnasium.Env, seed: int) -> Callable[[Answer], Any]:
    """Returns a function that chooses random actions for `step`, as an untrained agent would, and obeys action masks.

    It does not use space.sample(), which draws numbers outside the agent's range if bounds are infinite.
    """
    actions, rng, space = action_reader(env), np.random.default_rng(seed), env.action_space

    def choose(answer: Answer) -> Any:
        source = answer.obs if isinstance(answer.obs, Mapping) and MASK in answer.obs else answer.info
        try:
            allowed = flat_mask(space, source[MASK]) if MASK in source and actions.action.onehots else None
        except ValueError:  # `faults` reports it
            allowed = None
        return actions.to_env(random_actions(actions.action, rng, 1, allowed)[0])

    return choose


def _row(keys: Sequence[Key], episode: int, step: int, action: Any, answer: Answer) -> Row:
    looks = look(keys, answer.obs)
    finals = (look(keys, answer.info[name]) for name in FINAL if answer.info.get(name) is not None)
    return Row(
        episode, step, looks, action, answer.reward, answer.terminated, answer.truncated, frozenset(answer.info),
        next((final for final in finals if _alike(final, looks)), None),
    )  # fmt: skip


def _alike(one: Mapping[str, Look], other: Mapping[str, Look]) -> bool:
    """Whether two observations have the same keys, with arrays of the same shapes."""
    return one.keys() == other.keys() and all(one[key].mark[1] == other[key].mark[1] for key in one)


def _rewritten(keys: Sequence[Key], obs: Any, before: Mapping[str, Look]) -> tuple[str, ...]:
    after = look(keys, obs)
    return tuple(key for key in before if key not in after or after[key].mark != before[key].mark)


def _timed(seconds: list[float], function: Callable[..., Answer], *args: Any) -> Answer:
    start = time.perf_counter()
    answer = function(*args)
    seconds.append(time.perf_counter() - start)
    return answer
