"""The members of a population, spread over several devices. Each device trains its own members by itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dreamer.interfaces import Array
from dreamer.runtime.fused import population
from dreamer.runtime.fused.loop import Loop
from dreamer.runtime.fused.ring import Ring

AXIS = "members"
SPLIT, SHARED = PartitionSpec(AXIS), PartitionSpec()


class Spread(NamedTuple):
    """Which device trains which members.

    devices: the devices that train | each: the number of places on each device. Member m is on device m // each. Places
    after the last member hold copies of it, which also train, and nothing reads them.
    """

    devices: Sequence[jax.Device]
    each: int

    def device_of(self, member: int) -> jax.Device:
        """Returns the device of a member."""
        return self.devices[member // self.each]


class Programs(NamedTuple):
    """The programs of a population, jitted, not compiled. Donated arguments are marked with *.

    run(*loop, turns []) -> loop, report: see `population.make_population`
    newest(ring, rows) -> {name: [P, S, rows, ..]} | inherit(*loop, number [], parent [], hyper) -> loop: see there
    """

    run: Any
    newest: Any
    inherit: Callable[..., Loop]


def spread(members: int, devices: Sequence[jax.Device]) -> Spread:
    """Spreads members evenly: over the fewest devices on which none has more members than over all of `devices`."""
    each = -(-max(members, 1) // len(devices))
    return Spread(tuple(devices[: -(-max(members, 1) // each)]), each)


def join(where: Spread, loops: Sequence[Loop]) -> Loop:
    """Joins the Loops of all devices, each with the places of one device, without a copy. The counters must be equal.

    loops: with leaves [each, ..] on their devices. Returns leaves [P, ..] that are split over the devices.
    """
    if len(loops) == 1:
        return loops[0]
    mesh, count = _mesh(where), len(loops)

    def joined(axis: int | None, *parts: Any) -> Any:
        place = NamedSharding(mesh, SHARED if axis is None else SPLIT)

        def one(*leaves: Array) -> Array:
            shape = leaves[0].shape if axis is None else (count * leaves[0].shape[0], *leaves[0].shape[1:])
            return jax.make_array_from_single_device_arrays(shape, place, [*leaves])

        return jax.tree.map(one, *parts)

    return jax.tree.map(joined, population.AXES, *loops, is_leaf=lambda x: x is None)


def programs(where: Spread, run: Callable[[Loop, Array], Any]) -> Programs:
    """Returns the programs for a Loop from `join`. run: from `make_population`, for the places of one device."""
    if len(where.devices) == 1:
        inherit = jax.jit(population.inherit, donate_argnums=0)
        return Programs(jax.jit(run, donate_argnums=0), jax.jit(population.newest, static_argnums=1), inherit)
    mesh, axes = _mesh(where), _specs(population.AXES)
    on_each = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    spread_run = on_each(run, in_specs=(axes, SHARED), out_specs=(axes, SPLIT))

    def newest(ring: Ring, rows: int) -> Any:
        part = functools.partial(population.newest, rows=rows)
        return on_each(part, in_specs=(axes.ring,), out_specs=SPLIT)(ring)

    inherit = jax.jit(
        on_each(_inherit, in_specs=(axes, SHARED, SHARED, SHARED), out_specs=axes), donate_argnums=0
    )

    def inherit_on_mesh(loop: Loop, number: Array, parent: Array, hyper: Any) -> Loop:
        return inherit(loop, number, parent, jax.device_put(hyper, NamedSharding(mesh, SHARED)))

    return Programs(jax.jit(spread_run, donate_argnums=0), jax.jit(newest, static_argnums=1), inherit_on_mesh)


def _inherit(loop: Loop, number: Array, parent: Array, hyper: Any) -> Loop:
    """Does what `population.inherit` does, for the places of one device. Only the parent's state is sent."""
    places = jax.tree.leaves(loop.train)[0].shape[0]
    first = jax.lax.axis_index(AXIS) * places
    learned = {name: getattr(loop.train, name) for name in population.LEARNED}
    from_parent = jax.tree.map(functools.partial(_from, parent - first), learned)
    here = (first <= number) & (number < first + places)
    return population.with_learned(loop, jnp.where(here, number - first, places), from_parent, hyper)


def _from(place: Array, x: Array) -> Array:
    """Returns x[place] of the device that has this place, on every device and to the last bit."""
    one = x.at[jnp.clip(place, 0, x.shape[0] - 1)].get()
    # As integers, because a sum of floating-point numbers would turn -0 into 0.
    bits = one.astype(jnp.uint8) if one.dtype == bool else one
    form = bits.dtype
    bits = jax.lax.bitcast_convert_type(bits, f"uint{8 * form.itemsize}")
    bits = jax.lax.psum(jnp.where((place >= 0) & (place < x.shape[0]), bits, jnp.zeros_like(bits)), AXIS)
    return jax.lax.bitcast_convert_type(bits, form).astype(one.dtype)


def _mesh(where: Spread) -> Mesh:
    return Mesh(np.array(where.devices), (AXIS,))


def _specs(axes: Any) -> Any:
    return jax.tree.map(lambda axis: SHARED if axis is None else SPLIT, axes, is_leaf=lambda x: x is None)
