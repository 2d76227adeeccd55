"""One gymnasium environment, turned into the rows that `runtime/steps.py` draws. No jax.

Every row is checked against its space, so that a broken environment is named where it breaks.
"""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium
import numpy as np

from dreamer.errors import UserError
from dreamer.runtime import env_state
from dreamer.runtime.readers import LARGEST, action_reader, find, inside, outside, read, readers
from dreamer.runtime.steps import Step
from dreamer.spaces import Spec

FLOAT32 = np.dtype(np.float32)


def empty_step(spec: Spec, envs: int) -> Step:
    """A Step of `envs` rows to be written; actions, rewards and flags are zero."""
    obs = {key: np.zeros((envs, *space.shape), space.dtype) for key, space in spec.obs.items()}
    flags = np.zeros((3, envs), bool)
    return Step(obs, np.zeros((envs, spec.action_width), np.float32), np.zeros(envs, np.float32), *flags)


class EnvRows:
    """Owns one environment; makes one row of it at a time.

    spec: Spec. seed: of the first reset. action_repeat: how often each action is taken, rewards summed.
    name: for messages. Raises UserError when the environment breaks its own spaces.
    """

    def __init__(self, env: gymnasium.Env, *, name: str = "", seed: int | None = None, action_repeat: int = 1):
        if action_repeat < 1:
            raise UserError(f"action_repeat is {action_repeat}; it must be 1 or more")
        self.env = env
        self.name = name or type(env).__name__
        self._readers = readers(env, self.name)
        action, self._to_env = action_reader(env, self.name)
        self._first_action = int(getattr(env.action_space, "start", 0)) if action.discrete else 0
        self.spec = Spec({reader.key: reader.space for reader in self._readers}, action)
        self._seed = seed
        self._late = [reader for reader in self._readers if reader.late]
        # One float32 array, the row as it is: what most environments of vectors show.
        alone = self._readers[0] if len(self._readers) == 1 and self._late and not self._readers[0].path else None
        self._alone = (alone.key, alone.shape) if alone else (None, None)
        self._repeat = action_repeat
        self._over = True
        self._episode = 0
        self._step = 0

    def write(self, action: np.ndarray, out: Step, index: int) -> None:
        """Answer to `action` [A], written into row `index` of `out`; its action stays as it is.

        The first call, and the one after a row that is_last, ignore the action and reset.
        """
        out.is_first[index] = out.is_last[index] = out.is_terminal[index] = False
        if self._over:
            self._reset(out, index, late=False)
        else:
            self._advance(self._to_env(action), out, index, late=False)

    def natives(self, actions: np.ndarray) -> list[Any]:
        """What `step` of environments like this one takes for actions [R, A]."""
        if self.spec.action.discrete:
            return (actions.argmax(1) + self._first_action).tolist()
        return [self._to_env(action) for action in actions]

    def write_late(self, native: Any, out: Step, index: int) -> None:
        """`write` for one of many rows, of which what can be done for all at once is done by the caller.

        native: of `natives`. The row's flags are False. Float32 observations are compared with their bounds
        afterwards, by `sound` and `unsound`.
        """
        if self._over:
            self._reset(out, index, late=True)
        else:
            self._advance(native, out, index, late=True)

    def sound(self, out: Step, indices: list[int] | slice) -> bool:
        """Whether rows of such environments, written late, are inside their bounds: one comparison for all of them."""
        return all(inside(reader, out.obs[reader.key][indices]) for reader in self._late)

    def unsound(self, out: Step, index: int) -> UserError | None:
        """What is wrong with row `index`, written late."""
        for reader in self._late:
            if not inside(reader, out.obs[reader.key][index]):
                return self._error(outside(reader, out.obs[reader.key][index]))
        return None

    def step(self, action: np.ndarray) -> Step:
        """The same as a new Step of one row."""
        out = empty_step(self.spec, 1)
        self.write(action, out, 0)
        return out

    def render(self) -> np.ndarray | None:
        """A picture uint8 [H, W, 3], or None when the environment was not made to draw any."""
        if getattr(self.env, "render_mode", None) != "rgb_array":
            return None
        return np.asarray(self.env.render(), np.uint8)

    def get_state(self) -> bytes | str:
        """Where the environment is, after the row written last; when it cannot tell, why."""
        env = env_state.get_state(self.env)
        return env if isinstance(env, str) else pickle.dumps((env, self._over, self._episode, self._step, self._seed))

    def set_state(self, state: bytes) -> str:
        """Goes on from there -> ""; why not when the environment refuses, and is of no use any more."""
        try:
            env, self._over, self._episode, self._step, self._seed = pickle.loads(state)
            env_state.set_state(self.env, env)
        except Exception as error:
            return f"it does not take its state back, {type(error).__name__}: {error}"
        return ""

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _reset(self, out: Step, index: int, late: bool) -> None:
        self._episode += 1
        self._step = 0
        seed, self._seed = self._seed, None
        answer = self.env.reset(seed=seed)
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise self._error(f"reset() must give (obs, info), it gave {_described(answer)}")
        self._write_obs(answer[0], out, index, late)
        out.reward[index] = 0.0
        out.is_first[index] = True
        self._over = False

    def _advance(self, native: Any, out: Step, index: int, late: bool) -> None:
        total = 0.0
        for _ in range(self._repeat):
            self._step += 1
            answer = self.env.step(native)
            if not (isinstance(answer, tuple) and len(answer) == 5):
                raise self._error(
                    f"step() must give (obs, reward, terminated, truncated, info), it gave {_described(answer)}"
                )
            obs, reward, terminated, truncated, _ = answer
            total += self._number(reward)
            terminal = self._flag(terminated, "terminated")
            if self._flag(truncated, "truncated") or terminal:
                self._over = True
                break
        self._write_obs(obs, out, index, late)
        out.reward[index] = total
        if self._over:
            out.is_last[index], out.is_terminal[index] = True, terminal

    def _write_obs(self, obs: Any, out: Step, index: int, late: bool) -> None:
        key, shape = self._alone
        if late and key and type(obs) is np.ndarray and obs.dtype is FLOAT32 and obs.shape == shape:
            out.obs[key][index] = obs
            return
        for reader in self._readers:
            target = out.obs[reader.key]
            try:
                value = find(reader, obs) if reader.path else obs
                if late and reader.late and type(value) is np.ndarray and value.dtype == np.float32:
                    if value.shape == reader.shape:
                        target[index] = value
                        continue
                array = read(reader, value)
            except ValueError as error:
                raise self._error(str(error)) from None
            target[index] = array if array.shape == reader.space.shape else array.reshape(reader.space.shape)

    def _number(self, reward: Any) -> float:
        if type(reward) is float and -LARGEST <= reward <= LARGEST:
            return reward
        try:
            number = float(reward) if not isinstance(reward, np.ndarray) or reward.ndim == 0 else None
        except (TypeError, ValueError):
            number = None
        if number is None:
            raise self._error(f"reward must be a number, it is {_described(reward)}")
        if not -LARGEST <= number <= LARGEST:
            raise self._error(f"reward is {number}, not a finite float32")
        return number

    def _flag(self, flag: Any, name: str) -> bool:
        if flag is True or flag is False:
            return flag
        array = np.asarray(flag)
        if array.shape != () or array.dtype.kind not in "biu":
            raise self._error(f"{name} must be a bool, it is {_described(flag)}")
        return bool(array)

    def _error(self, text: str) -> UserError:
        return UserError(f"env {self.name!r}, episode {self._episode}, step {self._step}: {text}")


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} values" + (" (the old gym interface)" if len(value) == 4 else "")
    if isinstance(value, np.ndarray):
        return f"one array {value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}: {str(value)[:60]}"
