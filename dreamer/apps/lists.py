"""Makes the lines that `dreamer metrics`, `presets`, `envs` and `completion` print. Imports no jax."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from dreamer import shipped
from dreamer.apps.flags import scan
from dreamer.errors import UserError, nearest
from dreamer.plugins import suite_names
from dreamer.runtime.log import glossary

WIDTH = 100
ENV_STEPS = 1_000_000  # of a preset that does not set env_steps
SHELLS = ("bash", "zsh")


class Suite(NamedTuple):
    """An environment suite. module: the package that it needs, or "" | example: a task, as a value of --env

    extra: the pip extra that installs the package; "": the one with the name of the suite
    """

    module: str
    example: str
    extra: str = ""


SUITES = {
    "atari": Suite("ale_py", "atari:breakout"),
    "blocks": Suite("", "blocks:shapes"),
    "brax": Suite("brax", "brax:ant", "jaxenvs"),
    "bsuite": Suite("bsuite", "bsuite:catch/0"),
    "car_racing": Suite("Box2D", "car_racing:v3", "box2d"),
    "craftax": Suite("craftax", "craftax:Classic-Symbolic", "jaxenvs"),
    "crafter": Suite("crafter", "crafter:reward"),
    "dmc": Suite("dm_control", "dmc:walker-walk"),
    "gymnax": Suite("gymnax", "gymnax:CartPole-v1", "jaxenvs"),
    "jax_mazes": Suite("", "jax_mazes:rooms"),
    "jax_probes": Suite("", "jax_probes:both"),
    "jaxmarl": Suite("jaxmarl", "jaxmarl:MPE_simple_spread", "jaxenvs"),
    "jumanji": Suite("jumanji", "jumanji:Snake", "jaxenvs"),
    "memory_maze": Suite("memory_maze", "memory_maze:9x9"),
    "metaworld": Suite("metaworld", "metaworld:reach-v3"),
    "minigrid": Suite("minigrid", "minigrid:DoorKey-8x8-v0"),
    "minihack": Suite("minihack", "minihack:Room-15x15-v0"),
    "mujoco": Suite("mujoco", "mujoco:HalfCheetah-v5"),
    "navix": Suite("navix", "navix:Empty-5x5", "jaxenvs"),
    "nethack": Suite("nle", "nethack:Score"),
    "pettingzoo": Suite("pettingzoo", "pettingzoo:simple_spread"),
    "pgx": Suite("pgx", "pgx:minatar-breakout", "jaxenvs"),
    "playground": Suite("mujoco_playground", "playground:CartpoleBalance", "jaxenvs"),
    "popgym": Suite("popgym", "popgym:RepeatPreviousEasy"),
    "probes": Suite("", "probes:both"),
    "reach": Suite("", "reach:line"),
    "vizdoom": Suite("vizdoom", "vizdoom:Basic"),
}
# Environments of gymnasium itself, by their ids.
GYMNASIUM = {"classic": Suite("pygame", "CartPole-v1"), "box2d": Suite("Box2D", "LunarLander-v3")}
BY_HAND = ("minihack", "nethack")  # no extra: their package pins another gymnasium


def presets_command(args: list[str]) -> int:
    """Runs `dreamer presets`: prints the presets that come with dreamer, one per line. Returns the exit code."""
    return listed("presets", args, 0, "dreamer train NAME uses a preset", lambda words: presets_lines())


def envs_command(args: list[str]) -> int:
    """Runs `dreamer envs`: prints the suites of environments, one per line. Returns the exit code."""
    return listed("envs", args, 0, "dreamer train --env NAME uses a task", lambda words: envs_lines())


def metrics_command(args: list[str]) -> int:
    """Runs `dreamer metrics [NAME]`: prints what metrics mean. Returns the exit code. Raises UserError."""
    return listed("metrics", args, 1, "", lambda words: metrics_lines(words[0] if words else None))


def listed(
    command: str, args: list[str], most: int, hint: str, lines: Callable[[list[str]], list[str]]
) -> int:
    """Prints the lines of a command that takes at most `most` words and no flag but --help. Returns the exit code.

    args: what follows the command | hint: the end of the error message
    lines: called with the words of `args`, returns the lines to print
    Raises UserError if there are too many words, or if there is a flag.
    """
    words, flags = scan(args)
    flags = [flag for flag in flags if flag.key != "help"]
    if stray := [*words[most:], *(flag.text for flag in flags)]:
        takes = f"{most} word" if most else "nothing"
        raise UserError(f"dreamer {command} takes {takes}, not {stray[0]!r}{f'; {hint}' if hint else ''}")
    print("\n".join(lines(words)))
    return 0


def metrics_lines(name: str | None) -> list[str]:
    """Returns one line per metric, in groups. With `name`, returns what explains that metric. Raises UserError."""
    lines: list[str] = []
    if name is None:
        width = max(len(metric.name) for metric in glossary.METRICS)
        for group in dict.fromkeys(metric.group for metric in glossary.METRICS):
            lines += [*([""] if lines else []), group]
            for metric in glossary.METRICS:
                if metric.group == group:
                    first = textwrap.shorten(metric.meaning, WIDTH - width - 4, placeholder=" ...")
                    lines.append(f"  {metric.name:{width}}  {first}")
        return [*lines, "", "dreamer metrics NAME explains one of them, such as dreamer metrics loss/dyn"]
    for metric in glossary.explain(name):
        lines += [*([""] if lines else []), metric.name]
        lines += _wrapped(metric.meaning) + _wrapped(f"Healthy: {metric.healthy}")
    return lines


def presets_lines() -> list[str]:
    """Returns a table of the presets that come with dreamer: environment steps, size of the model, description."""
    files = shipped.presets()
    values = {name: yaml.safe_load(file.read_text(encoding="utf-8")) or {} for name, file in files.items()}
    sizes = {_deter(own): name.removeprefix("size") for name, own in values.items() if name.startswith("size")}
    rows = [("preset", "env steps", "model", "what")]
    for name, file in files.items():
        own = values[name]
        laid_over = not own.keys() - {"agent"}  # a size or a variant: it has no task
        steps = "" if laid_over else f"{own.get('env_steps', ENV_STEPS):,}"
        model = sizes.get(_deter(own), "its own") if _deter(own) else "" if laid_over else sizes.get(512, "")
        rows.append((name, steps, model, shipped.preset_line(file)))
    return _table(rows)


def envs_lines() -> list[str]:
    """Returns a table of the suites: how to install each, whether it is installed, and an example task."""
    rows = [("suite", "needs", "installed", "example")]
    for name, suite in {**{name: SUITES[name] for name in suite_names()}, **GYMNASIUM}.items():
        extra = suite.extra or name.replace("_", "-")
        extra = f'pip install "dreamer-jax[{extra}]"' if suite.module else "nothing"
        extra = "see experiments/README.md" if name in BY_HAND else extra
        there = not suite.module or importlib.util.find_spec(suite.module) is not None
        rows.append((name, extra, "yes" if there else "no", f"--env {suite.example}"))
    return [
        *_table(rows), "",
        "Any other environment: --env takes a gymnasium id, or package.module:factory of your own.",
    ]  # fmt: skip


def completion(shell: str, commands: Mapping[str, Iterable[str]]) -> str:
    """Returns a script with which a shell completes `dreamer`. Raises UserError for an unknown shell.

    commands: {name of a command: the words to offer after it}
    """
    if shell not in SHELLS:
        raise UserError(f"dreamer completion knows bash and zsh, not {shell!r}{nearest(shell, SHELLS)}")
    cases = "\n".join(f'    {name}) words="{" ".join(words)}" ;;' for name, words in commands.items())
    script = f"""_dreamer() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(commands)} --help --version" -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current"))
}}
complete -o filenames -F _dreamer dreamer
"""
    if shell == "zsh":  # it reads completions of bash
        return f"autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n{script}"
    return script


def _deter(values: Mapping[str, Any]) -> int | None:
    """Returns the width of the recurrent state that a preset sets; None: it sets none."""
    return values.get("agent", {}).get("world_model", {}).get("deter")


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
