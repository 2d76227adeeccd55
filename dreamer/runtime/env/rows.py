"""Turns one gymnasium environment into the rows that `dreamer/steps.py` describes. Imports no jax.

Every row is checked against its space. An error names the environment and the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.env import state as env_state
from dreamer.runtime.env.adapter import EnvAdapter, adapt, checked_reset, described, mask_in
from dreamer.runtime.env.observations import LARGEST, find, inside, read
from dreamer.runtime.env.own_numbers import Tally, check_keys
from dreamer.spaces import MASK, Spec
from dreamer.steps import Step

NUMBERS, FLAGS = {float, int, np.float64, np.float32}, {bool, np.bool_}


def empty_step(spec: Spec, envs: int) -> Step:
    """Returns a Step [envs, ..] to write into; actions, rewards and flags are zero."""
    obs = {key: np.zeros((envs, *space.shape), space.dtype) for key, space in spec.obs.items()}
    flags = np.zeros((3, envs), bool)
    return Step(obs, np.zeros((envs, spec.action_width), np.float32), np.zeros(envs, np.float32), *flags)


class EnvRows:
    """Owns one environment and makes one row at each step.

    seed: the seed of the first reset | name: the environment's name in messages; "": the name of its class
    action_repeat: the number of steps that use the same action; their row has the sum of their rewards
    known: the EnvAdapter of the environment, if the caller already has it
    The constructor may reset the environment to see whether its info has an action mask. Raises UserError if the
    environment violates its own spaces.
    """

    def __init__(
        self, env: gymnasium.Env, *, name: str = "", seed: int | None = None, action_repeat: int = 1,
        known: EnvAdapter | None = None,
    ):  # fmt: skip
        if action_repeat < 1:
            raise UserError(f"action_repeat is {action_repeat}; it must be 1 or more")
        self.env = env
        self.name = name or type(env).__name__
        self.readers, actions, self.spec, self._masks, self._fresh = known or adapt(env, self.name, seed)
        self._to_env, self._start = actions.to_env, actions.start
        self._seed = seed
        check_keys(env.observation_space, self.name)
        self._tally = Tally(env.observation_space)
        whole = all(reader.plain for reader in self.readers) and self._masks is None
        self.plain = whole and not self._tally.keys
        self._repeat = action_repeat
        self._over = True
        self._episode = 0
        self._step = 0

    def write(self, action: np.ndarray, out: Step, index: int) -> None:
        """Steps the environment with `action` [A] and writes the answer into row `index` of `out` [E, ..].

        Leaves the action in `out` unchanged. The first call, and each call after a row with is_last set, ignores the
        action and resets the environment.
        """
        self.accept(self.ask(self._to_env(action)), out, index)

    def turn(self, out: Step, index: int) -> None:
        """Like `write`, but takes the action from row `index` of `out` [E, ..]."""
        self.write(out.action[index], out, index)

    def natives(self, actions: np.ndarray) -> list[Any]:
        """Converts actions [R, A] to R arguments of `ask`, valid for all environments with the same spaces."""
        if self._start is not None:
            return list(actions.argmax(1) + self._start)
        return [self._to_env(action) for action in actions]

    def ask(self, native: Any) -> Any:
        """Steps the environment with `native`, an action from `natives`, and returns the raw result.

        In the first call and after the end of an episode, it resets the environment instead. Rewards are summed over
        action repeats. Pass the result to `accept` or `write_together`, which check it; `ask` itself checks it only if
        actions are repeated.
        """
        if self._over:
            return self._reset()
        self._step += 1
        answer = self.env.step(native)
        if self._repeat == 1:
            return answer
        total = 0.0
        for left in reversed(range(self._repeat)):
            obs, reward, terminal, truncated, info = self._parts(answer)
            total += reward
            if terminal or truncated or not left:
                break
            self._step += 1
            answer = self.env.step(native)
        return obs, total, terminal, truncated, info

    def accept(self, answer: Any, out: Step, index: int) -> None:
        """Checks `answer`, a result of `ask`, and writes it into row `index` of `out` [E, ..], without the action."""
        obs, reward, terminal, truncated, info = self._parts(answer)
        self._write_obs(obs, info, out, index)
        if self._tally.keys:
            self._tally.add(obs)
        if terminal or truncated:
            self.end(info)
        out.reward[index], out.is_first[index] = reward, not self._step
        out.is_last[index], out.is_terminal[index] = self._over, terminal

    def end(self, info: Any) -> None:
        """Ends the episode at the last written row. info: the info of that row."""
        self._over = True
        self._tally.end(info)

    def finished(self) -> dict[int, dict[str, float]]:
        """Returns {0: the environment's own metrics} if an episode ends in the last written row, and {} if not."""
        return {0: self._tally.finished} if self._tally.finished else {}

    def forget_finished(self) -> None:
        """Clears the environment's own metrics of the last episode, so that `finished` returns {}."""
        self._tally.finished = {}

    def step(self, action: np.ndarray) -> Step:
        """Like `write`, but returns a new Step [1, ..]."""
        out = empty_step(self.spec, 1)
        self.write(action, out, 0)
        return out

    def render(self) -> np.ndarray | None:
        """Returns an image uint8 [H, W, 3], or None if the environment was not made to render."""
        return drawn(self.env)

    def get_state(self) -> bytes | str:
        """Returns the environment's state after the last written row, or the reason (str) why it cannot be saved."""
        return env_state.get_state(self.env, self.position())

    def set_state(self, state: bytes) -> str:
        """Restores a state. Returns "" on success, else the reason; after a failure do not use the environment."""
        try:
            self.load_position(env_state.set_state(self.env, state))
        except Exception as error:
            return f"it refused its saved state, {type(error).__name__}: {error}"
        return ""

    def position(self) -> tuple[bool, int, int, int | None, Any]:
        """Returns what to save besides the environment's state: counters, seed, and metrics of the current episode."""
        return self._over, self._episode, self._step, self._seed, self._tally.state()

    def load_position(self, position: tuple[bool, int, int, int | None, Any]) -> None:
        """Restores what `position` returned. Raises ValueError, TypeError or KeyError for any other value."""
        over, episode, step, seed, numbers = position
        if type(over) is not bool or not all(type(number) is int for number in (episode, step, seed or 0)):
            raise ValueError("the position in its episodes is missing")
        self._tally.load(numbers)
        self._over, self._episode, self._step, self._seed = over, episode, step, seed
        self._fresh = None

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()

    def _reset(self) -> tuple[Any, float, bool, bool, dict]:
        self._episode += 1
        self._step = 0
        self._tally.begin()
        seed, self._seed = self._seed, None
        answer, self._fresh = self._fresh, None
        if answer is None:
            answer = checked_reset(self.env, seed, self.name)
        self._over = False
        return answer[0], 0.0, False, False, answer[1]

    def _parts(self, answer: Any) -> tuple[Any, float, bool, bool, Any]:
        if not (isinstance(answer, tuple) and len(answer) == 5):
            raise self._error(
                f"step() must return (obs, reward, terminated, truncated, info), it returned {described(answer)}"
            )
        obs, reward, terminated, truncated, info = answer
        number = self._number(reward)
        return obs, number, self._flag(terminated, "terminated"), self._flag(truncated, "truncated"), info

    def _write_obs(self, obs: Any, info: Any, out: Step, index: int) -> None:
        try:
            for reader in self.readers:
                out.obs[reader.key][index] = read(reader, find(reader, obs))
            if self._masks is not None:
                out.obs[MASK][index] = mask_in(info, self._masks)
        except ValueError as error:
            raise self._error(str(error)) from None

    def _number(self, reward: Any) -> float:
        if type(reward) is float and -LARGEST <= reward <= LARGEST:
            return reward
        try:
            number = float(reward) if not isinstance(reward, np.ndarray) or reward.ndim == 0 else None
        except (TypeError, ValueError):
            number = None
        if number is None:
            raise self._error(f"reward must be a number, it is {described(reward)}")
        if not -LARGEST <= number <= LARGEST:
            raise self._error(f"reward is {number}, not a finite float32")
        return number

    def _flag(self, flag: Any, name: str) -> bool:
        if flag is True or flag is False:
            return flag
        array = np.asarray(flag)
        if array.shape != () or array.dtype.kind not in "biu":
            raise self._error(f"{name} must be a bool, it is {described(flag)}")
        return bool(array)

    def _error(self, text: str) -> UserError:
        return UserError(f"env {self.name!r}, episode {self._episode}, step {self._step}: {text}")


def drawn(env: Any) -> np.ndarray | None:
    """Returns an image uint8 [H, W, 3] of an environment, or None if its render_mode is not "rgb_array".

    Raises UserError if `render` does not return an image.
    """
    if getattr(env, "render_mode", None) != "rgb_array":
        return None
    image = env.render()
    array = np.asarray(image)
    whole = array.dtype.kind in "iu" and array.ndim == 3 and array.shape[2] in (3, 4) and array.size > 0
    if not whole or array.min() < 0 or array.max() > 255:
        raise UserError(f"render() must return an image uint8 [H, W, 3], it returned {described(image)}")
    return array[..., :3].astype(np.uint8)  # a copy, because some environments reuse the array; without transparency


def write_together(rows: Sequence[EnvRows], answers: Sequence[Any], out: Step, where: list[int] | slice) -> bool:
    """Checks results of `ask` from environments with equal spaces, and writes them into rows `where` of `out` [E, ..].

    One write for all rows saves most of the cost of a row in cheap environments. Leaves the actions unchanged.
    Returns False if any row needs a conversion or is outside its space. Ignore the written rows in this case and call
    `accept` for each row, which converts it, or raises an error that names the environment and the fault.
    """
    if not rows[0].plain or set(map(type, answers)) != {tuple}:
        return False
    try:
        observations, rewards, terminated, truncated, infos = zip(*answers, strict=True)
        if not (set(map(type, rewards)) <= NUMBERS and set(map(type, terminated + truncated)) <= FLAGS):
            return False
        if not (-LARGEST <= min(rewards) and max(rewards) <= LARGEST and sum(rewards) == sum(rewards)):  # false for NaN
            return False
        for reader in rows[0].readers:
            arrays = [find(reader, obs) for obs in observations] if reader.path else observations
            length, *others = reader.shape
            block = np.concatenate(arrays, dtype=reader.space.dtype, casting="no")  # raises for any other dtype
            if block.shape != (len(rows) * length, *others) or set(map(len, arrays)) != {length}:
                return False
            block = block.reshape(len(rows), *reader.shape)
            if not inside(reader, block):
                return False
            out.obs[reader.key][where] = block
    except Exception:  # `accept` raises it again and names the environment
        return False
    out.reward[where] = rewards
    out.is_first[where] = False
    if 0 in (steps := [row._step for row in rows]):
        out.is_first[where] = [not step for step in steps]
    out.is_last[where] = out.is_terminal[where] = False
    if True in terminated or True in truncated:
        ends = np.logical_or(terminated, truncated)
        out.is_last[where], out.is_terminal[where] = ends, terminated
        for index in ends.nonzero()[0].tolist():
            rows[index].end(infos[index])
    return True
