"""Turns errors of a device that is out of memory or lost into errors that name the fields to change."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from dreamer.errors import UserError
from dreamer.runtime.devices.memory import free_memory

FULL = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "Ran out of memory")
GONE = ("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "ABORTED", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION")


@contextlib.contextmanager
def as_user_errors(
    doing: str, *, sizes: Mapping[str, int], fsdp: int, state: Any, program: Any, devices: Sequence[Any]
) -> Iterator[None]:
    """A context manager that turns errors of a device that is out of memory or lost into a UserError.

    Other errors pass through. The arguments are only used in the text of the UserError.
    doing: what the caller does in this context, such as "compiling the update"
    sizes: the config fields on which the memory of an update depends, with their values
    fsdp: the config field devices.fsdp | state: the train state
    program: the compiled update, or None | devices: the devices that learn
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        reason = (text.strip().splitlines() or [type(error).__name__])[0][:300]
        if full(error):
            numbers = ", ".join(memory(state, program, devices))
            fields = ", ".join(f"{name} ({value:,})" for name, value in sizes.items())
            raise UserError(
                f"no device memory left for {doing} ({numbers}): lower {fields} or the sizes of agent.world_model "
                f"(a smaller experiments/size*.yaml), raise devices.fsdp ({fsdp}), or leave replay.on_device off; the "
                f"device reported: {reason}"
            ) from error
        if text.startswith(GONE):
            raise UserError(
                f"a device failed or is gone while {doing}; everything saved before is kept. Continue with --resume, "
                f"and with a lower devices.count if the device stays lost; it reported: {reason}"
            ) from error
        raise


def check_fits(program: Any, devices: Sequence[Any]) -> None:
    """Raises JaxRuntimeError, as a device does, if the temporary arrays of a program are larger than its free memory.

    A CPU would grant the memory, and the system would kill the process later. program: compiled
    """
    analysis = program.memory_analysis()
    needed, free = analysis.temp_size_in_bytes if analysis else 0, min(map(free_memory, devices))
    if needed > free:
        raise jax.errors.JaxRuntimeError(f"{FULL[0]}: the program needs {_gb(needed)}, and {_gb(free)} are free")


def full(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether `error` reports that a device has no memory left."""
    return any(word in str(error) for word in FULL)


def memory(state: Any, program: Any, devices: Sequence[Any]) -> list[str]:
    """Returns phrases about the memory of a device: what the state and the update take, and what the device has.

    state: the train state | program: the compiled update, or None | devices: the first one is asked for its memory
    Sizes that are unknown are left out.
    """
    facts = [f"the train state takes {_gb(state_bytes(state))}"]
    analysis = getattr(program, "memory_analysis", lambda: None)()
    if analysis is not None:
        facts.append(f"the update {_gb(analysis.temp_size_in_bytes)} in addition")
    limit = (devices[0].memory_stats() or {}).get("bytes_limit") if devices else None
    if limit:
        facts.append(f"the device has {_gb(limit)}")
    return facts


def state_bytes(state: Any) -> int:
    """Returns the number of bytes that a state takes on each device, even if the state was donated."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if hasattr(leaf, "sharding")]
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)


def lost(state: Any) -> bool:
    """Whether a state can no longer be read, because it was donated to an update that failed. Waits for its arrays."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    if any(leaf.is_deleted() for leaf in leaves):
        return True
    try:
        jax.block_until_ready(leaves)
    except jax.errors.JaxRuntimeError:
        return True
    return False


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
