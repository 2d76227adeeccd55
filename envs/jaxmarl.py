"""JaxMARL: `make("MPE_simple_spread")`. Games of several agents in JAX; all agents share one policy."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.interfaces import Array, JaxEnv, Key
from dreamer.jax_envs import between, make_jax_env, time_limit
from dreamer.spaces import MASK, Action, Space, Spec

from ._jax_suite import at_limit, box, importing
from ._suite import find_task

GAMES = ("overcooked_v2",)  # what looks like a version is another game
MASKS = ("get_legal_moves", "get_avail_actions")  # how games name the function of the actions that are allowed
MASKED = ("SMAX", "HeuristicEnemySMAX", "hanabi")
BRAX = ("ant_4x2", "halfcheetah_6x1", "hopper_3x1", "humanoid_9|8", "walker2d_2x3")
NOT_HERE = {
    "coin_game": "it resets itself inside step, which loses the last observation",
    "storm": "the observation of its agents is not one array",
    "storm_2p": "the observation of its agents is not one array",
    "storm_np": "its observations come in a list, not by agent",
    "LearnedPolicyEnemySMAX": "it needs a policy of yours",
}


def make(task: str, steps: int | None = None, **options: Any) -> JaxEnv:
    """Makes one game. The agents' observations and actions must be equal in form.

    All agents end together: when the package says that all are done. Where the game has a time limit (max_steps), the
    step at the limit is truncated, although the package calls it an end. The version may be left out of the name.
    steps: a further time limit; None: the game's own | options: arguments of the game's class
    Raises ValueError and ImportError.
    """
    with importing("jaxmarl"):
        import jaxmarl
        from jaxmarl import registration
    if task in NOT_HERE:
        raise ValueError(f"jaxmarl:{task} cannot be used: {NOT_HERE[task]}")
    known = [name for name in registration.registered_envs if not name.startswith("JaxRobotarium")]  # another package
    versions = {name if name in GAMES else re.sub(r"_v\d+$", "", name): name for name in known if name not in NOT_HERE}
    name = task if task in versions.values() else versions[find_task("jaxmarl", task, versions)]
    if name in BRAX:
        options = {"auto_reset": False, **options}
    env = jaxmarl.make(name, **options)
    spec, native = _spec(f"jaxmarl:{name}", env, masked=name in MASKED)
    made = make_jax_env(spec, functools.partial(_reset, env, spec), functools.partial(_step, env, spec), native)
    return made if steps is None else time_limit(made, steps)


def _spec(name: str, env: Any, masked: bool) -> tuple[Spec, Any]:
    """Returns the Spec of each agent, and the converter of its action; None: the plain one. Raises ValueError."""
    forms = jax.eval_shape(env.reset, jax.random.key(0))[0]
    agents, actions = list(env.agents), [env.action_space(agent) for agent in env.agents]
    shapes = [(forms[agent].shape, str(forms[agent].dtype)) for agent in agents]
    sizes = [getattr(action, "n", getattr(action, "shape", None)) for action in actions]
    for what, found in (("sees", shapes), ("chooses among", sizes)):
        if len(set(map(str, found))) > 1:
            other = next(i for i, form in enumerate(found) if str(form) != str(found[0]))
            raise ValueError(
                f"{name}: agent {agents[other]} {what} {found[other]}, {agents[0]} {found[0]}: all agents share one "
                "policy, so their spaces must be equal"
            )
    space, (shape, dtype) = env.observation_space(agents[0]), shapes[0]
    own = box(getattr(space, "low", -np.inf), getattr(space, "high", np.inf), shape, dtype)
    obs = {"image" if own.image else "vector": own}
    discrete = hasattr(actions[0], "n")
    action = Action((int(actions[0].n),)) if discrete else Action((), int(np.prod(actions[0].shape)))
    if masked and discrete:
        obs[MASK] = Space((action.onehots,), "int8", 2)
    native = None if discrete else between(*(np.broadcast_to(end, actions[0].shape) for end in _ends(actions[0])))
    return Spec(obs, action, len(agents)), native


def _ends(space: Any) -> tuple[Any, Any]:
    return np.asarray(space.low), np.asarray(space.high)


def _observed(env: Any, spec: Spec, state: Any, obs: Any) -> dict[str, Array]:
    key = "image" if "image" in spec.obs else "vector"
    parts = {key: jnp.stack([obs[agent] for agent in env.agents])}
    if MASK in spec.obs:
        allowed = next(getattr(env, name) for name in MASKS if hasattr(env, name))(state)
        parts[MASK] = jnp.stack([allowed[agent] for agent in env.agents]) > 0
    return parts if spec.agents > 1 else {key: part[0] for key, part in parts.items()}


def _reset(env: Any, spec: Spec, key: Key) -> tuple[Any, dict[str, Array]]:
    obs, state = env.reset(key)
    return state, _observed(env, spec, state, obs)


def _step(env: Any, spec: Spec, key: Key, state: Any, action: Array) -> tuple[Any, ...]:
    chosen = {agent: action[i] if spec.agents > 1 else action for i, agent in enumerate(env.agents)}
    obs, state, rewards, dones, _ = env.step_env(key, state, chosen)
    reward, done = jnp.stack([rewards[agent] for agent in env.agents]), jnp.asarray(dones["__all__"], bool)
    limits = getattr(state, "info", {})  # brax counts the steps itself
    late = limits["truncation"] > 0 if "truncation" in limits else at_limit(state, getattr(env, "max_steps", None))
    reward = reward if spec.agents > 1 else reward[0]
    return state, _observed(env, spec, state, obs), reward, done & ~late, done & late
