"""`dreamer check ENV`: everything about an environment that would cost its user a night of training. No jax."""

from __future__ import annotations

import functools
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium

from dreamer.apps.checks import channels, endings, gymnasium_checker, handed_out, picture, rewards, seeds, spaces, times
from dreamer.apps.checks.answers import NoAnswer
from dreamer.apps.checks.isolation import verdicts_of
from dreamer.apps.checks.looks import Key, keys_of
from dreamer.apps.checks.verdicts import Level, Settings, Verdict, counted, note, ok, warning, wrong
from dreamer.apps.checks.walk import Walk, walk
from dreamer.apps.checks.watch import EnvFailed, Watch
from dreamer.errors import UserError
from dreamer.runtime.readers import readers
from dreamer.runtime.run_dir import disk_error
from dreamer.runtime.workers.seam import Plan

LEVELS: tuple[Level, ...] = ("wrong", "warning", "note", "ok")
STYLES = {"wrong": "bold red", "warning": "yellow", "note": "cyan", "ok": "green"}
LEVEL_WIDTH, KEY_WIDTH = 9, 16


# The checks, in order -------------------------------------------------------------------------------------------------


def examine(name: str, settings: Settings, watch: Watch) -> Iterator[Verdict]:
    """Every verdict on the environment called `name`, as soon as it is there.

    Raises UserError when there is no such environment, or the picture cannot be written.
    """
    make = functools.partial(watch.made, name, settings.env_options)
    said: list[Verdict] = []
    try:
        env = make()
    except EnvFailed as failure:
        yield _failed(failure)
        return
    keys, found = _spaces(env, name)
    yield from _kept(found, said)
    lines = gymnasium_checker.lines(env, watch)
    whole = False
    if keys:
        taken = walk(
            env, keys, watch, steps=settings.steps, episodes=settings.episodes, seed=settings.seed,
            repeat=settings.action_repeat,
        )  # fmt: skip
        yield from _kept(_of_walk(taken, keys, env), said)
        whole = taken.whole
    yield from _kept(_attempt(lambda: env.close() or []), said)
    if whole:
        plan = Plan(name, settings.env_options, settings.action_repeat, settings.seed, None, settings.workers)
        if all(verdict.key != "reset-seed" for verdict in said):
            yield from _kept(_attempt(lambda: seeds.check(make, keys, watch, settings.seed)), said)
        yield from _kept(times.check(taken, plan), said)
        yield from _kept(_attempt(lambda: _drawn(make, watch, settings)), said)
    else:
        yield note("stopped", "what comes after this was not looked at: seeds, times, pictures")
    yield from gymnasium_checker.verdicts(lines, said)


def _kept(found: Iterable[Verdict], said: list[Verdict]) -> Iterator[Verdict]:
    """`found`, noted in `said`."""
    for verdict in found:
        said.append(verdict)
        yield verdict


def _attempt(look: Callable[[], list[Verdict]]) -> list[Verdict]:
    """What `look` finds, or the verdict on what it stumbled over."""
    try:
        return look()
    except EnvFailed as failure:
        return [_failed(failure)]
    except NoAnswer as error:
        return [error.verdict]


def _failed(failure: EnvFailed) -> Verdict:
    if failure.call == "close":
        return warning("close", str(failure))
    return wrong("construction" if failure.call == "make" else "raises", str(failure))


def _spaces(env: gymnasium.Env, name: str) -> tuple[list[Key], list[Verdict]]:
    """The keys of the observation, none when a space is not supported."""
    try:
        keys = keys_of(env, readers(env, name))
        return keys, spaces.check(env, keys)
    except UserError as error:
        return [], [wrong("space", str(error))]


def _of_walk(taken: Walk, keys: Sequence[Key], env: gymnasium.Env) -> list[Verdict]:
    fit = f"{counted(len(taken.rows), 'row')} of random actions fit their spaces, all numbers are finite"
    single = taken.verdicts or [ok("values", fit)]
    several = channels.check(taken, keys) + handed_out.check(taken) + endings.check(taken, env)
    return single + several + rewards.check(taken)


