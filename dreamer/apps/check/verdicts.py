"""The settings of `dreamer check`, and the verdicts that it prints. Imports no jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, NamedTuple

from dreamer.errors import UserError
from dreamer.fields import at_least, between, check_bounds

Level = Literal["ok", "note", "warning", "wrong"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of `dreamer check` besides the environment."""

    env_options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment; --env-options.KEY VALUE sets one."""
    action_repeat: Annotated[int, at_least(1)] = 1
    """Environment frames for which each action is held."""
    steps: Annotated[int, at_least(1)] = 5000
    """Random steps to take, in frames of the environment."""
    episodes: Annotated[int, at_least(1)] = 100
    """Number of episodes after which the random steps end early."""
    seed: Annotated[int, between(0, 2**31 - 1)] = 0
    """Seed of the environment and of the random actions."""
    workers: Annotated[int, at_least(1)] = 16
    """Number of environments for which steps per second are reported."""
    patience: float = 60.0
    """Seconds after which a call that has not returned counts as hung."""
    json: str | None = None
    """File for the verdicts as JSON; - is standard output, in place of the lines."""
    picture: str | None = None
    """PNG file for the observations as the environment returns them and as the agent sees them."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.patience > 0:
            raise UserError(f"patience must be above 0 seconds, not {self.patience}")
        if self.picture is not None and not self.picture.endswith(".png"):
            raise UserError(f"picture must name a .png file, not {self.picture!r}")


class Verdict(NamedTuple):
    """One finding of `dreamer check`, printed as one line.

    level: "wrong" will spoil a training run, "warning" may spoil it, "note" is worth knowing, "ok" is right
    key: the name of the examined property; it is the same in every version | facts: numbers for programs, by name
    """

    level: Level
    key: str
    text: str
    facts: Mapping[str, Any] = {}


class Tally:
    """Collects verdicts on results of reset and step: for each kind (key, what), the first verdict and a count."""

    def __init__(self) -> None:
        self.first: dict[tuple[str, str], Verdict] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, verdict: Verdict, what: str = "", place: str = "") -> None:
        """Counts a verdict. what: the observation key or the flag in question | place: the episode and step, as text"""
        kind = verdict.key, what
        if kind not in self.first:
            self.first[kind] = verdict._replace(text=f"{verdict.text} ({place})" if place else verdict.text)
        self._counts[kind] = self._counts.get(kind, 0) + 1

    def verdicts(self) -> list[Verdict]:
        """Returns the first verdict of each kind; its text contains the count if there were more."""
        found = []
        for kind, verdict in self.first.items():
            often = f"; {self._counts[kind]:,} times in all" if self._counts[kind] > 1 else ""
            found.append(verdict._replace(text=verdict.text + often))
        return found


def ok(key: str, text: str, **facts: Any) -> Verdict:
    """Returns a verdict on a property that is right."""
    return Verdict("ok", key, text, facts)


def note(key: str, text: str, **facts: Any) -> Verdict:
    """Returns a verdict that is worth knowing and needs no fix."""
    return Verdict("note", key, text, facts)


def warning(key: str, text: str, **facts: Any) -> Verdict:
    """Returns a verdict on a property that will probably disturb training."""
    return Verdict("warning", key, text, facts)


def wrong(key: str, text: str, **facts: Any) -> Verdict:
    """Returns a verdict on a fault that must be fixed. With such a verdict, the command exits with code 1."""
    return Verdict("wrong", key, text, facts)


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun: "1 step", "2,000 steps"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(items: list, most: int = 6) -> str:
    """Returns the first `most` items of a list, and the number of the others: "0, 3, 4 and 12 more"."""
    shown = ", ".join(map(str, items[:most]))
    return f"{shown} and {len(items) - most:,} more" if len(items) > most else shown
