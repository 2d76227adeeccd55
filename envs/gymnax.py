"""gymnax: `make("CartPole-v1")`, `make("Breakout-MinAtar")`. Classic control, MinAtar, BSuite and others in JAX."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from typing import Any

import jax
import numpy as np

from dreamer.interfaces import Array, JaxEnv, Key
from dreamer.jax_envs import between, make_jax_env
from dreamer.spaces import Action, Space, Spec

from ._jax_suite import as_layers, box, cells, check_options, importing
from ._suite import find_task


def make(task: str, **options: Any) -> JaxEnv:
    """Makes one task. MinAtar's observations are layers, bool [10, 10, C]; the package has them as floats.

    options: fields of the task's EnvParams, such as max_steps_in_episode, and arguments of its class. A time limit is
    not a true end. Raises ValueError and ImportError.
    """
    with importing("gymnax"):
        from gymnax import registration
    name = find_task("gymnax", task, registration.registered_envs)
    factory = registration._registry[name]
    arguments = {key for key in inspect.signature(factory).parameters if key != "env_kwargs"}
    fields = {field.name for field in dataclasses.fields(factory().default_params)}
    check_options(f"gymnax:{name}", options, dict.fromkeys(arguments | fields))
    env = factory(**{key: value for key, value in options.items() if key in arguments})
    params = env.default_params.replace(**{key: value for key, value in options.items() if key in fields})
    layers = name.endswith("-MinAtar")
    space, action = _space(env, params, layers), env.action_space(params)
    discrete = hasattr(action, "n")
    return make_jax_env(
        Spec(
            {"image" if space.image else "vector": space},
            Action((int(action.n),)) if discrete else Action((), math.prod(action.shape)),
        ),
        functools.partial(_reset, env, params, layers),
        functools.partial(_step, env, params, layers),
        None if discrete else between(*(np.broadcast_to(end, action.shape) for end in (action.low, action.high))),
        functools.partial(_render, env, params) if layers else None,
    )


def _space(env: Any, params: Any, layers: bool) -> Space:
    space, form = env.observation_space(params), jax.eval_shape(env.reset_env, jax.random.key(0), params)[0]
    if hasattr(space, "n"):
        return Space((), "int32", int(space.n))
    if layers:
        return Space(form.shape, "bool", bounds=(0.0, 1.0))
    return box(space.low, space.high, form.shape, form.dtype)  # some spaces name another dtype


def _reset(env: Any, params: Any, layers: bool, key: Key) -> tuple[Any, Array]:
    obs, state = env.reset_env(key, params)
    return state, as_layers(obs) if layers else obs


def _step(env: Any, params: Any, layers: bool, key: Key, state: Any, action: Array) -> tuple[Any, ...]:
    obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
    return state, as_layers(obs) if layers else obs, reward, terminated, env.is_truncated(state, params)


def _render(env: Any, params: Any, state: Any) -> Array:
    # These observations draw no random numbers.
    return cells(as_layers(env.observe(jax.random.key(0), state, None, params)))
