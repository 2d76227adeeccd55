"""What a member of a population shows on the terminal. Imports no jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dreamer.runtime.log.terminal import Display


class MemberDisplay:
    """Shows the messages of one member with its name, and the means of all members in the population's display."""

    def __init__(self, display: Display, name: str):
        """display: that of the population. Set `all` to the displays of all members."""
        self._display, self._name = display, name
        self.all: Sequence[MemberDisplay] = [self]
        self.values: Mapping[str, float] = {}

    def header(self, lines: Any) -> None:
        """Prints the lines that introduce a run, for the first member only, because the others print the same."""
        if self.all[0] is self:
            self._display.header(lines)

    def losses(self, names: Any) -> None:
        """Sets the losses to show."""
        self._display.losses(names)

    def message(self, text: str) -> None:
        """Prints a line that stays, with the member's name."""
        self._display.message(f"{self._name}: {text}")

    def phase(self, name: str) -> None:
        """Sets the phase of the population."""
        self._display.phase(name)

    def update(self, env_steps: int, updates: int, metrics: Mapping[str, float] | None = None) -> None:
        """Shows the progress of the first member, and the means of the metrics of all members."""
        self.values = {**self.values, **(metrics or {})}
        if self.all[0] is self:
            names = dict.fromkeys(name for one in self.all for name in one.values)
            found = {name: [one.values[name] for one in self.all if name in one.values] for name in names}
            self._display.update(env_steps, updates, {name: sum(x) / len(x) for name, x in found.items()})

    def leave(self) -> None:
        """Takes the values of a member that has stopped out of the means."""
        self.all = [one for one in self.all if one is not self]
        for one in self.all:
            one.all = self.all

    def end(self, phase: str, lines: Any) -> None:
        """Does nothing: the population has an end of its own."""
