"""Atari 2600 games. Named here so that its preset can be read; the adapter is not there yet."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium


def make(task: str, **options: Any) -> gymnasium.Env:
    """Raises ImportError or ValueError: this suite cannot be made yet."""
    try:
        importlib.import_module("ale_py")
    except ModuleNotFoundError as error:
        advice = 'pip install ".[atari]" in the checkout'
        raise ImportError(f"atari needs the package {error.name!r}: {advice}") from error
    raise ValueError(f"the atari suite is not there yet, so {task!r} cannot be made")
