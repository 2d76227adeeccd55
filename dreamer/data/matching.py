"""Compares the spaces of a dataset with those of an environment or a run: `check_spec`. Imports no jax."""

from __future__ import annotations

from typing import Any

from dreamer.data.episodes import Data
from dreamer.errors import UserError
from dreamer.spaces import Space, Spec


def check_spec(data: Data, spec: Spec, whose: str) -> None:
    """Raises UserError with every observation and action in which a dataset differs from `spec`.

    whose: what has `spec`, in the words of the error, such as "env 'CartPole-v1'" or "the run runs/mine".
    """
    differing = [
        f"observation {key!r} is {_text(data.spec.obs.get(key))}, there {_text(spec.obs.get(key))}"
        for key in sorted({*data.spec.obs, *spec.obs})
        if data.spec.obs.get(key) != spec.obs.get(key)
    ]
    if data.spec.action != spec.action:
        differing.append(f"the action is {data.spec.action.text}, there {spec.action.text}")
    if differing:
        raise UserError(f"{data.path} does not fit {whose}: {'; '.join(differing)}")


def _text(space: Space | None) -> str:
    if space is None:
        return "missing"
    more: list[Any] = [f"{space.classes} classes"] if space.classes else []
    more += [f"from {space.bounds[0]:g} to {space.bounds[1]:g}"] if space.bounds else []
    return ", ".join([f"{space.dtype} {list(space.shape)}", *more])
