"""The only place where time comes to the front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def scan_time(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan` over axis 1 of batch-major inputs [B, T, ..]; outputs [B, T, ..], too."""
    carry, outputs = jax.lax.scan(step, carry, _swap_time(inputs))
    return carry, _swap_time(outputs)


def _swap_time(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)
