"""`dreamer check ENV`: finds the faults of an environment that would waste a night of training. Imports no jax."""

from __future__ import annotations

import contextlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamer.apps.check.isolation import verdicts_of
from dreamer.apps.check.verdicts import Level, Settings, Verdict, counted
from dreamer.runtime.files.atomic import write_whole

LEVELS: tuple[Level, ...] = ("wrong", "warning", "note", "ok")
STYLES = {"wrong": "bold red", "warning": "yellow", "note": "cyan", "ok": "green"}
LEVEL_WIDTH, KEY_WIDTH = 9, 16


def check_env(name: str, settings: Settings) -> int:
    """Runs `dreamer check`: prints each verdict, and a summary. Returns the exit code: 1 if something is wrong.

    Raises UserError when there is no such environment or a file cannot be written.
    """
    verdicts = list(verdicts_of(name, settings)) if settings.json == "-" else _shown(name, settings)
    if settings.json == "-":
        print(as_json(name, settings, verdicts), end="", flush=True)
    elif settings.json:
        text = as_json(name, settings, verdicts)
        write_whole(Path(settings.json), lambda partial: partial.write_text(text))
    return 1 if _counts(verdicts)["wrong"] else 0


def _shown(name: str, settings: Settings) -> list[Verdict]:
    """Prints each verdict when it arrives, colored and wrapped on a terminal, else on one line. Returns them all."""
    from rich.console import Console

    console = Console()
    terminal = console.is_terminal and not console.is_dumb_terminal
    verdicts: list[Verdict] = []
    with console.status("making the environment") if terminal else contextlib.nullcontext() as status:
        progress = status.update if status else lambda place: None
        for verdict in verdicts_of(name, settings, progress):
            if not verdicts:  # not before: an unknown name prints an error only
                print(f"dreamer check {name}: up to {counted(settings.steps, 'random step')}, seed {settings.seed}")
            if terminal:
                console.print(_colored(verdict, console.width))
            else:
                print(line(verdict), flush=True)
            verdicts.append(verdict)
    print(_summary(_counts(verdicts)))
    return verdicts


def line(verdict: Verdict) -> str:
    """Returns a verdict as one line of text."""
    return f"{verdict.level:<{LEVEL_WIDTH}}{verdict.key:<{KEY_WIDTH}}{verdict.text}"


def _colored(verdict: Verdict, width: int) -> Any:
    from rich.text import Text

    indent = LEVEL_WIDTH + KEY_WIDTH
    wrapped = textwrap.wrap(verdict.text, max(30, width - indent), break_on_hyphens=False, break_long_words=False)
    text = Text(f"{verdict.level:<{LEVEL_WIDTH}}", STYLES[verdict.level])
    return text.append(f"{verdict.key:<{KEY_WIDTH}}" + f"\n{' ' * indent}".join(wrapped), "default")


def _counts(verdicts: Sequence[Verdict]) -> dict[Level, int]:
    return {level: sum(verdict.level == level for verdict in verdicts) for level in LEVELS}


def _summary(counts: Mapping[Level, int]) -> str:
    what = "not sound" if counts["wrong"] else "sound, with warnings" if counts["warning"] else "sound"
    others = f"{counted(counts['warning'], 'warning')}, {counted(counts['note'], 'note')}"
    return f"{what}: {counts['wrong']} wrong, {others}"


def as_json(name: str, settings: Settings, verdicts: Sequence[Verdict]) -> str:
    """Returns the settings and the verdicts as the text of a JSON object, with one verdict per line."""
    counts = _counts(verdicts)
    head: dict[str, Any] = {
        "env": name, "env_options": settings.env_options, "action_repeat": settings.action_repeat,
        "steps": settings.steps, "episodes": settings.episodes, "seed": settings.seed, "workers": settings.workers,
        "sound": not counts["wrong"], "counts": counts,
    }  # fmt: skip
    lines = ",\n".join("  " + json.dumps(verdict._asdict()) for verdict in verdicts)
    return json.dumps(head)[:-1] + f', "verdicts": [\n{lines}\n]}}\n'
