"""Small environments, each of which tests one part of an agent: `make("counter")`.

An episode terminates after a few steps, so that every value is small and known. In an episode of one step, the value of
the first row is the reward itself.
"""

from __future__ import annotations

import copy
import difflib
from typing import Any, NamedTuple

import gymnasium
import numpy as np


class Probe(NamedTuple):
    """What a probe tests. The returns are those of an episode of default length.

    description: the task | broken: the part of the agent that is broken when the probe fails
    random_return: the return of uniform actions | best_return: the return of the best policy
    solved_return: an agent with at least this mean return has solved the probe
    If the three returns are equal, actions do not matter, and the description states what the agent must predict.
    """

    description: str
    broken: str
    random_return: float
    best_return: float
    solved_return: float


class ProbeEnv(gymnasium.Env):
    """Base class of the probes. `cue` is a random -1 or 1, which a probe may show.

    Episodes terminate after `steps` steps; None: the probe's `default_steps`.
    """

    metadata = {"render_modes": []}
    observation_space: gymnasium.Space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space: gymnasium.Space = gymnasium.spaces.Discrete(2)
    default_steps = 8

    def __init__(self, steps: int | None = None):
        self.steps = self.default_steps if steps is None else steps
        if self.steps < 1:
            raise ValueError(f"a probe needs at least one step, not {steps}")
        self.time = 0
        self.cue = 1

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begins an episode."""
        super().reset(seed=seed)
        self.time = 0
        self.draw()
        return self.observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Takes one action."""
        reward = float(self.reward(action))
        self.time += 1
        self.draw()
        return self.observe(), reward, self.time >= self.steps, False, {}

    def get_state(self) -> dict[str, Any]:
        """Returns everything that the next steps depend on."""
        values = {name: value for name, value in vars(self).items() if not isinstance(value, gymnasium.Space)}
        return copy.deepcopy(values)

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state that `get_state` returned."""
        vars(self).update(copy.deepcopy(state))

    def draw(self) -> None:
        """Draws a new cue. `reset` and every `step` call this method; some probes override it to keep the cue."""
        self.cue = int(self.np_random.integers(2)) * 2 - 1

    def observe(self) -> np.ndarray:
        """Returns the observation. It is always 0 if the probe does not override this method."""
        return np.zeros(1, np.float32)

    def reward(self, action: Any) -> float:
        """Returns the reward of `action` in the current step."""
        raise NotImplementedError

    def best(self) -> Any:
        """Returns the action of the best policy in the current step."""
        return 0


class Constant(ProbeEnv):
    """The reward is always 1. An agent that fails here has a broken reward head, critic or optimizer."""

    default_steps = 1

    def reward(self, action: Any) -> float:
        return 1.0


class Observation(ProbeEnv):
    """The reward is the cue, which is always visible.

    An agent that fails here has a broken encoder or posterior, or its critic has a wrong input.
    """

    default_steps = 1

    def draw(self) -> None:
        if self.time == 0:
            super().draw()

    def observe(self) -> np.ndarray:
        return np.full(1, self.cue, np.float32)

    def reward(self, action: Any) -> float:
        return self.cue


class Delayed(ProbeEnv):
    """The first row shows a cue. The first action is rewarded if it matches the cue, but only at the episode's end.

    An agent that fails here has a broken recurrent state, lambda-returns or continue weights.
    """

    default_steps = 4

    def __init__(self, steps: int | None = None):
        super().__init__(steps)
        self.right = False

    def observe(self) -> np.ndarray:
        return np.full(1, self.cue if self.time == 0 else 0, np.float32)

    def reward(self, action: Any) -> float:
        if self.time == 0:
            self.right = action == self.best()
        return float(self.right and self.time == self.steps - 1)

    def best(self) -> int:
        return int(self.cue > 0)


class Action(ProbeEnv):
    """Action 1 gives reward 1, action 0 gives none.

    If an agent fails here, the actor's loss or advantages are broken, or actions do not reach the environment.
    """

    def reward(self, action: Any) -> float:
        return float(action == 1)

    def best(self) -> int:
        return 1


class ActionContinuous(ProbeEnv):
    """The reward is 1 - |action - 1| / 2 for actions from -2 to 2.

    If an agent fails here, the continuous actor or the scaling of actions is broken.
    """

    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reward(self, action: Any) -> float:
        return 1.0 - abs(float(action[0]) - 1.0) / 2

    def best(self) -> np.ndarray:
        return np.ones(1, np.float32)


class Both(ProbeEnv):
    """The action that the cue shows has reward 1.

    The actor of an agent that fails here does not see the row to which its action belongs.
    """

    def observe(self) -> np.ndarray:
        return np.full(1, self.cue, np.float32)

    def reward(self, action: Any) -> float:
        return float(action == self.best())

    def best(self) -> int:
        return int(self.cue > 0)


class Counter(ProbeEnv):
    """The reward of a row is the index, 0 to 3, of the action chosen in the row before.

    Observations show nothing, so only the previous action predicts the reward. An agent that fails here stores or
    receives actions one row too early or too late.
    """

    action_space = gymnasium.spaces.Discrete(4)

    def reward(self, action: Any) -> float:
        return float(action)

    def best(self) -> int:
        return 3


class Pixel(Both):
    """A bright square on the left or right shows the rewarded action. side: a multiple of 8.

    The image is uint8 [side, side, 3]. An agent that fails here has a broken image encoder or decoder.
    """

    def __init__(self, steps: int | None = None, side: int = 64):
        super().__init__(steps)
        if side < 8 or side % 8:
            raise ValueError(f"the side of the image must be a multiple of 8, not {side}")
        self.observation_space = gymnasium.spaces.Box(0, 255, (side, side, 3), np.uint8)

    def observe(self) -> np.ndarray:
        image = np.zeros(self.observation_space.shape or (), np.uint8)
        eighth = len(image) // 8
        left = eighth * (5 if self.cue > 0 else 1)
        image[3 * eighth : 5 * eighth, left : left + 2 * eighth] = 255
        return image


ENVS: dict[str, type[ProbeEnv]] = {
    "constant": Constant,
    "observation": Observation,
    "delayed": Delayed,
    "action": Action,
    "action_continuous": ActionContinuous,
    "both": Both,
    "counter": Counter,
    "pixel": Pixel,
}

PROBES: dict[str, Probe] = {
    "constant": Probe(
        "reward 1 at the only step: the reward head must predict 1 at the last row, the critic 1 at the first",
        "the reward head, the critic or the optimizer", 1.0, 1.0, 1.0,
    ),
    "observation": Probe(
        "the reward is the observed number, -1 or 1: the critic must predict that number at the first row",
        "the encoder, the posterior, or the critic's input", 0.0, 0.0, 0.0,
    ),
    "delayed": Probe(
        "the first cue names the first action that is rewarded, three steps later",
        "the recurrent state, the lambda-returns, or the continue weights", 0.5, 1.0, 0.95,
    ),
    "action": Probe(
        "action 1 is rewarded",
        "the actor's loss, its advantages, or how actions reach the environment", 4.0, 8.0, 7.5,
    ),
    "action_continuous": Probe(
        "action 1, of -2 to 2, has the highest reward",
        "the continuous actor, or the scaling of actions to the environment's bounds", 3.0, 8.0, 7.0,
    ),
    "both": Probe(
        "the action named by the cue is rewarded",
        "the actor does not see the row that it acts on", 4.0, 8.0, 7.5,
    ),
    "counter": Probe(
        "the reward is the previous action: the reward head must predict it even while actions are random",
        "the time alignment: an action is stored or fed one row off", 12.0, 24.0, 22.5,
    ),
    "pixel": Probe(
        "a square at the left or right names the rewarded action",
        "the image encoder or decoder", 4.0, 8.0, 7.5,
    ),
}  # fmt: skip


def make(task: str, steps: int | None = None, side: int | None = None) -> gymnasium.Env:
    """Makes the probe called `task`. Raises ValueError for an unknown task or a wrong argument.

    steps: the episode length; None: that of the probe | side: the side of the image of "pixel"; None: 64
    """
    if task not in ENVS:
        close = difflib.get_close_matches(task, ENVS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"choices: {', '.join(ENVS)}"
        raise ValueError(f"there is no probe {task!r}; {hint}")
    if side is None:
        return ENVS[task](steps)
    if task != "pixel":
        raise ValueError(f"only the probe 'pixel' shows an image, so {task!r} takes no side")
    return Pixel(steps, side)
