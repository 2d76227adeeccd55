"""The settings with which several processes can train a run, and the check that all processes have the same ones."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from dreamer import __version__
from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.fields import get, keys
from dreamer.plugins import EnvName
from dreamer.runtime.devices import distributed
from dreamer.runtime.hosts.host import Host

OWN = ("devices.coordinator", "devices.processes", "devices.process_id")  # may differ between the processes


def check(config: Config) -> None:
    """Raises UserError naming a field that excludes several processes, or one that cannot be shared evenly."""
    against = {
        "loop device": (config.loop == "device", "leave it out, several processes train on the host"),
        "collect thread": (config.collect == "thread", "leave it out, several processes collect in turns"),
        "replay.on_device": (config.replay.on_device, "leave it out, each process sends its share of a batch"),
    }
    for name, (asked, advice) in against.items():
        if asked:
            raise UserError(f"{name} is not possible with devices.coordinator: {advice}")
    for name in ("workers.envs", "replay.batch_size"):
        distributed.share(name, get(config, name))


def in_turns(config: Config) -> Config:
    """Returns the config with which several processes train: on the host, in turns."""
    return dataclasses.replace(config, loop="host", collect="turns")


def compare(host: Host, config: Config, env: EnvName, request: Mapping[str, Any]) -> None:
    """Raises UserError in all processes if they differ in their versions or their settings, naming what differs.

    request: the other arguments of the run, JSON values. A collective operation.
    """
    mine = {
        "the version of dreamer": __version__, "the code of dreamer": _code(),
        "the version of jax": jax.__version__,
        "the version of Python": ".".join(platform.python_version_tuple()[:2]), "env": str(env), **request,
        **{key: repr(get(config, key)) for key in keys(config) if key not in OWN and key != "env_options"},
        "env_options": repr(sorted(config.env_options.items())),
    }  # fmt: skip
    every = host.exchange(mine)
    differing = []
    for name in dict.fromkeys(name for one in every for name in one):
        values: dict[Any, list[int]] = {}
        for process, one in enumerate(every):
            values.setdefault(one.get(name), []).append(process)
        if len(values) > 1:
            differing.append(f"{name} is {', '.join(f'{value} in {_named(who)}' for value, who in values.items())}")
    if differing:
        host.agreed = UserError(f"the processes differ: {'; '.join(differing)}")
        raise host.agreed


def _named(processes: list[int]) -> str:
    """Returns the numbers of processes in words."""
    if len(processes) > 8:
        return f"{len(processes)} processes from {processes[0]} on"
    return f"process {' and '.join(map(str, processes))}"


def _code() -> str:
    """Returns a digest of the source files of dreamer."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
