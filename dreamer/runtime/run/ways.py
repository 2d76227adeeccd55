"""Chooses how a run goes: on the device, in turns, or with a thread that collects. Imports no jax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from dreamer.config import Config
from dreamer.errors import UserError

Way = Literal["device", "turns", "thread"]


class Choice(NamedTuple):
    """How the run goes, and a line to print about it; "": the line would say nothing new.

    "device": the fused loop | "turns": collects and trains in turns | "thread": a thread collects meanwhile
    """

    way: Way
    line: str


class Room(NamedTuple):
    """The bytes that the replay needs on each device, the bytes that are free there, and the number of devices."""

    needed: int
    free: int
    devices: int = 1

    @property
    def text(self) -> str:
        """Returns the bytes in words."""
        where = "the device" if self.devices == 1 else "each device"
        return f"{self.needed / 1e9:.3g} GB on {where} (of {self.free / 1e9:.3g} GB free)"


def choose(config: Config, backend: str, platforms: Sequence[str], room: Room) -> Choice:
    """Chooses from the config, the backend of the workers, and the platform of each device that learns.

    room: the memory for the replay on the device
    Raises UserError if the config asks for a way that is not possible.
    """
    envs, devices = config.workers.envs, len(platforms)
    near = " or ".join(str(n) for n in (envs // devices * devices, envs // devices * devices + devices) if n)
    against = {
        "the environment is not written in JAX, or workers.backend runs it elsewhere": backend != "jax",
        "replay.recency and replay.priority draw on the host only": config.replay.uniform < 1,
        "replay.tier disk keeps observations on the host": config.replay.tier == "disk",
        f"devices.fsdp {config.devices.fsdp} splits the train state, which only the host does": config.devices.fsdp > 1,
        f"{devices} devices cannot share {envs} environments evenly; give workers.envs {near}": envs % devices > 0,
        f"the replay needs {room.text}; replay.capacity_steps makes it smaller": room.needed > room.free,
    }
    reasons = [reason for reason, holds in against.items() if holds]
    if config.loop == "device" and reasons:
        raise UserError(f"loop device: {reasons[0]}; use loop host")
    if backend != "jax" or config.loop == "host" or reasons:
        return _on_host(config, backend, platforms, "; ".join(reasons) or "the config says so")
    what = "one program acts, steps the environments, stores rows and learns"
    where = "the device" if devices == 1 else f"{devices} devices, each with {envs // devices} of the environments"
    return Choice("device", f"loop: on {where}; {what}; the replay takes {room.text}")


def _on_host(config: Config, backend: str, platforms: Sequence[str], why: str) -> Choice:
    host = f"loop: on the host, because {why}; " if backend == "jax" else "loop: "
    if config.lockstep and config.collect == "thread":
        raise UserError("lockstep collects and trains in turns; leave out --collect thread")
    if config.lockstep or config.collect == "turns":
        return Choice("turns", f"{host}collects and trains in turns, as {'lockstep' if config.lockstep else 'asked'}")
    if config.collect == "thread":
        return Choice("thread", f"{host}a thread collects while another trains, as asked")
    # On a CPU, policy and update share the cores, and an update beside a thread that acts takes longer.
    if set(platforms) == {"cpu"} and backend in ("inline", "jax") and config.replay_ratio:
        return Choice("turns", f"{host}collects and trains in turns, because policy and update share the CPU")
    return Choice("thread", f"{host}a thread collects while another trains")
