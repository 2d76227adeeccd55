"""Small tasks with images, vectors and continuous actions: `make("line")` or `make("square")`. Needs only numpy.

The image shows the target, and the vector holds the position of the hand. The agent needs both.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from ._suite import find_task

AXES = {"line": 1, "square": 2}
STEPS = 25
SIDE, DOT = 32, 5  # pixels
REACH = 0.3  # the longest move of the hand in a step; the square is 2 wide


class Reach(gymnasium.Env):
    """The hand must move to the target and stay there, on a line or in a square.

    axes: their number A, 1 for the line or 2 for the square
    Observation: "picture" uint8 [32, 32, 1], a bright dot at the target | "hand" float32 [A], a position in -1 to 1.
    Action: velocity [A] in -1 to 1. Reward: exp(-4 d) at distance d between hand and target. Episodes are truncated
    after 25 steps.
    Mean returns on the line: 5.8 for random velocities, 7.1 for a hand that moves to the middle, 23.9 for a hand that
    moves straight to the target. In the square, these returns are 1.6, 2.1 and 23.1.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, axes: int, render_mode: str | None = None):
        self.axes, self.render_mode = axes, render_mode
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (axes,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "picture": gymnasium.spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8),
                "hand": gymnasium.spaces.Box(-1.0, 1.0, (axes,), np.float32),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, np.ndarray], dict]:
        """Draws a new target and a new position of the hand."""
        super().reset(seed=seed)
        self.hand, self.target = self.np_random.uniform(-1, 1, (2, self.axes))
        self.time = 0
        return self._show(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        """Moves the hand by 0.3 times the action."""
        self.hand = np.clip(self.hand + REACH * np.clip(np.asarray(action, np.float64), -1, 1), -1, 1)
        self.time += 1
        reward = float(np.exp(-4 * np.linalg.norm(self.hand - self.target)))
        return self._show(), reward, False, self.time >= STEPS, {}

    def render(self) -> np.ndarray:
        """Returns an image uint8 [96, 96, 3] with a white target and a red hand."""
        frame = np.repeat(self._dot(self.target), 3, -1)
        hand = self._dot(self.hand)[..., 0] > 0
        frame[hand] = (255, 60, 60)
        return frame.repeat(3, 0).repeat(3, 1)

    def get_state(self) -> Any:
        """Returns everything that the next steps depend on."""
        return self.hand.copy(), self.target.copy(), self.time, self.np_random.bit_generator.state

    def set_state(self, state: Any) -> None:
        """Continues from a state that `get_state` returned."""
        self.hand, self.target, self.time = state[0].copy(), state[1].copy(), state[2]
        self.np_random.bit_generator.state = state[3]

    def _show(self) -> dict[str, np.ndarray]:
        return {"picture": self._dot(self.target), "hand": self.hand.astype(np.float32)}

    def _dot(self, place: np.ndarray) -> np.ndarray:
        picture = np.zeros((SIDE, SIDE, 1), np.uint8)
        left, top = np.round((np.resize([*place, 0.0], 2) + 1) / 2 * (SIDE - DOT)).astype(int)
        picture[top : top + DOT, left : left + DOT] = 255
        return picture


def make(task: str, render_mode: str | None = None) -> gymnasium.Env:
    """Makes one task. Raises ValueError for an unknown name."""
    return Reach(AXES[find_task("reach", task, list(AXES))], render_mode)
