"""The help of `dreamer train`: a single screen, or all flags whose name or meaning contains a word. Imports no jax."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from dreamer import shipped
from dreamer.coerce import describe
from dreamer.errors import UserError, nearest
from dreamer.fields import get, keys, type_of

USAGE = """usage: dreamer train [PRESET ...] [--flags]

Train an agent. Presets stack left to right; flags override presets.
Numbers may be written as 1e6.

examples:
  dreamer train quickstart                        CartPole-v1, in minutes
  dreamer train debug --env my_lab.envs:make      an environment of your own
  dreamer train dmc_vision size12m                a task with a smaller model
  dreamer train offline --data runs/NAME          learn from data alone
  dreamer train --resume --run-dir runs/NAME      continue a run
"""
MORE = """more:
  dreamer train --help-all     every flag
  dreamer train --help WORD    the flags on a word, such as entropy or replay
  dreamer presets | envs       what each preset is | suites of environments
  dreamer metrics [NAME]       what a run logs, and what is healthy
"""
MOST_USED = (
    "env", "env_options", "env_steps", "action_repeat", "replay_ratio", "run_dir", "resume", "seed", "workers.envs",
    "eval.every", "eval.episodes", "log.wandb", "checkpoint.every", "init_from", "print_config",
)  # fmt: skip


class Row(NamedTuple):
    """A flag in the help.

    key: the dotted key of the setting | text: the flag itself, such as "--seed"
    default, kind, meaning: the default, the accepted values and the explanation, as texts
    """

    key: str
    text: str
    default: str
    kind: str
    meaning: str


def one_screen(config: Any) -> str:
    """Returns the help on one screen: usage, examples, the most used flags and the presets."""
    rows = [row for row in rows_of(config) if row.key in MOST_USED]
    rows.sort(key=lambda row: MOST_USED.index(row.key))
    width = min(shutil.get_terminal_size().columns, 100)
    left, middle = (max(map(len, column)) for column in (_column(rows, "text"), _column(rows, "default")))
    room = width - left - middle - 6
    flags = [
        f"  {row.text:{left}}  {row.default:{middle}}  {textwrap.shorten(row.meaning, room, placeholder=' ...')}"
        for row in rows
    ]
    presets = textwrap.wrap(", ".join(shipped.presets()), width, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([USAGE, "most used flags, with their defaults:", *flags, "", "presets:", *presets, "", MORE])


def found_by(config: Any, word: str) -> str:
    """Returns the help on all flags whose name or meaning contains `word`. Raises UserError when there is none."""
    wanted = word.lstrip("-").replace("-", "_").lower()
    rows = list(rows_of(config))
    found = [row for row in rows if wanted in row.key or word.lower() in row.meaning.lower()]
    if not found:
        parts = {part.replace("_", "-") for row in rows for part in (row.key, *row.key.split("."))}
        hint = nearest(word, parts)
        hint = hint if "did you mean" in hint else "; dreamer train --help-all lists every flag"
        raise UserError(f"no flag of dreamer train is about {word!r}{hint}")
    width = min(shutil.get_terminal_size().columns, 100)
    lines = []
    for row in found:
        lines.append(f"  {row.text} {row.default}".rstrip())
        lines += [f"      {line}" for line in textwrap.wrap(f"{row.meaning}: {row.kind}", width - 6)]
    return "\n".join(lines) + "\n"


def _column(rows: list[Row], name: str) -> list[str]:
    return [getattr(row, name) for row in rows]


def rows_of(config: Any) -> Iterator[Row]:
    """Yields a Row for each flag of a config, in the order of its fields."""
    texts: dict[type, dict[str, str]] = {}
    for key in keys(config):
        parent, _, name = key.rpartition(".")
        owner = get(config, parent) if parent else config
        if type(owner) not in texts:
            texts[type(owner)] = meanings(type(owner))
        meaning = texts[type(owner)].get(name, "")
        default = get(config, key)
        shown = "" if default in (None, "", {}, ()) else str(default)
        flag = f"--{key.replace('_', '-')}"
        yield Row(key, flag, shown, describe(type_of(config, key)), " ".join(meaning.split()).rstrip("."))


def meanings(kind: type) -> dict[str, str]:
    """Returns {field: the docstring below it} of a dataclass, with the fields that the dataclass inherits."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError, SyntaxError):
            continue
        for node, below in zip(body, body[1:], strict=False):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(text, ast.Constant):
                found[node.target.id] = str(text.value)
    return found
