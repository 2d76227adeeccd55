"""The command `dreamer`: finds the command that is asked for, trains, and ends with an exit code and a line for errors.

The flag of a setting is its key with hyphens, such as --run-dir. Its value follows the rules of presets
(dreamer/config.py), so types, ranges and errors are defined only once. tyro makes the help from the same dataclasses.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dreamer import shipped
from dreamer.apps import commands, lists
from dreamer.apps.flags import Flag, apply, is_preset, joined, own_words, scan, show_help
from dreamer.config import (
    PLUGINS,
    Config,
    Layer,
    Note,
    check_names,
    read_preset,
    stack,
    tell,
    to_yaml,
    without_env,
)
from dreamer.errors import UserError, nearest
from dreamer.fields import MAY_CHANGE, keys, marked
from dreamer.runtime.log.glossary import METRICS

USAGE = """usage: dreamer train [PRESET ...] [--flags]        train an agent
       dreamer sweep SWEEP [--flags]               train many agents that differ in settings and seeds
       dreamer eval RUN [--flags]                  play episodes with a trained one
       dreamer imagine RUN [--flags]               dream a film and compare it with the true future
       dreamer check ENV [--flags]                 look for what is wrong with an environment
       dreamer report RUN... [--flags]             draw and tabulate what runs have reached
       dreamer verify RUN [--flags]                read a run directory whole and say what is damaged
       dreamer data PATH [--flags]                 say what is in a dataset, and convert it
       dreamer presets                             list the presets that come with dreamer
       dreamer envs                                list the suites of environments
       dreamer metrics [NAME]                      explain what a run logs
       dreamer completion bash|zsh                 print a script that completes commands and flags
       dreamer COMMAND --help                      show the flags of a command
       dreamer --version
