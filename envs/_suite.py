"""Shared code of the suites: errors, task names, states. The underscore marks a file that is not a suite itself."""

from __future__ import annotations

import contextlib
import copy
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gymnasium

# Attributes that never change after construction.
NO_STATE = {
    "env", "_env", "spec", "_cached_spec", "observation_space", "_observation_space", "action_space", "_action_space",
    "metadata", "_metadata", "render_mode", "window", "clock",
}  # fmt: skip


@contextlib.contextmanager
def extra(suite: str, command: str = "") -> Iterator[None]:
    """A context for the imports of a suite. If a package is missing, raises an ImportError that says what to install.

    command: the shell command that installs the suite; "": the command that installs dreamer's pip extra `suite`.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f"{suite} needs the package {error.name!r}: {command or install(suite)}") from error


def install(suite: str, more: str = "") -> str:
    """Returns the pip command that installs the extra of a suite, for an error message.

    The command depends on whether dreamer runs from a checkout. more: text to append, such as a second command.
    """
    name = suite.replace("_", "-")
    if (Path(__file__).resolve().parents[1] / "pyproject.toml").is_file():
        return f'pip install ".[{name}]"{more} in the checkout'
    return f'pip install "dreamer-jax[{name}]"{more}'


def find_task(suite: str, task: str, known: Iterable[str]) -> str:
    """Returns the name in `known` that equals `task`, or has the same letters and digits if case is ignored.

    Otherwise raises a ValueError that suggests the nearest name.
    """
    known = list(known)
    if task in known:
        return task
    by_letters = {_letters(name): name for name in known}
    wanted = _letters(task)
    if wanted in by_letters:
        return by_letters[wanted]
    close = difflib.get_close_matches(wanted, by_letters, n=1, cutoff=0.4)
    few = f"; choices: {', '.join(known)}" if len(known) <= 12 else ""
    hint = f"; did you mean {by_letters[close[0]]!r}?" if close else few
    raise ValueError(f"{suite} has no task {task!r}{hint}")


def check_choice(suite: str, option: str, value: str | None, choices: Iterable[str | None]) -> None:
    """Raises ValueError unless `value` is one of `choices`. suite, option: names for the message."""
    choices = list(choices)
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices if choice is not None)
        raise ValueError(f"{suite}: {option} is {value!r}; choices: {listed}")


def get_attributes(env: Any) -> list[dict[str, Any]]:
    """Returns copies of the attributes of `env` and of each environment that it wraps, outermost first.

    This works only for environments in plain Python, which hold all of their state in attributes. Leaves out functions
    and the attributes in NO_STATE.
    """
    kept = [
        {key: value for key, value in vars(layer).items() if key not in NO_STATE and not callable(value)}
        for layer in _layers(env)
    ]
    return copy.deepcopy(kept)


def set_attributes(env: Any, state: list[dict[str, Any]]) -> None:
    """Restores what `get_attributes` returned, in an environment that was made in the same way."""
    for layer, values in zip(_layers(env), copy.deepcopy(state), strict=True):
        vars(layer).update(values)


class Plain(gymnasium.Wrapper):
    """Adds `get_state` and `set_state` to an environment in plain Python, so that a resumed run can continue it."""

    def get_state(self) -> list[dict[str, Any]]:
        """Returns everything that the next steps depend on."""
        return get_attributes(self.env)

    def set_state(self, state: list[dict[str, Any]]) -> None:
        """Continues from a state that `get_state` returned."""
        set_attributes(self.env, state)


def _layers(env: Any) -> Iterator[Any]:
    while env is not None:
        yield env
        env = vars(env).get("env", vars(env).get("_env"))


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
