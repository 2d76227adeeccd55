"""Runs gymnasium's own checker, and reports in plain words what no other check reports better. Imports no jax."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

from gymnasium.utils.env_checker import check_env

from dreamer.apps.check.verdicts import Level, Verdict
from dreamer.apps.check.watch import EnvFailed, Watch

KEY = "gymnasium"
DROPPED = "dropped"
_CODES = re.compile(r"\x1b\[[0-9;]*m")


class Rule(NamedTuple):
    """How to report lines of the checker that match a pattern.

    pattern: a regular expression | level: the level of the verdict; DROPPED: do not report the line
    text: the text of the verdict; "": the line itself
    keys: the keys of other verdicts that report the same more clearly; the line is dropped if there is such a verdict
    """

    pattern: str
    level: Level | str
    text: str = ""
    keys: tuple[str, ...] = ()


VALUES = ("dtype", "shape", "range", "nan", "missing-key")
RULES = (
    # The checker wants the environment without its wrappers, but the agent sees the environment with them.
    Rule("different from the unwrapped version", DROPPED),
    # Vectors go through symlog, which needs no bounds; actions without bounds are reported by action-bounds.
    Rule("(minimum|maximum) value is -?infinity", DROPPED),
    # Actions are scaled to any bounds.
    Rule("symmetric and normalized space", DROPPED),
    # `times.render` tests rendering in the only mode that dreamer uses.
    Rule("alternative render modes", DROPPED),
    # An int32 or a uint8 is a valid index, too; the verdict dtype reports values that cannot be read.
    Rule("should be an int or np.int64", DROPPED),
    # Logged for a Box without axes whose value is a number.
    Rule("Casting input x to numpy array", DROPPED),
    # The checker reads the signature, and accepts only `kwargs` for other arguments; the walk has called reset.
    Rule("does not provide a `seed`|can be passed a `seed`", DROPPED),
    # Logged for environments whose flags are numpy's bools, which the runtime accepts.
    Rule("Environment truncates after 1 step", DROPPED),
    Rule("maximum and minimum values are equal", "note", "a Box has equal bounds: that number can never change",
         ("constant", "action-bounds")),
    Rule("low value is greater than a high value", "wrong", "a Box has a low bound above its high bound"),
    Rule("not within the observation space", "warning", "an observation is not in observation_space", VALUES),
    Rule("expecting (a )?numpy array", "warning", "an observation is not a numpy array, as its space requires", VALUES),
    Rule("observation keys is not same", "note",
         "observations and observation_space differ in their keys; keys that it does not list are ignored", VALUES),
    Rule("reward is (a NaN|an inf)|reward returned by", "warning", "", ("reward-nan", "reward-type")),
    Rule("signal to be a boolean", "note", "terminated or truncated is not a bool; numbers are converted", ("flags",)),
    Rule("default seed argument", "warning",
         "reset() has a default seed that is not None: without one every episode may be the same"),
    Rule("does not provide an `options`|can be passed `options`", "note",
         "reset() takes no options; the runtime passes none"),
    Rule("`seed` function is dropped", "note", "its seed() method is never called; reset(seed=...) must set all seeds"),
    Rule("super\\(\\)\\.reset\\(seed=seed\\)", "note",
         "reset() does not seed self.np_random by super().reset(seed=seed); the verdict 'seeds' compares observations",
         ("reset-seed", "unseeded")),
    Rule("non-deterministic|Deterministic step|not equal although similar|np_random` is not properly", "warning", "",
         ("unseeded", "reset-leaks", "last-digits", "nan")),
    Rule("infos? .*(share|not equivalent)", DROPPED),  # the runtime reads no info
    Rule("observations returned by .* share an object", "note",
         "successive observations share memory, but it is never overwritten", ("buffers",)),
    Rule("not a tuple|2-tuple|old step API|four or five element|values to unpack", "wrong", "",
         ("reset-api", "step-api")),
    Rule("`info`|dictionary", "wrong", "info must be a dict", ("info-type", "reset-api", "step-api")),
    Rule("must inherit from the gymnasium.Env", "note",
         "it is not a gymnasium.Env; it works here, but gymnasium's wrappers will refuse it"),
    Rule("Gym is incompatible", "wrong", "it is written for gym, the predecessor of gymnasium", ("space",)),
)  # fmt: skip


def lines(env: Any, watch: Watch) -> list[str]:
    """Runs gymnasium's checker. Returns its warnings, then the error that ended it, if any, with a leading "!"."""
    watch.place = "gymnasium's checker"
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # The skipped checks would draw in every mode, even in windows, and make environments only to close them.
            check_env(env, skip_render_check=True, skip_close_check=True)
        except EnvFailed as failure:
            found.append(f"!{failure}")
        except Exception as error:  # AssertionError, gymnasium.error.Error, TypeError: failed checks
            found.append(f"!{' '.join(str(error).split())}")
    messages = [_CODES.sub("", str(warning.message)) for warning in caught]
    return [line.removeprefix("WARN: ") for line in messages if line.startswith("WARN: ")] + found


def verdicts(found: list[str], others: Iterable[Verdict]) -> list[Verdict]:
    """Converts the result of `lines` to verdicts, without those on which `others` has a clearer verdict."""
    known = {verdict.key for verdict in others if verdict.level != "ok"}
    by_text: dict[str, Verdict] = {}
    for line in found:
        verdict = _verdict(line, known)
        if verdict:
            by_text.setdefault(verdict.text, verdict)
    return list(by_text.values()) or [Verdict("ok", KEY, "gymnasium's own checker has nothing to add")]


def _verdict(line: str, known: set[str]) -> Verdict | None:
    """Returns the verdict for a line, or None to drop it.

    A line that matches no rule is reported unchanged: as wrong if it begins with "!", else as a warning.
    """
    ended, line = line.startswith("!"), line.removeprefix("!")
    if " raised in " in line:
        return None if known & {"raises", "reset-seed", "mask"} else Verdict("wrong", KEY, line)
    for rule in RULES:
        if re.search(rule.pattern, line):
            if rule.level == DROPPED or known & set(rule.keys):
                return None
            return Verdict(rule.level, KEY, rule.text or line)  # type: ignore[arg-type]
    return Verdict("wrong" if ended else "warning", KEY, line)
