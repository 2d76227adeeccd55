"""Loads a trained run as an agent that takes its environment's observations and returns its actions."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium
import jax
import numpy as np
from gymnasium.vector.utils import concatenate, create_empty_array

from dreamer import agent as agents
from dreamer import plugins
from dreamer.apps.dreams import LoadedWorldModel
from dreamer.coerce import show
from dreamer.config import NO_ENV, Config, layer, overlay
from dreamer.data.forms import from_json
from dreamer.errors import UserError
from dreamer.interfaces import Agent, Batch, Carry, JaxEnv, Variables
from dreamer.runtime.devices import placement, programs
from dreamer.runtime.env.adapter import EnvAdapter, adapt, mask_in
from dreamer.runtime.env.observations import agent_obs
from dreamer.runtime.env.parallel import any_spec, is_parallel
from dreamer.runtime.env.rows import EnvRows, empty_step
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.files.run_dir import existing_run_dir
from dreamer.runtime.run import run_config as run_configs
from dreamer.spaces import MASK, Space, Spec, for_device
from dreamer.steps import Step


class Trained(NamedTuple):
    """A checkpoint of a run: config, agent, the variables of the agent's parts, and env_steps when it was saved.

    spec: the observations and actions of its environment
    """

    config: Config
    agent: Agent
    variables: dict[str, Variables]
    env_steps: int
    spec: Spec


MakeEnv = Callable[..., gymnasium.Env | JaxEnv] | None


def env_of(config: Config, make_env: MakeEnv) -> plugins.EnvName:
    """Returns what makes the environment of a run: `make_env` if it is given, else the name in the run's config.

    Raises UserError if the run has learned from data only, and there is no environment.
    """
    if not make_env and config.env == NO_ENV:
        raise UserError(
            f"the run has learned from data only, and its env is {NO_ENV}; name the environment to play in with "
            "--env ENV, or make_env in Python"
        )
    return plugins.maker(make_env) if make_env else config.env


class State(NamedTuple):
    """What a loaded agent remembers between calls of `act`: its carry, and how often `act` was called."""

    carry: Carry
    calls: int


def run_config(
    run: str | os.PathLike, env_options: Mapping[str, Any] | None = None, make_env: MakeEnv = None, trust: bool = False,
    env: str = "",
) -> Config:  # fmt: skip
    """Returns the config of a run, changed by `env_options`.

    env: the environment of a run that has none; "": there is no other than the run's

    make_env: makes the environment; None: the environment that the config names.
    trust: whether a run that was made by another user or on another machine may name code outside dreamer.
    Raises UserError when there is no run, when it is not trusted, or when the options change the spaces.
    """
    if not isinstance(run, str | os.PathLike):
        raise UserError(f"a run is given by its directory, such as 'runs/NAME', not as a {type(run).__name__}")
    options = env_options if isinstance(env_options, Mapping) else {}
    given: dict[str, Any] = {f"env_options.{name}": value for name, value in options.items()}
    if make_env:
        given["env"] = make_env
    config = run_configs.load(Path(run).expanduser(), trusted=trust, given=given)
    if env and config.env not in (NO_ENV, env):
        raise UserError(f"env {env!r} is not the one of {run}, {config.env!r}; only a run without one takes another")
    config = dataclasses.replace(config, env=env or config.env)
    if not env_options:
        return config
    changed = overlay(config, layer({"env_options": env_options}, "env_options"))
    specs = []
    for one in (config, changed):
        with contextlib.closing(plugins.make_env(env_of(config, make_env), one.env_options)) as made:
            specs.append(any_spec(made, config.env))
    _check_spaces(specs[0], specs[1], f"env {config.env!r} with {show(env_options)}")
    return changed


def _check_spaces(trained: Spec, changed: Spec, what: str) -> None:
    """Raises UserError when the spaces of two environments differ. The error names the first key that differs."""
    for key in sorted({*trained.obs, *changed.obs}):
        was, now = trained.obs.get(key), changed.obs.get(key)
        if was != now:
            raise UserError(f"{what}: the observation {key!r} is {_space(now)}, the run was trained with {_space(was)}")
    if trained.action != changed.action:
        raise UserError(f"{what}: an action is {changed.action.text}, the run was trained with {trained.action.text}")


def _space(space: Space | None) -> str:
    if space is None:
        return "missing"
    of = f" of {space.classes} classes" if space.classes else f" from {space.bounds}" if space.bounds else ""
    return f"{space.dtype} {list(space.shape)}{of}"


def restore(
    run: str | os.PathLike, env: gymnasium.Env | None = None, step: int | None = None, make_env: MakeEnv = None,
    env_options: Mapping[str, Any] | None = None, trust: bool = False, env_name: str = "", plays: bool = True,
) -> Trained:  # fmt: skip
    """Loads the checkpoint of `run` at `step`; None: the newest.

    Raises UserError if there is no such checkpoint, or if it does not fit the config of the run.
    env: an environment of the run, from which the spaces are read; `env_options` is then ignored.
    None: an environment is made, and closed again.
    make_env, env_options, trust: as in `load`. env_name: the environment of a run that has none
    plays: whether there must be an environment; False: the checkpoint of a run without one tells the spaces
    """
    config = run_config(run, None if env else env_options, make_env, trust, env_name)
    run_dir = existing_run_dir(Path(run))
    alone = not plays and config.env == NO_ENV and env is None and make_env is None
    spec = None if alone else _spec(env, config, make_env)
    with Checkpoints(run_dir) as checkpoints:
        step = checkpoints.latest() if step is None else step
        if config.updates:
            spec = _saved_spec(checkpoints, step, spec, f"env {config.env!r}")
        assert spec is not None  # only runs with updates are without an environment
        agent = agents.make(config.agent, spec)
        state, _ = checkpoints.restore(jax.eval_shape(agent.init, jax.random.key(0)), step)
        manifest = checkpoints.manifest(step)
    run_configs.check_same_run(run_configs.read(run_dir), manifest, manifest.step)
    return Trained(config, agent, agent.variables(state), manifest.env_steps, spec)


def _spec(env: gymnasium.Env | None, config: Config, make_env: MakeEnv) -> Spec:
    """Returns the spec of `env`, or if it is None, of an environment that is made and closed."""
    if env is not None:
        return any_spec(env, config.env)
    with contextlib.closing(plugins.make_env(env_of(config, make_env), config.env_options)) as made:
        return any_spec(made, config.env)


def _saved_spec(checkpoints: Checkpoints, step: int | None, spec: Spec | None, what: str) -> Spec:
    """Returns `spec`, or if it is None, the spec that a checkpoint tells. what: has `spec`, in the words of an error

    Raises UserError if the two differ: the user may have named an environment only now.
    """
    told = checkpoints.manifest(step).spec
    if told is None:
        raise UserError(f"checkpoint {step} does not tell the spaces of its run")
    saved = from_json(told, f"checkpoint {step}")
    if spec is not None:
        _check_spaces(saved, spec, what)
    return spec or saved


@contextlib.contextmanager
def opened(config: Config, env: plugins.EnvName, seed: int) -> Iterator[EnvRows]:
    """Makes the environment of a run, whose first reset has this seed, and closes it at the end.

    Raises UserError if the environment has several agents.
    """
    with contextlib.closing(plugins.make_env(env, config.env_options)) as made:
        if is_parallel(made):
            raise UserError(f"env {config.env!r} has several agents, which this command does not support")
        yield EnvRows(made, name=config.env, seed=seed, action_repeat=config.action_repeat)


class LoadedAgent:
    """Takes observations as the environment returns them, and returns actions for `env.step`.

        agent = dreamer.load("runs/...")
        obs, _ = env.reset()
        action, state = agent.act(obs)            a new episode
        action, state = agent.act(obs, state)     its next step

    Owns the device copy of the variables. `world_model` is a LoadedWorldModel, which can dream.
    """

    def __init__(
        self, trained: Trained, env: gymnasium.Env, *, mode: Literal["sample", "mode"], seed: int,
        known: EnvAdapter | None = None, make_env: MakeEnv = None,
    ):  # fmt: skip
        """known: the EnvAdapter of `env`, if the caller already has it.

        make_env: makes the environment for `play`; None: the environment that the run's config names.
        """
        self.config, self.env_steps = trained.config, trained.env_steps
        self.action_space, self.observation_space = env.action_space, env.observation_space
        self._agent, self._variables, self._mode = trained.agent, trained.variables, mode
        self._adapter = known or adapt(env, trained.config.env)
        self._policy, self._encode = programs.jit_act(trained.agent), jax.jit(trained.agent.encode)
        self._key, self._make_env = jax.random.key(seed), make_env
        self.world_model = LoadedWorldModel(trained.agent, trained.variables, self._adapter.spec)

    def play(self, env: gymnasium.Env | None = None, *, seed: int = 0, max_steps: int = 108_000) -> Batch:
        """Plays one episode and returns its rows [1, T], as the replay would store them.

        env: one of the run's environments; None: make one, and close it at the end. seed: the seed of the reset.
        max_steps: the number of rows after which the episode is cut.
        Raises UserError when the environment breaks its own spaces.
        """
        if env is None:
            name, options = env_of(self.config, self._make_env), self.config.env_options
            with contextlib.closing(plugins.make_env(name, options)) as made:
                return self.play(made, seed=seed, max_steps=max_steps)
        rows = EnvRows(env, name=self.config.env, seed=seed, action_repeat=self.config.action_repeat)
        carry, step = placement.first_copy(self._agent.initial_carry(1)), empty_step(rows.spec, 1)
        seen: list[Step] = []
        while not step.is_last[0] and len(seen) < max_steps:
            rows.turn(step, 0)
            obs = for_device(rows.spec.obs, step.obs)
            carry, action, _ = self._policy(
                self._variables, self._key, len(seen), carry, obs, step.is_first, self._mode
            )
            step.action[:] = np.where(step.is_last[:, None], np.float32(0), action)
            seen.append(jax.tree.map(np.copy, step))
        whole = jax.tree.map(lambda *rows: np.stack(rows, 1), *seen)
        return Batch(**whole._asdict(), latent={})

    def encode(self, obs: Any, info: Any = None) -> np.ndarray:
        """Returns the features [E, F] of observations that have no past, such as goals; E is 1 for one observation.

        obs, info, errors: as in `act`
        """
        batch, _ = self.rows(obs, info)
        return np.asarray(self._encode(self._variables, self._key, batch))

    def act(
        self, obs: Any, state: State | None = None, is_first: Any = None, info: Any = None,
        command: Mapping[str, Any] | None = None,
    ) -> tuple[Any, State]:  # fmt: skip
        """Chooses an action for one observation, or actions for a batch, whose arrays have a leading axis E.

        obs: as returned by the environment. state: the state from the previous call; None: an episode begins.
        is_first [E] bool: the environments of a batch in which a new episode begins; in the others, it continues.
        info: as returned by the environment; needed only if it holds the action mask. For a batch, pass a list of
        infos, or one dict of arrays [E, ..] as returned by gymnasium's vector environments.
        command {name: [E, ..]}: the task of a behavior that takes one, such as {"goal": agent.encode(obs)} of `reach`.
        Returns the action for `env.step` (for a batch, the actions of a vector environment) and the next state.
        Raises UserError when the observation does not fit the environment's space.
        """
        batch, single = self.rows(obs, info)
        actions, after = self.choose(batch, state, is_first, command)
        if single:
            return actions[0], after
        out: Any = create_empty_array(self.action_space, len(actions))
        return concatenate(self.action_space, actions, out), after

    def rows(self, obs: Any, info: Any = None) -> tuple[dict[str, np.ndarray], bool]:
        """Converts `obs` and `info` of `act` to {k: [E, ..]}. Also returns whether `obs` is a single observation.

        Raises UserError when they do not fit the environment's spaces.
        """
        batch, single = agent_obs(self._adapter.keys, obs, self.config.env)
        if (masks := self._adapter.masks) is not None:
            batch[MASK] = self._masked(masks, info, single, len(next(iter(batch.values()))))
        return batch, single

    def choose(
        self, batch: dict[str, np.ndarray], state: State | None, is_first: Any = None,
        command: Mapping[str, Any] | None = None,
    ) -> tuple[list[Any], State]:  # fmt: skip
        """Chooses an action for `env.step` for each row of a batch from `rows`. Also returns the next state.

        Raises UserError when `state` or `is_first` does not fit the batch.
        """
        envs = len(next(iter(batch.values())))
        fresh = state is None
        state = state or State(placement.first_copy(self._agent.initial_carry(envs)), 0)
        if len(state.carry.prev_action) != envs:
            raise UserError(f"act: {envs} observations, but the state is for {len(state.carry.prev_action)}")
        first = np.full(envs, fresh) if is_first is None else np.asarray(is_first, bool).reshape(-1) | fresh
        if first.shape != (envs,):
            raise UserError(f"act: is_first has {len(first)} flags for {envs} observations")
        carry, action, _ = self._policy(
            self._variables, self._key, state.calls, state.carry, batch, first, self._mode, command=command
        )
        return [self._adapter.actions.to_env(one) for one in np.asarray(action)], State(carry, state.calls + 1)

    def _masked(self, masks: gymnasium.Space, info: Any, single: bool, envs: int) -> np.ndarray:
        """Returns the action masks of a batch, int32 [E, n]. Raises UserError when `info` does not hold them."""
        infos = [info] if single else info
        try:
            if isinstance(infos, dict):
                infos = [{MASK: mask} for mask in infos.get(MASK, ())]
            if infos is None or len(infos) != envs or None in infos:
                raise ValueError("pass the info of the last reset or step as info=, it holds the action mask")
            return np.stack([mask_in(one, masks) for one in infos]).astype(np.int32)
        except ValueError as error:
            raise UserError(f"act, env {self.config.env!r}: {error}") from None
