"""Atari 2600 games of the Arcade Learning Environment: `make("breakout")`. One step is one frame.

The defaults are the protocol of 200M frames (Machado et al. 2018): actions are sticky, all 18 actions are available,
and lives are ignored. Images are made as in DreamerV3's reference code. To hold each action for four frames, use
`--action-repeat 4`, as the presets do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from ._suite import check_choice, extra, find_task

ACTIONS = ("all", "minimal")
GRAY = (0.299, 0.587, 1 - (0.299 + 0.587))  # the reference's weights of red, green and blue


def make(
    task: str,
    size: Sequence[int] = (96, 96),
    gray: bool = True,
    sticky: float = 0.25,
    actions: str = "all",
    noops: int = 30,
    limit: int = 108_000,
    limit_is_terminal: bool = False,
    render_mode: str | None = None,
) -> gymnasium.Env:
    """Makes one game. The agent observes an image uint8 [height, width, 1 if `gray` else 3].

    size: [height, width]. sticky: the probability that a frame repeats the last action.
    actions: "all" 18 actions, or "minimal": only the actions that the game uses.
    noops: the largest number of frames without action before an episode begins; the number is random.
    limit: the number of frames after which an episode is truncated. limit_is_terminal: whether it is terminated
    instead, as in DreamerV3's reference code. Raises ValueError and ImportError.
    """
    with extra("atari"):
        import ale_py
    from ale_py import roms

    name = find_task("atari", task, roms.get_all_rom_ids())
    rom = roms.get_rom_path(name)
    if rom is None:
        raise ValueError(f"atari: ale-py lists the game {name!r} but has no ROM of it: reinstall ale-py")
    check_choice("atari", "actions", actions, ACTIONS)
    check_choice("atari", "render_mode", render_mode, (None, "rgb_array"))
    if not 0 <= sticky < 1:
        raise ValueError(f"atari: sticky is a probability below 1, not {sticky}")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", sticky)
    ale.loadROM(rom)
    legal = ale.getLegalActionSet() if actions == "all" else ale.getMinimalActionSet()
    shape = (int(size[0]), int(size[1]))
    return Atari(ale, rom, legal, shape, gray, noops, limit, limit_is_terminal, render_mode)


class Atari(gymnasium.Env):
    """One emulator as a gymnasium environment. The observation is the pixelwise maximum of the last two frames."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}

    def __init__(
        self, ale: Any, rom: Any, actions: Sequence, size: tuple[int, int], gray: bool, noops: int, limit: int,
        limit_is_terminal: bool, render_mode: str | None,
    ):  # fmt: skip
        self.render_mode = render_mode
        self._ale, self._rom, self._actions = ale, rom, actions
        self._size, self._gray, self._noops = size, gray, noops
        self._limit, self._limit_is_terminal = limit, limit_is_terminal
        self._seeded = False
        self._frame = 0
        self._frames = [ale.getScreenRGB()] * 2
        self.observation_space = gymnasium.spaces.Box(0, 255, (*size, 1 if gray else 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(actions))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begins an episode. A seed also restarts the emulator. The first observation is made of a single frame."""
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self._ale.setInt("random_seed", int(self.np_random.integers(2**31)))
            self._ale.loadROM(self._rom)
            self._seeded = True
        self._ale.reset_game()
        for _ in range(self.np_random.integers(self._noops + 1)):
            self._ale.act(0)
            if self._ale.game_over():
                self._ale.reset_game()
        self._frame = 0
        self._frames = [self._ale.getScreenRGB()] * 2
        return self._observed(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Advances by one frame. The end of the game or the limit ends an episode; the loss of a life does not."""
        reward = self._ale.act(self._actions[int(action)])
        self._frame += 1
        self._frames = [self._frames[1], self._ale.getScreenRGB()]
        cut = self._frame >= self._limit
        over = self._ale.game_over() or (cut and self._limit_is_terminal)
        return self._observed(), float(reward), bool(over), bool(cut and not over), {}

    def render(self) -> np.ndarray:
        """Returns the current frame of the game, uint8 [210, 160, 3] in most games."""
        return self._frames[1]

    def get_state(self) -> dict[str, Any]:
        """Returns everything that the next frames depend on."""
        random = self.np_random.bit_generator.state
        emulator = self._ale.cloneState(include_rng=True)
        return {"emulator": emulator, "random": random, "frame": self._frame, "frames": self._frames}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state that `get_state` returned."""
        self._ale.restoreState(state["emulator"])
        self.np_random.bit_generator.state = state["random"]
        self._frame, self._frames, self._seeded = state["frame"], state["frames"], True

    def _observed(self) -> np.ndarray:
        height, width = self._size
        bright = Image.fromarray(np.maximum(*self._frames))
        image = np.asarray(bright.resize((width, height), Image.Resampling.BILINEAR))
        if not self._gray:
            return image
        red, green, blue = (image[:, :, i] * weight for i, weight in enumerate(GRAY))
        return (red + green + blue).astype(np.uint8)[:, :, None]
