"""One gymnasium environment, turned into the rows that `steps.py` draws. No jax.

Every row is checked against its space, so that a broken environment is named where it breaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.env import state as env_state
from dreamer.runtime.env.observations import LARGEST, find, inside, read
from dreamer.runtime.env.own_numbers import Tally, check_keys
from dreamer.runtime.env.reading import Reading, checked_reset, described, mask_in, reading
from dreamer.spaces import MASK, Spec
from dreamer.steps import Step

NUMBERS, FLAGS = {float, int, np.float64, np.float32}, {bool, np.bool_}


def empty_step(spec: Spec, envs: int) -> Step:
    """A Step of `envs` rows to be written; actions, rewards and flags are zero."""
    obs = {key: np.zeros((envs, *space.shape), space.dtype) for key, space in spec.obs.items()}
    flags = np.zeros((3, envs), bool)
    return Step(obs, np.zeros((envs, spec.action_width), np.float32), np.zeros(envs, np.float32), *flags)


class EnvRows:
    """Owns one environment; makes one row of it at a time.

    spec: Spec. seed: of the first reset. action_repeat: how often each action is taken, rewards summed.
    name: for messages. known: how the environment is read, if that is known. Raises UserError when the environment
    breaks its own spaces. Its first reset may be made at once, to see whether its info has an action mask.
    """

    def __init__(
        self, env: gymnasium.Env, *, name: str = "", seed: int | None = None, action_repeat: int = 1,
        known: Reading | None = None,
    ):  # fmt: skip
        if action_repeat < 1:
            raise UserError(f"action_repeat is {action_repeat}; it must be 1 or more")
        self.env = env
        self.name = name or type(env).__name__
        self.readers, actions, self.spec, self._masks, self._fresh = known or reading(env, self.name, seed)
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
        """Answer to `action` [A], written into row `index` of `out`; its action stays as it is.

        The first call, and the one after a row that is_last, ignore the action and reset.
        """
        self.accept(self.ask(self._to_env(action)), out, index)

    def turn(self, out: Step, index: int) -> None:
        """Answer to the action in row `index` of `out`, written into that row."""
        self.write(out.action[index], out, index)

    def natives(self, actions: np.ndarray) -> list[Any]:
        """What `ask` of environments like this one takes for actions [R, A]."""
        if self._start is not None:
            return list(actions.argmax(1) + self._start)
        return [self._to_env(action) for action in actions]

    def ask(self, native: Any) -> Any:
        """What `step` answers to one of `natives`, rewards summed over the repeats; the same of `reset` at an end.

        For `accept` or `write_together`. A single step's answer has not been looked at.
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
        """An answer of `ask`, checked and written into row `index`; its action stays as it is."""
        obs, reward, terminal, truncated, info = self._parts(answer)
        self._write_obs(obs, info, out, index)
        if self._tally.keys:
            self._tally.add(obs)
        if terminal or truncated:
            self.end(info)
        out.reward[index], out.is_first[index] = reward, not self._step
        out.is_last[index], out.is_terminal[index] = self._over, terminal

    def end(self, info: Any) -> None:
        """The row that was written last, whose info this is, ends its episode."""
        self._over = True
        self._tally.end(info)

    def finished(self) -> dict[int, dict[str, float]]:
        """What the environment told of the episode that the row written last has ended, as {0: ..}; {} without any."""
        return {0: self._tally.finished} if self._tally.finished else {}

    def forget_finished(self) -> None:
        """The row written last is not of this environment any more."""
        self._tally.finished = {}

    def step(self, action: np.ndarray) -> Step:
        """The same as a new Step of one row."""
        out = empty_step(self.spec, 1)
        self.write(action, out, 0)
        return out

    def render(self) -> np.ndarray | None:
        """A picture uint8 [H, W, 3], or None when the environment was not made to draw any."""
        return drawn(self.env)

    def get_state(self) -> bytes | str:
        """Where the environment is, after the row written last; when it cannot tell, why."""
        return env_state.get_state(self.env, self.position())

    def set_state(self, state: bytes) -> str:
        """Goes on from there -> ""; why not when the environment refuses, and is of no use any more."""
        try:
            self.go_on(env_state.set_state(self.env, state))
        except Exception as error:
            return f"it does not take its state back, {type(error).__name__}: {error}"
        return ""

    def position(self) -> tuple[bool, int, int, int | None, Any]:
        """Where in its episodes it is, and its own numbers of this one, beside the environment's own state."""
        return self._over, self._episode, self._step, self._seed, self._tally.state()

    def go_on(self, position: tuple[bool, int, int, int | None, Any]) -> None:
        """Goes on from a `position`. Raises ValueError for what is none."""
        over, episode, step, seed, numbers = position
        if type(over) is not bool or not all(type(number) is int for number in (episode, step, seed or 0)):
            raise ValueError("the place in its episodes is missing")
        self._tally.load(numbers)
        self._over, self._episode, self._step, self._seed = over, episode, step, seed
        self._fresh = None

    def close(self) -> None:
        """Close the environment."""
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
                f"step() must give (obs, reward, terminated, truncated, info), it gave {described(answer)}"
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
    """A picture uint8 [H, W, 3] of an environment, None when it was not made to draw any. UserError when it is none."""
    if getattr(env, "render_mode", None) != "rgb_array":
        return None
    picture = env.render()
    array = np.asarray(picture)
    whole = array.dtype.kind in "iu" and array.ndim == 3 and array.shape[2] in (3, 4) and array.size > 0
    if not whole or array.min() < 0 or array.max() > 255:
        raise UserError(f"render() must give a picture uint8 [H, W, 3], it gave {described(picture)}")
    return array[..., :3].astype(np.uint8)  # a copy: some draw into the same array again; no transparency


def write_together(rows: Sequence[EnvRows], answers: Sequence[Any], out: Step, where: list[int] | slice) -> bool:
    """Answers of `ask` of environments like each other, checked and written into rows `where`; actions stay.

    All at once, which for cheap environments is most of what a row costs. False, and no row counts, unless all are
    plain and inside their space: `accept` tells which is not, and what is the matter.
    """
    if not rows[0].plain or set(map(type, answers)) != {tuple}:
        return False
    try:
        observations, rewards, terminated, truncated, infos = zip(*answers, strict=True)
        if not (set(map(type, rewards)) <= NUMBERS and set(map(type, terminated + truncated)) <= FLAGS):
            return False
        if not (-LARGEST <= min(rewards) and max(rewards) <= LARGEST and sum(rewards) == sum(rewards)):  # NaN is not
            return False
        for reader in rows[0].readers:
            arrays = [find(reader, obs) for obs in observations] if reader.path else observations
            length, *others = reader.shape
            block = np.concatenate(arrays, dtype=reader.space.dtype, casting="no")  # raises for any other
            if block.shape != (len(rows) * length, *others) or set(map(len, arrays)) != {length}:
                return False
            block = block.reshape(len(rows), *reader.shape)
            if not inside(reader, block):
                return False
            out.obs[reader.key][where] = block
    except Exception:  # `accept` meets it again, and names the environment
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
