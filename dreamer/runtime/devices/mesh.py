"""The devices that learn, as a mesh.

A mesh has the axes `data` and `fsdp`. A batch is split over both axes. The train state is replicated on every device;
if the axis `fsdp` is longer than 1, large leaves of the state are split over it. Computations see the global batch, so
that means and return percentiles are the same on 1 or 64 devices. Devices that share one split state belong to one
host, so that each host has a complete state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Annotated

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from dreamer.errors import UserError
from dreamer.fields import at_least

AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Config:
    """The devices that learn, and how the state is split over them."""

    count: Annotated[int, at_least(0)] = 0
    """Number of devices that learn, on all hosts together; 0 = all."""
    fsdp: Annotated[int, at_least(1)] = 1
    """Number of devices of a host over which large leaves are split: parameters, optimizer moments and the slow
    critic; 1 = no split."""
    coordinator: str = ""
    """host:port of process 0 if several processes learn together; empty: only one process learns; auto: the cluster
    provides the address (Slurm, MPI, TPU pods)."""
    processes: Annotated[int, at_least(0)] = 0
    """Number of processes that learn together; 0 = the cluster provides it."""
    process_id: Annotated[int, at_least(-1)] = -1
    """Index of this process, from 0; -1 = the cluster provides it."""


def make_mesh(devices: Sequence[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
    """Makes a mesh of devices with the axes `data` and `fsdp`.

    devices: the devices to use; None: all | fsdp: the length of the axis `fsdp`
    Raises UserError if the number of devices is not a multiple of fsdp.
    """
    devices = list(devices or jax.devices())
    if len(devices) % fsdp:
        choices = _near(fsdp, (n for n in range(1, len(devices) + 1) if len(devices) % n == 0))
        raise UserError(f"devices.fsdp is {fsdp}, which does not divide {len(devices)} devices; give {choices}")
    shape = (len(devices) // fsdp, fsdp)
    if len({device.process_index for device in devices}) == 1:
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)
    # Sorted by host, so that the part of each host is contiguous; jax.make_mesh may use another order.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 2)


def configured_mesh(config: Config, batch_size: int) -> Mesh:
    """Makes the mesh that a config describes, with the same number of devices from each host.

    batch_size: the size of the global batch. Raises UserError naming the field if there are fewer devices than the
    config asks for, or if the devices or the batch cannot be split evenly.
    """
    mesh = make_mesh(configured_devices(config), config.fsdp)
    check_batch_size(mesh, batch_size)
    return mesh


def configured_devices(config: Config) -> list[jax.Device]:
    """Returns the devices that a config describes, with the same number of devices from each host.

    Raises UserError naming the field if there are fewer devices, or if they cannot be split evenly over the hosts.
    """
    hosts = jax.process_count()
    count = config.count or jax.device_count()
    if count > jax.device_count():
        there = f"{jax.device_count()} ({jax.devices()[0].device_kind})"
        raise UserError(f"devices.count is {count}, there are {there}; give 1 to {jax.device_count()}, or 0 for all")
    if count % hosts:
        choices = _near(count, range(hosts, jax.device_count() + 1, hosts))
        raise UserError(f"devices.count is {count}, not the same number on each of {hosts} hosts; give {choices}")
    each = count // hosts
    if hosts > 1 and each % config.fsdp:
        choices = _near(config.fsdp, (n for n in range(1, each + 1) if each % n == 0))
        raise UserError(f"devices.fsdp is {config.fsdp}, which does not divide the {each} of a host; give {choices}")
    return [device for host in range(hosts) for device in _of_host(host)[:each]]


def mesh_of(device: jax.Device) -> Mesh:
    """Returns the mesh of a single device."""
    return make_mesh([device])


def own(mesh: Mesh) -> list[jax.Device]:
    """Returns the devices of the mesh that belong to this process."""
    return [device for device in mesh.devices.flat if device.process_index == jax.process_index()]


def home(mesh: Mesh) -> jax.Device:
    """Returns the first device of this process in the mesh."""
    return min(own(mesh), key=lambda device: device.id)


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Raises UserError if a global batch of `batch_size` sequences cannot be split evenly over the mesh."""
    if batch_size % mesh.size:
        below = batch_size // mesh.size * mesh.size
        sizes = " or ".join(str(size) for size in (below, below + mesh.size) if size)
        counts = _near(mesh.size, (n for n in range(1, mesh.size) if batch_size % n == 0))
        raise UserError(
            f"replay.batch_size {batch_size} cannot be split evenly over {mesh.size} devices; give a batch of {sizes}, "
            f"or devices.count {counts}"
        )


def _of_host(host: int) -> list[jax.Device]:
    return [device for device in jax.devices() if device.process_index == host]


def _near(given: int, choices: Iterable[int]) -> str:
    """Returns the nearest choices below and above `given` as text for an error, such as "2 or 8"."""
    choices = list(choices)
    below, above = [n for n in choices if n < given], [n for n in choices if n > given]
    return " or ".join(map(str, [*sorted(below)[-1:], *sorted(above)[:1]]))
