"""Checks that the seed, and nothing else, determines how an environment behaves. Imports no jax.

Two environments in one process take the same actions, one step of each in turn. This also reveals shared state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import gymnasium
import numpy as np

from dreamer.apps.check.answers import Answer, begin, take
from dreamer.apps.check.looks import Key, Look, look, same
from dreamer.apps.check.verdicts import Tally, Verdict, counted, note, ok, warning, wrong
from dreamer.apps.check.walk import chooser
from dreamer.apps.check.watch import Watch, close_quietly

STEPS = 200  # most steps that each of the two environments takes
MIXED = 20  # steps of one environment that must not change the observation of the other
OTHERS = 5  # number of seeds whose starts are compared
UNSEEDED = 30  # most episodes without a seed; fewer if one begins differently
CLOSE = 1e-5  # relative differences below this are differences in the last digits


class Seen(NamedTuple):
    """The result of one reset or step: the Look of each key of the observation, the reward and the flags."""

    looks: Mapping[str, Look]
    reward: float | None
    terminated: bool
    truncated: bool


def check(
    make: Callable[[], gymnasium.Env], keys: Sequence[Key], watch: Watch, *, seed: int, steps: int
) -> list[Verdict]:
    """Checks seeds, starts of episodes, and shared state. make: returns a new environment. Raises EnvFailed."""
    one, two = make(), make()
    try:
        watch.place = "two environments with the same seed"
        first, second = _side_by_side([one, two], keys, seed, min(steps, STEPS))
        watch.place = "the same environment with its seed again"
        again, *_ = _side_by_side([one], keys, seed, min(steps, STEPS) // 4)
        watch.place = "two environments with different seeds"
        mixed = _mixed(one, two, keys, seed)
        watch.place = "resets with other seeds"
        seeded = [_first(one, keys, seed + 1 + i) for i in range(OTHERS)]
        watch.place = "resets without a seed"
        free = _unseeded(one, keys, seed)
        ignores = getattr(one, "ignores_key", None)  # of an environment in JAX
        keyless = bool(ignores()) if callable(ignores) else False
    finally:
        close_quietly(one)
        close_quietly(two)
    verdicts = _same_seed(first, second, again, one)
    if mixed:
        text = (
            f"key {mixed!r} is one array for all environments of a process: a step of one overwrites the observation "
            "of another; make the array in __init__ or return a copy"
        )
        verdicts.append(wrong("shared-buffers", text))
    return verdicts + _starts(seeded, free, keyless)


def _side_by_side(
    envs: list[gymnasium.Env], keys: Sequence[Key], seed: int, steps: int
) -> list[list[Seen]]:
    """Steps the environments in turn with the same random actions, and returns the results of each.

    The actions obey the action masks of `envs[0]`.
    """
    tally, choose = Tally(), chooser(envs[0], seed)
    all_seen: list[list[Seen]] = [[] for _ in envs]
    answers: list[Answer] = [Answer(None) for _ in envs]
    for _ in range(steps):
        action = choose(answers[0])
        for i, (env, seen) in enumerate(zip(envs, all_seen, strict=True)):
            if not seen or seen[-1].terminated or seen[-1].truncated:
                answers[i] = begin(env, None if seen else seed, tally, "")
            else:
                answers[i] = take(env, action, tally, "")
            seen.append(Seen(look(keys, answers[i].obs), *answers[i][1:4]))
    return all_seen


def _mixed(one: gymnasium.Env, other: gymnasium.Env, keys: Sequence[Key], seed: int) -> str:
    """Returns a key of the observation of `one` whose array is overwritten when `other` steps; "" if there is none."""
    tally, choose = Tally(), chooser(other, seed + 2)
    held = begin(one, seed + 1, tally, "").obs
    before = look(keys, held)
    answer = begin(other, seed + 2, tally, "")
    for _ in range(MIXED):
        after = look(keys, held)
        if changed := [key for key in before if key not in after or after[key].mark != before[key].mark]:
            return changed[0]
        over = answer.terminated or answer.truncated
        answer = begin(other, None, tally, "") if over else take(other, choose(answer), tally, "")
    return ""


def _first(env: gymnasium.Env, keys: Sequence[Key], seed: int | None) -> Mapping[str, Look]:
    return look(keys, begin(env, seed, Tally(), "").obs)


def _unseeded(env: gymnasium.Env, keys: Sequence[Key], seed: int) -> list[Mapping[str, Look]]:
    """Returns the first observation after a reset with the seed, and those after resets without a seed.

    Stops when one differs: an observation may have a few values only, which repeat by chance.
    """
    starts = [_first(env, keys, seed)]
    while len(starts) <= UNSEEDED and same(starts[-1], starts[0]):
        starts.append(_first(env, keys, None))
    return starts


def _same_seed(first: list[Seen], second: list[Seen], again: list[Seen], env: gymnasium.Env) -> list[Verdict]:
    declared = bool(getattr(getattr(env, "spec", None), "nondeterministic", False))
    end = "; draw all random numbers from self.np_random, which super().reset(seed=seed) makes"
    if (found := _difference(first, second)) and not found.close:
        text = f"two environments with one seed and the same actions differ: {found.text}"
        return [
            note("unseeded", f"{text}; it is registered as nondeterministic")
            if declared
            else warning("unseeded", f"{text}. No run with it can be repeated{end}")
        ]
    verdicts = []
    if found:
        verdicts.append(note("last-digits", f"two environments with one seed and the same actions: {found.text}"))
    later = _difference(first[: len(again)], again)
    if later and not later.close:
        text = f"a second reset of one environment with the same seed gives another episode: {later.text}"
        verdicts.append(warning("reset-leaks", f"{text}. Some state survives reset(): initialise everything there"))
    elif later and not found:
        verdicts.append(note("last-digits", f"a second reset of one environment with the same seed: {later.text}"))
    text = f"the same seed and actions give the same {counted(len(first), 'row')}, in a second environment and again"
    return verdicts or [ok("seeds", text)]


class _Difference(NamedTuple):
    text: str
    close: bool


def _difference(one: list[Seen], other: list[Seen]) -> _Difference | None:
    """Returns the first difference between two sequences, or None."""
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        place = "in the first observation" if i == 0 else f"in row {i}"
        if a[1:] != b[1:] and not (a.reward is not None and b.reward is not None and a[2:] == b[2:]):
            return _Difference(f"{place}, reward and flags {a[1:]} and {b[1:]}", close=False)
        for key in a.looks:
            if key not in b.looks or a.looks[key].mark != b.looks[key].mark:
                return _difference_of(place, key, a.looks[key], b.looks.get(key))
        if a.reward is not None and b.reward is not None and a.reward != b.reward:
            near = abs(a.reward - b.reward) <= CLOSE * max(1.0, abs(a.reward))
            return _Difference(f"{place}, rewards {a.reward:.9g} and {b.reward:.9g}", near)
    return None


def _difference_of(place: str, key: str, one: Look, other: Look | None) -> _Difference:
    if one.value is None or other is None or other.value is None or one.value.shape != other.value.shape:
        return _Difference(f"{place}, key {key!r}", close=False)
    gap = np.abs(one.value - other.value)
    i = int(np.nanargmax(np.where(np.isnan(gap), np.inf, gap)))
    near = bool((gap <= CLOSE * np.maximum(1.0, np.abs(one.value))).all())
    where = key if one.value.size == 1 else f"{key}[{i}]"
    return _Difference(f"{place}, {where!r} is {one.value[i]:.9g} and {other.value[i]:.9g}", near)


def _starts(seeded: list[Mapping[str, Look]], free: list[Mapping[str, Look]], keyless: bool) -> list[Verdict]:
    """Returns the verdicts on the first observations of episodes.

    seeded: after resets with different seeds | free: after a reset with a seed, then after resets without a seed
    keyless: whether the environment is written in JAX and its reset does not use its random key
    """
    varied = not all(same(looks, seeded[0]) for looks in seeded[1:])
    repeated = all(same(looks, free[0]) for looks in free[1:])
    if varied and repeated:
        text = (
            "every episode begins the same unless reset() gets another seed, and a run passes a seed only once: the "
            "agent sees a single start. reset(seed=None) must continue with self.np_random"
        )
        return [wrong("same-episode", text)]
    if not varied and repeated:
        why = ": its reset does not use its random key" if keyless else ""
        return [note("starts", f"every episode begins with the same observation, whatever the seed{why}")]
    if not varied:
        return [note("starts", f"{OTHERS} seeds give the same first observation")]
    return [ok("starts", "episodes begin differently, with other seeds and without one")]