def _drawn(make: Callable[..., gymnasium.Env], watch: Watch, settings: Settings) -> list[Verdict]:
    """Verdicts on rendering, and the picture if one is wanted; render() has its place in it where it works."""
    mode: str | None = "rgb_array"
    try:
        env = make(mode)
    except (EnvFailed, UserError) as error:
        verdicts = [note("render", f"it cannot be made to draw: {error}")]
    else:
        verdicts = times.render(env, watch, settings.seed)
        env.close()
    if settings.picture:
        env = make(mode if verdicts[0].level == "ok" else None)
        verdicts += picture.check(env, settings.picture, watch, settings.seed, settings.action_repeat)
        env.close()
    return verdicts


# What is shown --------------------------------------------------------------------------------------------------------


def check_env(name: str, settings: Settings) -> int:
    """`dreamer check`: prints a line a verdict and the summary. Returns 1 if something is wrong, else 0.

    Raises UserError when there is no such environment or a file cannot be written.
    """
    quiet = settings.json == "-"
    show = (lambda verdict: None) if quiet else _printer(sys.stdout)
    if not quiet:
        print(f"dreamer check {name}: up to {counted(settings.steps, 'random step')}, seed {settings.seed}", flush=True)
    verdicts = []
    for verdict in verdicts_of(name, settings):
        verdicts.append(verdict)
        show(verdict)
    counts = {level: sum(verdict.level == level for verdict in verdicts) for level in LEVELS}
    if not quiet:
        print(_summary(counts))
    if settings.json:
        _write(settings.json, as_json(name, settings, verdicts, counts))
    return 1 if counts["wrong"] else 0


def as_json(name: str, settings: Settings, verdicts: Sequence[Verdict], counts: Mapping[Level, int]) -> str:
    """The verdicts as a JSON object of one line each."""
    head: dict[str, Any] = {
        "env": name, "env_options": settings.env_options, "action_repeat": settings.action_repeat,
        "steps": settings.steps, "episodes": settings.episodes, "seed": settings.seed, "workers": settings.workers,
        "sound": not counts["wrong"], "counts": counts,
    }  # fmt: skip
    lines = ",\n".join("  " + json.dumps(verdict._asdict()) for verdict in verdicts)
    return json.dumps(head)[:-1] + f', "verdicts": [\n{lines}\n]}}\n'


def _summary(counts: Mapping[Level, int]) -> str:
    what = "not sound" if counts["wrong"] else "sound, with warnings" if counts["warning"] else "sound"
    others = f"{counted(counts['warning'], 'warning')}, {counted(counts['note'], 'note')}"
    return f"{what}: {counts['wrong']} wrong, {others}"


def _printer(stream: Any) -> Callable[[Verdict], None]:
    """What prints a verdict: in colors and wrapped on a terminal, one plain line elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream)
    if not console.is_terminal:
        return lambda verdict: print(line(verdict), file=stream, flush=True)

    def show(verdict: Verdict) -> None:
        indent = LEVEL_WIDTH + KEY_WIDTH
        wrapped = textwrap.wrap(verdict.text, max(30, console.width - indent), break_on_hyphens=False)
        text = Text(f"{verdict.level:<{LEVEL_WIDTH}}", STYLES[verdict.level])
        text.append(f"{verdict.key:<{KEY_WIDTH}}", "default").append(f"\n{' ' * indent}".join(wrapped), "default")
        console.print(text)

    return show


def line(verdict: Verdict) -> str:
    """A verdict as one line."""
    return f"{verdict.level:<{LEVEL_WIDTH}}{verdict.key:<{KEY_WIDTH}}{verdict.text}"


def _write(target: str, text: str) -> None:
    if target == "-":
        print(text, end="", flush=True)
        return
    try:
        Path(target).write_text(text)
    except OSError as error:
        raise disk_error(error, target) from error
