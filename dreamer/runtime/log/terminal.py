"""Shows the progress of a run: a live panel on a terminal, plain lines in a file or a pipe. Imports no jax."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TextIO

WINDOW = 30.0  # seconds over which rates are taken
LOSS = "loss/"
MISSING = "-"  # in the panel, in place of a value that is not known yet


class State(NamedTuple):
    """The values that `Display` shows. A new State replaces them all at once: the drawing thread never sees a mixture.

    env_rate, update_rate: env steps and updates per second; None: unknown
    losses: the names of the losses shown, in order; "rec/image" and "rec/position" are shown as their sum "rec"
    needs_updates: whether the run trains; if it does, the time left is unknown before the first updates
    counted: what env_steps and env_rate count, "env_steps" or "updates"
    """

    phase: str
    env_steps: int
    updates: int
    env_rate: float | None
    update_rate: float | None
    metrics: Mapping[str, float]
    losses: tuple[str, ...] = ()
    needs_updates: bool = True
    counted: str = "env_steps"


class Display:
    """Shows the progress of a run on `stream`, and owns the thread that draws the live panel.

    On a terminal it shows a panel, drawn twice a second. Elsewhere it prints one line every `every` seconds, without
    control codes. The fields of a line are always in the same order; a field without a value is left out. Use as a
    context manager, or call close().
    """

    def __init__(
        self,
        env_steps: int,
        every: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        trains: bool = True,
        counted: str = "env_steps",
    ):
        """env_steps: the env steps of the whole run | every: seconds between two plain lines, not used on a terminal

        stream: None: stdout | trains: whether the run trains, rather than only collects
        counted: "updates" if the run takes no environment steps: the numbers called env_steps are then its updates
        """
        self._total, self._every, self._clock = env_steps, every, clock
        self._stream = stream or sys.stdout
        self._start = clock()
        self._due = self._start + every
        self._last_line: State | None = None
        self._marks: deque[tuple[float, int, int]] = deque()
        self._state = State("starting", 0, 0, None, None, {}, needs_updates=trains, counted=counted)
        self._last_words: list[str] = []
        self._live, self._console = self._open_live()

    def header(self, lines: Iterable[str]) -> None:
        """Prints the lines that introduce a run, such as its environment, parameters and memory."""
        for line in lines:
            self.message(line)

    def losses(self, names: Iterable[str]) -> None:
        """Sets the losses to show. names: all loss names of an agent, such as "dyn", "rec/image", in order."""
        self._state = self._state._replace(losses=tuple(dict.fromkeys(name.partition("/")[0] for name in names)))

    def message(self, text: str) -> None:
        """Prints a permanent line of text; on a terminal, above the panel."""
        if self._console:
            self._console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def phase(self, name: str) -> None:
        """Sets the phase of the run, such as "collecting" or "training", and measures the rates anew.

        The old rates are shown until the new rates are known. When compiling starts or ends, they are hidden at once,
        because the rate of collecting predicts nothing about training.
        """
        if name == self._state.phase:
            return
        self._marks.clear()
        if "compiling" in (name, self._state.phase):
            self._state = self._state._replace(env_rate=None, update_rate=None)
        self._state = self._state._replace(phase=name)
        if not self._live:
            self.message(f"[{_clock_time(self._clock() - self._start)}] {name}")

    def update(self, env_steps: int, updates: int, metrics: Mapping[str, float] | None = None) -> None:
        """Sets the progress and the metrics to show. Cheap enough to call at every step.

        env_steps, updates: the totals so far | metrics: new values by name; a missing name keeps its last value
        """
        now = self._clock()
        if not self._marks or now - self._marks[-1][0] >= WINDOW / 60:
            self._marks.append((now, env_steps, updates))
            while len(self._marks) > 2 and now - self._marks[0][0] > WINDOW:
                self._marks.popleft()
        since, old_steps, old_updates = self._marks[0]
        env_rate, update_rate = self._state.env_rate, self._state.update_rate
        if now - since >= 1.0:
            env_rate = (env_steps - old_steps) / (now - since)
            update_rate = (updates - old_updates) / (now - since)
        merged = {**self._state.metrics, **metrics} if metrics else self._state.metrics
        self._state = self._state._replace(
            env_steps=env_steps, updates=updates, env_rate=env_rate, update_rate=update_rate, metrics=merged
        )
        if not self._live and now >= self._due:
            self._due = now + self._every
            self._write_line(now)

    def end(self, phase: str, lines: Iterable[str]) -> None:
        """Sets the final phase of the run ("done", "stopped"), and the lines that `close` prints at the end."""
        self._state = self._state._replace(phase=phase)
        self._last_words = list(lines)

    def close(self) -> None:
        """Draws the panel once more and restores the terminal, or prints the last values as a plain line.

        Then prints the lines given to `end`. May be called again.
        """
        if self._live:
            live, self._live = self._live, None
            live.stop()
        elif not self._console and not _alike(self._state, self._last_line):
            self._write_line(self._clock())
        lines, self._last_words = self._last_words, []
        for line in lines:
            self.message(line)

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _write_line(self, now: float) -> None:
        self._last_line = self._state
        if self._state.env_steps:
            self.message(plain_line(self._state, self._total, now - self._start))

    def _open_live(self):
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._stream)
        if not console.is_terminal or console.is_dumb_terminal:
            return None, None

        def draw():
            return panel(self._state, self._total, self._clock() - self._start, console.width)

        live = Live(get_renderable=draw, console=console, refresh_per_second=2)
        live.start()
        return live, console


# What is shown --------------------------------------------------------------------------------------------------------


def plain_line(state: State, total: int, seconds: float) -> str:
    """Returns a State as one line of `name value` fields in a fixed order. A field without a value is left out.

    total: the env steps of the whole run | seconds: the time since its start
    """
    share = 100 * min(1.0, state.env_steps / total) if total else 100
    fields = {
        state.counted: f"{state.env_steps}/{total} ({share:.0f}%)",
        **({} if state.counted == "updates" else {"updates": str(state.updates)}),
        **_env_rate(state),
        "updates/s": _number(state.update_rate),
        "left": _clock_time(_left(state, total)),
        **_results(state.metrics), **_losses(state), **_health(state.metrics),
    }  # fmt: skip
    shown = [f"{name} {text}" for name, text in fields.items() if text != MISSING]
    return f"[{_clock_time(seconds)}] {state.phase} | " + " | ".join(shown)


def panel(state: State, total: int, seconds: float, width: int = 100):
    """Returns a State as a panel of the package rich: the progress on top, and groups of values below.

    total: the env steps of the whole run | seconds: the time since its start
    width: columns of the terminal; all groups are side by side from 100 columns on
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    share = min(1.0, state.env_steps / total) if total else 1.0
    top = Table.grid(padding=(0, 1), expand=True)
    top.add_column(no_wrap=True)
    top.add_column(ratio=1)
    top.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=1.0, completed=share, complete_style="green", finished_style="green")
    steps = f"{_spaced(state.env_steps)} / {_spaced(total)} {state.counted.replace('_', ' ')}"
    top.add_row(f"{100 * share:5.1f} %", bar, steps)
    pace = {
        **_env_rate(state), "updates/s": _number(state.update_rate),
        "updates": _spaced(state.updates), "elapsed": _clock_time(seconds), "left": _clock_time(_left(state, total)),
    }  # fmt: skip
    groups = {
        "pace": pace, "results": _results(state.metrics), "losses": _losses(state), "health": _health(state.metrics),
    }
    ratios = (4, 3, 3, 5) if width >= 100 else (5, 6)  # the last column has the longest names
    side_by_side = len(ratios)
    below = Table.grid(padding=(0, 3), expand=True)
    for ratio in ratios:
        below.add_column(ratio=ratio)
    columns = [_column(name, fields) for name, fields in groups.items()]
    for i in range(0, len(columns), side_by_side):
        below.add_row(*columns[i : i + side_by_side])
    body = Group(top, Text(""), below)
    return Panel(body, title=f"[bold]dreamer[/bold] {state.phase}", title_align="left", border_style="dim")


