"""Gymnasium's MuJoCo tasks, which this suite can also render without a screen: `make("HalfCheetah-v5")`."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium

from ._mujoco import choose_graphics
from ._suite import check_choice, extra, find_task

COUNTERS = ("_elapsed_steps", "_has_reset")  # of gymnasium's wrappers


def make(task: str, render_mode: str | None = None, **options: Any) -> gymnasium.Env:
    """Makes one task. "HalfCheetah" means its newest version. Options go to gymnasium.make.

    Raises ValueError and ImportError.
    """
    check_choice("mujoco", "render_mode", render_mode, (None, "rgb_array"))
    if render_mode:
        choose_graphics("mujoco")
    with extra("mujoco"):
        import mujoco
    known: dict[str, str] = {}
    for name, spec in sorted(gymnasium.registry.items()):
        if str(spec.entry_point).startswith("gymnasium.envs.mujoco.") and spec.version in (4, 5):
            known |= {name: name, spec.name: name}
    size: dict[str, Any] = {"width": 320, "height": 240} if render_mode else {}
    name = known[find_task("mujoco", task, known)]
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None)  # gymnasium's own models use deprecated features
    try:
        return MuJoCo(gymnasium.make(name, render_mode=render_mode, disable_env_checker=True, **size, **options))
    finally:
        mujoco.set_mju_user_warning(before)


class MuJoCo(gymnasium.Wrapper):
    """A task that a resumed run can continue. Its state is the simulator's data; the model never changes."""

    def get_state(self) -> dict[str, Any]:
        """Returns everything that the next steps depend on."""
        inner: Any = self.unwrapped
        counters = [{key: vars(layer)[key] for key in COUNTERS if key in vars(layer)} for layer in self._layers()]
        # Copies all data, including contacts and derived values, so that nothing is recomputed and rounded.
        return {"data": copy.copy(inner.data), "random": inner.np_random.bit_generator.state, "counters": counters}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state that `get_state` returned."""
        import mujoco

        inner: Any = self.unwrapped
        mujoco.mj_copyData(inner.data, inner.model, state["data"])
        inner.np_random.bit_generator.state = state["random"]
        for layer, values in zip(self._layers(), state["counters"], strict=True):
            vars(layer).update(values)

    def _layers(self) -> list[gymnasium.Env]:
        layers: list[gymnasium.Env] = [self.env]
        while isinstance(layers[-1], gymnasium.Wrapper):
            layers.append(layers[-1].env)
        return layers[:-1]
