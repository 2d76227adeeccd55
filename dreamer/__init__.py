"""DreamerV3 in JAX: agents that learn behaviors in the dreams of a world model.

    dreamer.train(dreamer.load_config("experiments/quickstart.yaml"))
    agent = dreamer.load("runs/...")

Each public name is imported when it is first used, so that a process that only runs environments never imports jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamer.apps.evaluate import evaluate
    from dreamer.apps.load import load
    from dreamer.config import Config
    from dreamer.config import load as load_config
    from dreamer.runtime.train import train

__version__ = "0.1.0"
__all__ = ["Config", "__version__", "evaluate", "load", "load_config", "train"]

_HOMES = {
    "Config": ("dreamer.config", "Config"),
    "load_config": ("dreamer.config", "load"),
    "train": ("dreamer.runtime.train", "train"),
    "evaluate": ("dreamer.apps.evaluate", "evaluate"),
    "load": ("dreamer.apps.load", "load"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dreamer' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
