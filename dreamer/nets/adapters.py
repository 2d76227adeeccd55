"""Converts a network from Flax or Haiku to a `Network(init, apply)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from dreamer.errors import UserError
from dreamer.interfaces import Network


def from_flax(module: nn.Module) -> Network:
    """Returns the Network of a Flax Linen module. The module may have parameters, but no other variables."""

    def init(key: Any, *inputs: Any) -> Any:
        return module.init(key, *inputs).get("params", {})

    def apply(params: Any, *inputs: Any) -> Any:
        return module.apply({"params": params}, *inputs)

    return Network(init, apply)


def from_haiku(function: Callable[..., Any]) -> Network:
    """Returns the Network of a function that uses Haiku modules, but no state and no random numbers.

    Raises UserError when Haiku is not installed.
    """
    try:
        import haiku as hk
    except ImportError as error:
        raise UserError(f"a Haiku network needs the package dm-haiku: {error}") from error
    transformed: Any = hk.without_apply_rng(hk.transform(function))
    return Network(transformed.init, transformed.apply)