"""
# tyro joins lines unless they start a list.
TRAIN = """Train an agent.
- A PRESET is the name of one that comes with dreamer, or a file in .yaml.
- Presets hold differences only; they stack left to right.
- The word after a flag is its value, whatever it looks like.
- Switches take no word but true or false.
- Lists and environment options take several words: up to the next flag,
- or to a second word in .yaml, which is a preset.
- Flags override presets. Numbers may be written as 1e6.
- Defaults listed here are those after the presets given."""
PLUGIN_NAMES = {f"{path}.name" for path in PLUGINS}


@dataclasses.dataclass(frozen=True)
class TrainFlags(Config):
    """The flags of `dreamer train`: every setting of the configuration, and a few that are not part of it."""

    print_config: bool = False
    """Print the resolved configuration, itself a preset, and exit."""
    resume: Literal["no", "yes", "auto"] = "no"
    """Continue the run in --run-dir; presets and flags override its config; auto: begin a run if there is none."""
    resume_from: int | None = None
    """Number of the checkpoint to resume from, in place of the newest; newer ones are set aside. Implies --resume."""
    trust: bool = False
    """Presets, and a run that was not made by you on this machine, may name code that is not dreamer's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code. argv: the words after the program's name; None: sys.argv[1:].

    0: done | 1: `check`, `verify` or `data` found a fault, or stdout is a closed pipe
    2: a UserError, printed on stderr | 130: interrupted | 143, 138: interrupted by SIGTERM, SIGUSR1
    """
    try:
        return _command(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"dreamer: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        # A cluster starts a job again that ends with the code of a signal; so only a saved run ends with it.
        if notes := getattr(stop, "__notes__", None):
            print(f"dreamer: error: interrupted, and not all was saved: {' '.join(notes[0].split())}", file=sys.stderr)
            return 2
        print("dreamer: interrupted", file=sys.stderr)
        return getattr(stop, "code", 130)
    except BrokenPipeError:  # the reader of a pipe (`| head`) has gone; Python would report that again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _command(args: list[str]) -> int:
    table = {
        "train": train_command, "sweep": commands.sweep_command, "eval": commands.eval_command,
        "imagine": commands.imagine_command, "check": commands.check_command, "report": commands.report_command,
        "verify": commands.verify_command, "data": commands.data_command, "presets": lists.presets_command,
        "envs": lists.envs_command, "metrics": lists.metrics_command, "completion": completion_command,
    }  # fmt: skip
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if args[0] == "--version":
        from dreamer import __version__

        print(f"dreamer {__version__}")
        return 0
    if args[0] not in table:
        what = "flag" if args[0].startswith("-") else "command"
        choices = ["--help", "--version"] if what == "flag" else table
        raise UserError(f"unknown {what} {args[0]!r}{nearest(args[0], choices)}")
    return table[args[0]](args[1:])


def train_command(args: list[str]) -> int:
    """Runs `dreamer train`. args: presets and flags, in any order. Returns the exit code. Raises UserError."""
    words, flags = scan(args)
    flags, searched = _searched(flags)
    given = {flag.key: flag.words[0] for flag in flags if flag.words}
    trusted = _trusts(flags)
    layers = [*_own_config(flags, given, trusted), *_files(words, given, trusted)]
    # The types of flags, and so the words that belong to them, depend on the named plug-ins.
    flags, free = own_words(_with_plugins(layers, flags, note=lambda text: None), flags)
    flags = joined(flags, "data")
    layers += _files(free, given, trusted)
    config = _with_plugins(layers, flags, note=tell)
    if any(flag.key == "help_all" for flag in flags):
        return show_help(config, "dreamer train [PRESET ...]", f"{TRAIN}\n{_may_change(config)}")
    if any(flag.key == "help" for flag in flags):
        from dreamer.apps import train_help

        print(train_help.found_by(config, " ".join(searched)) if searched else train_help.one_screen(config), end="")
        return 0
    config, more = apply(config, [flag for flag in flags if flag.key not in PLUGIN_NAMES])
    for word in (*words, *free, *more):
        if not is_preset(word):
            raise UserError(f"stray argument {word!r}: presets end in .yaml, or are names that dreamer presets lists; "
                            f"flags start with --{_nearest_preset(word)}")  # fmt: skip
    resolved = Config(**{item.name: getattr(config, item.name) for item in dataclasses.fields(Config)})
    resolved = without_env(resolved, "env" in given or any("env" in one.values for one in layers))
    if config.print_config:
        print(to_yaml(resolved), end="")
        return 0
    from dreamer.runtime.train import train

    train(resolved, resume=config.resume, resume_from=config.resume_from, trust=config.trust)
    return 0


def _searched(flags: list[Flag]) -> tuple[list[Flag], list[str]]:
    """Separates the words after --help into presets, which stay in the returned flags, and words to search for."""
    searched = [word for flag in flags if flag.key == "help" for word in flag.words if not is_preset(word)]
    kept = [
        flag._replace(words=[w for w in flag.words if is_preset(w)], inline=False) if flag.key == "help" else flag
        for flag in flags
    ]
    return kept, searched


def _may_change(config: Any) -> str:
    """Returns a paragraph for the help: which settings may differ when a run is resumed."""
    text = f"With --resume, only these may differ from the run's own config: {', '.join(marked(config, MAY_CHANGE))}."
    return textwrap.fill(text, 78, initial_indent="- ", subsequent_indent="- ")


def _trusts(flags: Sequence[Flag]) -> bool:
    """Whether the command trusts the files that it names: --trust is given, and not as --trust false."""
    return any(flag.key == "trust" and [word.lower() for word in flag.words[:1]] != ["false"] for flag in flags)


def _files(words: Sequence[str], given: Mapping[str, Any], trusted: bool) -> list[Layer]:
    """Reads the presets among `words` and checks them, as `check_names` does. Raises UserError when one is refused."""
    layers = [*map(read_preset, filter(is_preset, words))]
    check_names(layers, given=given, trust=trusted)
    return layers


def _with_plugins(layers: list[Layer], flags: list[Flag], note: Note) -> Any:
    """Returns the TrainFlags that `layers` define, changed by the flags that name a plug-in. note: as in `overlay`."""
    config: Any = TrainFlags(**vars(stack(layers, note=note)))
    return apply(config, [flag for flag in flags if flag.key in PLUGIN_NAMES], before=layers, note=note)[0]


def completion_command(args: list[str]) -> int:
    """Runs `dreamer completion bash|zsh`: prints a script for the shell. Returns the exit code. Raises UserError."""
    if "--help" in args:
        print('usage: dreamer completion bash|zsh\n\nLoad what it prints: eval "$(dreamer completion bash)"')
        return 0

    def script(words: list[str]) -> list[str]:
        from dreamer.apps.check.verdicts import Settings
        from dreamer.apps.data import DataFlags
        from dreamer.apps.imagine.flags import ImagineFlags
        from dreamer.apps.sweep.options import SweepFlags

        if not words:
            raise UserError('dreamer completion needs a shell, bash or zsh: eval "$(dreamer completion bash)"')
        own = {
            "train": (TrainFlags(), [*shipped.presets(), "--help-all"]), "eval": (commands.EvalFlags(), []),
            "sweep": (SweepFlags(), [*shipped.sweeps()]), "check": (Settings(), []),
            "report": (commands.ReportFlags(), []), "verify": (commands.VerifyFlags(), []), "data": (DataFlags(), []),
            "imagine": (ImagineFlags(), []),
        }  # fmt: skip
        offered: dict[str, list[str]] = {
            name: [*more, "--help", *(f"--{key.replace('_', '-')}" for key in keys(config))]
            for name, (config, more) in own.items()
        }
        offered |= {"presets": [], "envs": [], "completion": list(lists.SHELLS)}
        offered["metrics"] = [metric.name for metric in METRICS if "*" not in metric.name]
        return [lists.completion(words[0], offered)]

    return lists.listed("completion", args, 1, "", script)


def _own_config(flags: list[Flag], given: Mapping[str, Any], trusted: bool) -> list[Layer]:
    """Returns the config of the run to resume, as a list with one layer; [] if no run is resumed. Raises UserError."""
    words = {flag.key: flag.words[:1] for flag in flags}
    resumed = words.get("resume", ["no"]) != ["no"] or "resume_from" in words
    if not resumed or not words.get("run_dir"):
        return []
    from dreamer.runtime.population import standing
    from dreamer.runtime.run import run_config

    run_dir = Path(words["run_dir"][0]).expanduser()
    if (run_dir / standing.FILE).is_file():
        return standing.layers(run_dir, trusted=trusted, given=given)
    if not (run_dir / "config.yaml").is_file():
        return []
    found = run_config.read(run_dir)
    run_config.check(found, trusted=trusted, given=given)
    return [found.layer()]


def _nearest_preset(word: str) -> str:
    near = [path for path in (f"{word}.yaml", os.path.join("experiments", f"{word}.yaml")) if os.path.isfile(path)]
    near += filter(None, [shipped.nearest_preset(word)])
    return f"; did you mean {near[0]!r}?" if near else ""
