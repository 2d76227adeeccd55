"""Wall and processor time of a sweep: packed, side by side, and one trial after the other; and what starting costs.

    python -m benchmarks.sweeps trials --sizes 1 4 16 --env-steps 3000
    python -m benchmarks.sweeps starts --rounds 3

trials: a sweep of N seeds of a preset. All sweeps use one compilation cache, which is filled before the first of them.
starts: a sweep of one trial that only collects, beside the same run by `dreamer train`: the difference is the overhead
of the launcher. Then a run that makes one update, with an empty compilation cache and with a full one.
Imports no jax.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

WAYS = {
    "packed": ["--pack", "on", "--jobs", "1"],
    "side by side": ["--pack", "off"],
    "one after the other": ["--pack", "off", "--jobs", "1"],
}
QUIET = {"eval.every": 0, "eval.episodes": 0, "eval.video": "off", "log.tensorboard": False}


class Took(NamedTuple):
    """Seconds that a command took: by the clock, and of processor time with all its processes."""

    wall: float
    processor: float


def timed(words: Sequence[str], cache: Path) -> Took:
    """Runs a command of dreamer to its end. cache: the compilation cache of all its processes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "dreamer", *words], env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stdout[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(time.monotonic() - began, processor)


def flags(**own: object) -> list[str]:
    """Returns the settings of a quiet run as flags. own: more settings by key"""
    settings = {**QUIET, **own}
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in settings.items()}
    return [word for key, text in texts.items() for word in (f"--{key.replace('_', '-')}", text)]


def write_sweep(folder: Path, preset: str, seeds: int, **own: object) -> Path:
    """Writes a sweep of seeds of a preset. own: settings by key, with "__" for the dot."""
    settings = {**QUIET, **{key.replace("__", "."): value for key, value in own.items()}}
    file = folder / f"sweep{seeds}.yaml"
    file.write_text(yaml.safe_dump({"base": [preset, settings], "seeds": seeds}))
    return file


def trials(args: argparse.Namespace) -> None:
    """Prints a table of the ways to run N trials."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        cache, warm = folder / "compiled", folder / "warm"
        warm.mkdir()
        filled: set[int] = set()  # the members of the programs that the cache holds
        for size in args.sizes:
            file = write_sweep(folder, args.preset, size, env=args.env, env_steps=args.env_steps)
            for way, words in WAYS.items():
                if size == 1 and way != "packed":
                    continue
                name = way.replace(" ", "_")
                members = size if way == "packed" else 1
                if members not in filled:
                    filled.add(members)
                    short = write_sweep(warm, args.preset, members, env=args.env, env_steps=args.warm_up)
                    timed(["sweep", str(short), "--run-dir", str(warm / f"{size}{name}"), *words], cache)
                took = timed(["sweep", str(file), "--run-dir", str(folder / f"{size}{name}"), *words], cache)
                print(f"{size:3} trials, {way:20} {took.wall:7.1f} s, processor {took.processor:7.1f} s", flush=True)


def starts(args: argparse.Namespace) -> None:
    """Prints the overhead of the launcher, and the seconds of a start with an empty and with a full cache."""
    seen: dict[str, list[Took]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        one = write_sweep(folder, args.preset, 1, env=args.env, env_steps=160, replay_ratio=0)
        alone = ["train", args.preset, *flags(env=args.env, env_steps=160, replay_ratio=0), "--run-dir"]
        learns = ["train", args.preset, *flags(env=args.env, env_steps=600), "--run-dir"]
        timed([*alone, str(folder / "first")], folder / "cache")
        for number in range(args.rounds):
            into = folder / str(number)
            commands = {
                "dreamer train": ([*alone, f"{into}a"], folder / "cache"),
                "dreamer sweep of one": (["sweep", str(one), "--run-dir", f"{into}b"], folder / "cache"),
                "600 steps, empty cache": ([*learns, f"{into}c"], folder / f"cache{number}"),
                "600 steps, full cache": ([*learns, f"{into}d"], folder / f"cache{number}"),
            }
            for name, (words, cache) in commands.items():
                seen.setdefault(name, []).append(timed(words, cache))
    for name, all_of in seen.items():
        walls = [one.wall for one in all_of]
        processor = statistics.median(one.processor for one in all_of)
        spread = f"({min(walls):.1f} to {max(walls):.1f})"
        print(f"{name:24} {statistics.median(walls):6.1f} s {spread}, processor {processor:6.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["trials", "starts"])
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--env", default="gymnax:CartPole-v1")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--env-steps", type=int, default=3000)
    parser.add_argument("--warm-up", type=int, default=600, help="steps of the sweep that fills the cache")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    {"trials": trials, "starts": starts}[args.what](args)


if __name__ == "__main__":
    main()
