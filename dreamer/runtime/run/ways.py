"""Chooses how a run goes: on the device, in turns, or with a thread that collects. Imports no jax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.runtime.replay.capacity import in_words

Way = Literal["device", "turns", "thread", "data"]


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
        return f"{in_words(self.needed)} on {where} (of {in_words(self.free)} free)"


def choose(config: Config, backend: str, platforms: Sequence[str], room: Room) -> Choice:
    """Chooses from the config, the backend of the workers, and the platform of each device that learns.

    room: the memory for the replay on the device
    Raises UserError if the config asks for a way that is not possible.
    """
    if config.updates:
        return Choice("data", "loop: on the host, trains on the rows of data; no environment steps")
    envs, devices = config.workers.envs, len(platforms)
    near = " or ".join(str(n) for n in (envs // devices * devices, envs // devices * devices + devices) if n)
    asked, draws = config.workers.backend, "recency" if config.replay.recency else "priority"
    elsewhere = "" if asked == "auto" else f", or workers.backend {asked} runs it elsewhere"
    against = {
        f"the environment is not written in JAX{elsewhere}": backend != "jax",
        "the rows of data are on the host": bool(config.data),
        f"replay.{draws} draws on the host only": config.replay.uniform < 1,
        "replay.tier disk keeps observations on the host": config.replay.tier == "disk",
        f"devices.fsdp {config.devices.fsdp} splits the train state, which only the host does": config.devices.fsdp > 1,
        f"{devices} devices cannot share {envs} environments evenly; give workers.envs {near}": envs % devices > 0,
        f"the replay needs {room.text} (a lower replay.capacity_steps makes it smaller)": room.needed > room.free,
    }
    reasons = [reason for reason, holds in against.items() if holds]
    if config.loop == "device" and reasons:
        raise UserError(f"loop device: {reasons[0]}; use loop host")
    if backend != "jax" or config.loop == "host" or reasons:
        return _on_host(config, backend, platforms, " and ".join(reasons) or "loop is host")
    learns = ", stores rows and learns" if config.replay_ratio else " and stores rows; nothing trains at replay_ratio 0"
    what = f"one program acts, steps the environments{learns}"
    where = "the device" if devices == 1 else f"{devices} devices, each with {envs // devices} of the environments"
    return Choice("device", f"loop: on {where}; {what}; the replay takes {room.text}")


def _on_host(config: Config, backend: str, platforms: Sequence[str], why: str) -> Choice:
    host = f"loop: on the host, because {why}; " if backend == "jax" else "loop: "
    if config.lockstep and config.collect == "thread":
        raise UserError("lockstep collects and trains in turns; leave out --collect thread")
    asked = "lockstep is set" if config.lockstep else f"collect is {config.collect}"
    if config.lockstep or config.collect == "turns":
        return Choice("turns", f"{host}collects and trains in turns, because {asked}")
    if not config.replay_ratio:
        return Choice("thread", f"{host}a thread collects; nothing trains at replay_ratio 0")
    if config.collect == "thread":
        return Choice("thread", f"{host}a thread collects while another trains, because {asked}")
    # On a CPU, policy and update share the cores, and an update beside a thread that acts takes longer.
    if set(platforms) == {"cpu"} and backend in ("inline", "jax"):
        return Choice("turns", f"{host}collects and trains in turns, because policy and update share the CPU")
    return Choice("thread", f"{host}a thread collects while another trains")
