"""Runs a JaxEnv as an environment of gymnasium, for workers, evaluation and `dreamer check`.

`as_gymnasium` makes a HostEnv, or a HostTeam if the environment has several agents. `runtime/env` reads the same Spec
from them that the JaxEnv has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from dreamer.errors import UserError
from dreamer.interfaces import Array, JaxEnv, Key, Step
from dreamer.jax_envs import AGENT, uses_key
from dreamer.jax_leaves import from_plain, to_plain
from dreamer.spaces import MASK, Action, Space

WIDEST = 1e6  # gymnasium's images have bounds at most this far apart, see runtime/env/observations.py
DTYPES = ("bool", "float16", "float32", "int8", "int16", "int32", "uint8", "uint16", "uint32")  # at most 32 bits
CLASSES, NUMBERS = "classes", "numbers"  # the keys of an action that has both


def as_gymnasium(env: JaxEnv, name: str = "", render_mode: str | None = None) -> HostEnv | HostTeam:
    """Returns `env` as an environment of gymnasium, or as a parallel environment if it has several agents.

    name: the environment's name in errors | render_mode: "rgb_array", or None to draw nothing
    Raises UserError if gymnasium has no space for an observation. Does not `check` the environment.
    """
    return (HostTeam if env.spec.agents > 1 else HostEnv)(env, name, render_mode)


class HostEnv(gymnasium.Env):
    """A JaxEnv of one agent as an environment of gymnasium, on the CPU. Its observation is a Dict, {k: array}.

    Its action is a Discrete if the agent chooses one class, a MultiDiscrete if several, a Box [-1, 1] for numbers, and
    a Dict of the last two if both. A seed decides everything that follows.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, env: JaxEnv, name: str = "", render_mode: str | None = None):
        """name: the environment's name in errors | render_mode: "rgb_array", or None; ignored if it cannot draw."""
        self.jax_env = env
        self.render_mode = render_mode if env.render else None
        self.observation_space = self._space = _observation_space(env.spec.obs, name)
        self.action_space = action_space(env.spec.action)
        self._game = Game(env, name)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict]:
        """Begins an episode. With a seed, the random key is jax.random.key(seed)."""
        super().reset(seed=seed)
        row = self._game.begin(seed)
        return _observed(self._space, row.obs), {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        """Takes one action. After the last one of an episode, the info holds the environment's own metrics."""
        row = self._game.advance(action_vector(self.jax_env.spec.action, action))
        over, terminal = bool(row.is_last), bool(row.is_terminal)
        info = self._game.metrics() if over else {}
        return _observed(self._space, row.obs), float(row.reward), terminal, over and not terminal, info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Returns an image uint8 [H, W, 3], or None if the environment was not made to render."""
        return self._game.draw() if self.render_mode else None

    def compile_ahead(self) -> None:
        """Compiles the environment, so that its first steps take no longer than others."""
        self._game.compile_ahead()

    def ignores_key(self) -> bool:
        """Whether the environment's reset does not use its random key, for `dreamer check`."""
        return not uses_key(self.jax_env)

    def get_state(self) -> dict[str, Any]:
        """Returns everything that the next steps depend on."""
        return self._game.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state that `get_state` returned. Raises ValueError for the state of another environment."""
        self._game.set_state(state)


class HostTeam:
    """A JaxEnv of several agents as a parallel environment, see runtime/env/parallel.py. All agents end together."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, env: JaxEnv, name: str = "", render_mode: str | None = None):
        """name, render_mode: as in HostEnv."""
        self.jax_env = env
        self.render_mode = render_mode if env.render else None
        self.possible_agents = [f"agent_{number}" for number in range(env.spec.agents)]
        self.agents: list[str] = []
        own = {key: space for key, space in env.spec.obs.items() if key != AGENT}  # a parallel environment adds it
        self._observation_space, self._action_space = _observation_space(own, name), action_space(env.spec.action)
        self._game = Game(env, name)

    def observation_space(self, agent: str) -> spaces.Dict:
        """Returns the space of one agent's observation."""
        return self._observation_space

    def action_space(self, agent: str) -> gymnasium.Space:
        """Returns the space of one agent's action."""
        return self._action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        """Begins a game of all agents."""
        self.agents = list(self.possible_agents)
        return self._shown(self._game.begin(seed)), {agent: {} for agent in self.agents}

    def step(self, actions: Mapping[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """Takes one action of each agent."""
        action = self.jax_env.spec.action
        row = self._game.advance(np.stack([action_vector(action, actions[agent]) for agent in self.possible_agents]))
        info = self._game.metrics() if bool(row.is_last[0]) else {}
        if bool(row.is_last[0]):
            self.agents = []
        terminal, cut = row.is_terminal, row.is_last & ~row.is_terminal
        parts = (self._by_agent(map(kind, part)) for kind, part in ((float, row.reward), (bool, terminal), (bool, cut)))
        return self._shown(row), *parts, {agent: dict(info) for agent in self.possible_agents}  # type: ignore[return-value]

    def render(self) -> np.ndarray | None:
        """Returns an image uint8 [H, W, 3], or None if the environment was not made to render."""
        return self._game.draw() if self.render_mode else None

    def compile_ahead(self) -> None:
        """Compiles the environment, so that its first steps take no longer than others."""
        self._game.compile_ahead()

    def get_state(self) -> dict[str, Any]:
        """Returns everything that the next steps depend on."""
        return {**self._game.get_state(), "agents": list(self.agents)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state that `get_state` returned. Raises ValueError for the state of another environment."""
        self._game.set_state(state)
        self.agents = list(state["agents"])

    def close(self) -> None:
        """Does nothing; there is nothing to close."""

    def _by_agent(self, values: Any) -> dict[str, Any]:
        return dict(zip(self.possible_agents, values, strict=True))

    def _shown(self, row: Step) -> dict[str, dict[str, np.ndarray]]:
        obs = [{key: row.obs[key][i] for key in row.obs} for i in range(len(self.possible_agents))]
        return self._by_agent(_observed(self._observation_space, own) for own in obs)


class Game:
    """One environment in JAX with its state and its random key, compiled for the CPU. Rows are numpy arrays."""

    def __init__(self, env: JaxEnv, name: str):
        """name: the environment's name in errors."""
        self._name = name
        self._device = _cpu()
        programs = _programs(env.reset, env.step, env.render, env.metrics)
        self._begin, self._advance, self._render, self._metrics, self._form = programs
        self._no_action = np.zeros((env.spec.agents, env.spec.action_width)[env.spec.agents == 1 :], np.float32)
        self._key: Any = None
        self._env_state: Any = None

    def compile_ahead(self) -> None:
        """Compiles the environment, so that its first steps take no longer than others. Leaves its state as it is."""
        key, env_state, _ = self._begin(self._placed(jax.random.key(0)))
        self._advance(key, env_state, self._no_action)

    def begin(self, seed: int | None) -> Step:
        """Resets the environment, with the key of `seed` if there is one, and returns the first row."""
        if seed is None and self._key is None:
            seed = int(np.random.default_rng().integers(2**31))
        key = self._key if seed is None else self._placed(jax.random.key(seed % 2**32))
        self._key, self._env_state, row = self._begin(key)
        return _on_host(row)

    def advance(self, action: np.ndarray) -> Step:
        """Steps the environment with an action vector [A], or [agents, A], and returns the row.

        Raises UserError if the environment has reset itself, and ValueError before the first reset.
        """
        if self._env_state is None:
            raise ValueError("call reset before step")
        self._key, self._env_state, row = self._advance(self._key, self._env_state, action)
        row = _on_host(row)
        if np.any(row.is_first):
            raise UserError(f"env {self._name!r} resets itself inside step; a JaxEnv leaves that to its caller")
        return row

    def draw(self) -> np.ndarray:
        """Returns an image uint8 [H, W, 3]. Raises ValueError before the first reset."""
        if self._env_state is None or self._render is None:
            raise ValueError("call reset before render")
        return np.array(self._render(self._env_state))

    def metrics(self) -> dict[str, float]:
        """Returns the environment's own metrics of the episode so far, see JaxEnv."""
        return {} if self._metrics is None else {k: float(x) for k, x in self._metrics(self._env_state).items()}

    def get_state(self) -> dict[str, Any]:
        """Returns the key and all leaves of the env_state as numpy arrays; None before the first reset."""
        if self._key is None:
            return {"key": None, "leaves": None}
        return {"key": to_plain(self._key), "leaves": [to_plain(leaf) for leaf in jax.tree.leaves(self._env_state)]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state that `get_state` returned. Raises ValueError for the state of another environment."""
        if state["key"] is None:
            self._key = self._env_state = None
            return
        forms, structure = jax.tree.flatten(self._form)
        leaves = [from_plain(form, leaf) for form, leaf in zip(forms, state["leaves"], strict=True)]
        self._env_state = self._placed(jax.tree.unflatten(structure, leaves))
        self._key = self._placed(from_plain(jax.eval_shape(lambda: jax.random.key(0)), state["key"]))

    def _placed(self, tree: Any) -> Any:
        return jax.device_put(tree, self._device)


def action_space(action: Action) -> gymnasium.Space:
    """Returns the action space of which runtime/env makes `action`."""
    box = spaces.Box(-1.0, 1.0, (action.continuous,), np.float32)
    if not action.classes:
        return box
    if len(action.classes) == 1 and not action.continuous:
        return spaces.Discrete(action.classes[0])
    chosen = spaces.MultiDiscrete(list(action.classes))
    return spaces.Dict({CLASSES: chosen, NUMBERS: box}) if action.continuous else chosen


def action_vector(action: Action, native: Any) -> np.ndarray:
    """Returns the action vector [A] float32 of `native`, an element of `action_space`."""
    mixed = action.classes and action.continuous
    numbers = native[NUMBERS] if mixed else native if action.continuous else ()
    chosen = np.atleast_1d(native[CLASSES] if mixed else native) if action.classes else ()
    onehots = [np.arange(size) == own for size, own in zip(action.classes, chosen, strict=True)]
    return np.concatenate([*onehots, np.asarray(numbers, np.float32)], dtype=np.float32)


def _observation_space(obs: Mapping[str, Space], name: str) -> spaces.Dict:
    return spaces.Dict({key: _space(key, space, name) for key, space in obs.items()})


def _space(key: str, space: Space, name: str) -> gymnasium.Space:
    """Returns the space of which runtime/env makes `space`. Raises UserError if there is none."""
    if fault := _fault(space):
        raise UserError(f"env {name!r}: the space of observation key {key!r} {fault}")
    shape, dtype = space.shape, np.dtype(space.dtype)
    if key == MASK and space.classes == 2:
        return spaces.MultiBinary(shape[0])
    if space.classes is not None:
        return _class_space(space.classes, shape, dtype)
    if dtype.kind == "b":
        return spaces.Box(np.zeros(shape, bool), np.ones(shape, bool), shape, bool)  # type: ignore[arg-type]
    if space.image:
        low, high = (end if dtype.kind == "f" else int(end) for end in space.ends)
        return spaces.Box(low, high, shape, dtype.type)
    if dtype.kind == "f":
        return spaces.Box(-np.inf, np.inf, shape, dtype.type)
    limits = np.iinfo(dtype)
    return spaces.Box(int(limits.min), int(limits.max), shape, dtype.type)


def _class_space(classes: int, shape: tuple[int, ...], dtype: np.dtype) -> gymnasium.Space:
    kind: Any = dtype.type
    return spaces.MultiDiscrete(np.full(shape, classes, np.int64), kind) if shape else spaces.Discrete(
        classes, dtype=kind
    )


def _fault(space: Space) -> str:
    """Returns why runtime/env would read another space than `space`, or ""."""
    shape, image = space.shape, space.image
    if space.dtype not in DTYPES:
        return f"has the dtype {space.dtype}; choices: {', '.join(DTYPES)}"
    if space.discrete and "int" not in space.dtype:
        return f"has classes of dtype {space.dtype}; make them integers, such as int32"
    if image and shape[0] < min(shape[1:]):
        return f"is an image {list(shape)}, which looks as if its channels came first; give [height, width, channels]"
    if image and not 0 < space.ends[1] - space.ends[0] <= WIDEST:
        return f"is an image with the bounds {space.ends}; give the values of black and white"
    if space.bounds is not None and not image:
        return "has bounds but is not an image; leave them out"
    if not space.discrete and not image and (len(shape) not in (1, 2) or (len(shape) == 2 and space.dtype == "uint8")):
        return f"has the shape {list(shape)}; flatten it, or make it an image [height, width, channels]"
    return ""


def _observed(space: spaces.Dict, obs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the observation as an element of `space`, whose Discretes have numpy scalars."""
    return {key: obs[key][()] for key in space.spaces}


class Programs(NamedTuple):
    """The compiled functions of an environment, which pass its random key on, and the form of its env_state."""

    begin: Callable[[Key], tuple[Key, Any, Step]]
    advance: Callable[[Key, Any, Any], tuple[Key, Any, Step]]
    render: Callable[[Any], Array] | None
    metrics: Callable[[Any], Mapping[str, Array]] | None
    form: Any


@functools.lru_cache(maxsize=16)
def _programs(reset: Callable, step: Callable, render: Callable | None, metrics: Callable | None) -> Programs:
    """Returns the Programs of the functions of a JaxEnv. All games with the same functions share them."""
    form = jax.eval_shape(reset, jax.eval_shape(lambda: jax.random.key(0)))[0]
    begin, advance = jax.jit(functools.partial(_begin, reset)), jax.jit(functools.partial(_advance, step))
    render, metrics = (jax.jit(function) if function else None for function in (render, metrics))
    return Programs(begin, advance, render, metrics, form)


def _begin(reset: Callable, key: Key) -> tuple[Key, Any, Step]:
    key, own = jax.random.split(key)
    return key, *reset(own)  # type: ignore[return-value]


def _advance(step: Callable, key: Key, env_state: Any, action: Array) -> tuple[Key, Any, Step]:
    key, own = jax.random.split(key)
    return key, *step(own, env_state, action)  # type: ignore[return-value]


def _on_host(row: Step) -> Step:
    return jax.tree.map(np.array, jax.device_get(row))


def _cpu() -> Any:
    """Returns the CPU, so that accelerators belong to the learner, or another device if JAX may not use the CPU."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]