def _env_rate(state: State) -> dict[str, str]:
    return {} if state.counted == "updates" else {"env_steps/s": _number(state.env_rate)}


def _column(title: str, fields: Mapping[str, str]):
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_row(Text(title, "bold"), "")
    for name, text in fields.items():
        table.add_row(Text(name, "dim"), Text(text, "bold red" if text in ("nan", "inf", "-inf") else ""))
    return table


def _results(metrics: Mapping[str, float]) -> dict[str, str]:
    names = {"return": "episode/return", "length": "episode/length", "eval": "eval/return", "dream": "dream/return"}
    phases = {"phase": "train/phase", "generation": "evolution/generation", "fitness": "evolution/fitness"}
    own = {short: _number(metrics[name]) for short, name in phases.items() if name in metrics}
    return {short: _number(metrics.get(name)) for short, name in names.items()} | own


def _losses(state: State) -> dict[str, str]:
    """Returns the losses as text by short name; "rec" is the sum of "loss/rec/image", "loss/rec/position"."""
    sums: dict[str, float | None] = dict.fromkeys(state.losses)
    for name, value in state.metrics.items():
        short = name.removeprefix(LOSS).partition("/")[0]
        if name.startswith(LOSS) and short in sums:
            sums[short] = (sums[short] or 0.0) + value
    return {short: _number(value) for short, value in sums.items()}


def _health(metrics: Mapping[str, float]) -> dict[str, str]:
    """Returns the entropies of policy and latents, the gradient norm and the rows of the replay, as text by name."""
    names = {
        "action_entropy": "dream/action_entropy", "prior_entropy": "latent/prior_entropy",
        "post_entropy": "latent/post_entropy", "grad_norm": "train/grad_norm", "rows": "replay/rows",
    }  # fmt: skip
    shown = {short: _number(metrics.get(name)) for short, name in names.items()}
    largest = metrics.get("dream/action_entropy_max")
    if largest is not None and shown["action_entropy"] != MISSING:
        shown["action_entropy"] += f"/{_number(largest)}"
    return shown


def _alike(state: State, other: State | None) -> bool:
    """Whether the states are equal, except for the phase. False if `other` is None."""
    return other is not None and state._replace(phase=other.phase) == other


def _left(state: State, total: int) -> float | None:
    """Returns the seconds to the end at the current rate, or None if the rate is not known yet."""
    if not state.env_rate or (state.needs_updates and not state.update_rate):
        return None
    return max(0, total - state.env_steps) / state.env_rate


def _number(value: float | None) -> str:
    """Returns a number as text: at most four decimals; scientific below 1e-3 and from 1e8 on. None becomes "-"."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e8:
        return f"{value:.2e}"
    digits = max(0, 3 - (math.floor(math.log10(abs(value))) if value else 0))
    return f"{value:.{min(digits, 4)}f}"


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _clock_time(seconds: float | None) -> str:
    """Returns seconds as text h:mm:ss. None becomes "-"."""
    if seconds is None:
        return MISSING
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
