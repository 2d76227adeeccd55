"""Makes environments in JAX from functions: `make_jax_env`, and wrappers, which are pure functions too.

`check` finds the faults of a JaxEnv before its first step.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.errors import UserError
from dreamer.interfaces import Array, JaxEnv, Key, Step
from dreamer.jax_leaves import is_key
from dreamer.spaces import Action, Space, Spec, choosable

AGENT = "agent"  # the observation that holds the index of a row's agent, as in runtime/env/parallel.py
KINDS = {"f": "fiubV", "V": "fiubV", "b": "b"}  # the kinds of dtypes that fit one of this kind; others take "iub"
NAME = re.compile(r"[\w-][\w./-]*")  # of a metric
LARGEST = float(np.finfo(np.float32).max)

Reset = Callable[[Key], tuple[Any, Any]]
Advance = Callable[[Key, Any, Any], tuple[Any, Any, Any, Any, Any]]


def make_jax_env(
    spec: Spec,
    reset: Reset,
    step: Advance,
    native: Callable[[Array], Any] | None = None,
    render: Callable[[Any], Array] | None = None,
    metrics: Callable[[Any], Mapping[str, Array]] | None = None,
) -> JaxEnv:
    """Makes a JaxEnv from functions that know nothing of rows and action vectors.

    reset(key) -> env_state, obs
    step(key, env_state, native action) -> env_state, obs, reward, terminated, truncated; without auto-reset
    native(action [A]) -> the argument of `step`; None: `plain_action`. `between` makes one for an action with bounds.
    render(env_state) -> image uint8 [H, W, 3] | metrics(env_state) -> {name: []}, see JaxEnv

    obs is {k: array}, or one array if `spec` has one key. The keys of nested dicts are joined with "/". Observations
    are converted to the dtype and the shape of their space: bool to any dtype, integers to integers and floats. If
    spec.agents > 1, observations, rewards and flags have an axis for the agents (a reward or flag may also be one for
    all), and the observation "agent" is added, as it is to every environment with several agents. Tracing the
    environment raises UserError if an observation does not fit.
    """
    if native is None:
        native = functools.partial(plain_action, spec.action)
    if spec.agents > 1:
        spec = dataclasses.replace(spec, obs={AGENT: Space((), "int32", spec.agents), **spec.obs})
        native = jax.vmap(native)
    return JaxEnv(
        spec,
        functools.partial(_first, spec, reset),
        functools.partial(_next, spec, step, native),
        render,
        metrics,
    )


def plain_action(action: Action, vector: Array) -> Any:
    """Returns what the action vector [A] means in an environment without conventions of its own.

    One class: int32 []. Several: int32 [n]. Numbers: float32 [n] in [-1, 1]. Classes and numbers: the pair of both.
    """
    ends = np.cumsum(action.classes, dtype=int)
    parts = jnp.split(vector[: action.onehots], ends[:-1]) if action.classes else []
    classes = [jnp.argmax(part).astype(jnp.int32) for part in parts]
    numbers = jnp.clip(vector[action.onehots :], -1.0, 1.0)
    if not classes:
        return numbers
    chosen = classes[0] if len(classes) == 1 else jnp.stack(classes)
    return (chosen, numbers) if action.continuous else chosen


def between(low: Any, high: Any) -> Callable[[Array], Array]:
    """Returns a function that maps numbers [A] in [-1, 1] to float32 values between `low` and `high`, in their shape.

    Bounds that are infinite are replaced as in an environment of gymnasium, see `spaces.choosable`.
    """
    least, most = np.broadcast_arrays(np.asarray(low, np.float64), np.asarray(high, np.float64))
    lowest, highest, _ = choosable(least, most, LARGEST)
    middle, half = np.float32((lowest + highest) / 2), np.float32((highest - lowest) / 2)
    return functools.partial(_stretched, middle, half, least.astype(np.float32), most.astype(np.float32))


def time_limit(env: JaxEnv, steps: int) -> JaxEnv:
    """Returns `env` with episodes that end after at most `steps` steps, which is not a true end.

    Raises UserError if `steps` is less than 1.
    """
    if steps < 1:
        raise UserError(f"the time limit is {steps} steps; it must be 1 or more")
    return env._replace(
        reset=functools.partial(_reset_counted, env),
        step=functools.partial(_step_counted, env, steps),
        render=_inside(env.render),
        metrics=_inside(env.metrics),
    )


def repeat(env: JaxEnv, times: int) -> JaxEnv:
    """Returns `env` with `times` steps for each action. Their row has the sum of their rewards; they stop at an end.

    Raises UserError if `times` is less than 1.
    """
    if times < 1:
        raise UserError(f"action_repeat is {times}; it must be 1 or more")
    return env if times == 1 else env._replace(step=functools.partial(_step_repeated, env, times))


def scale_reward(env: JaxEnv, factor: float) -> JaxEnv:
    """Returns `env` with its rewards multiplied by `factor`."""
    return env._replace(step=functools.partial(_step_scaled, env, factor))


def check(env: JaxEnv, name: str) -> None:
    """Traces `reset` and `step` once, without running them. name: the environment's name in errors.

    Raises UserError if one of them cannot be traced, if the form of the env_state changes, or if a row does not fit
    the spec, for example because an observation is float64 or a Python number.
    """
    if not isinstance(env, JaxEnv):
        raise UserError(f"env {name!r} is a {type(env).__name__}, not a JaxEnv")
    if fault := _fault(env):
        raise UserError(f"env {name!r}: {fault}")
    key = jax.eval_shape(lambda: jax.random.key(0))
    action = jax.ShapeDtypeStruct((*_lead(env.spec), env.spec.action_width), jnp.float32)
    state = _traced(env, name, "reset", key)
    after = _traced(env, name, "step", key, state, action)
    before, now = _leaves(state), _leaves(after)
    if before.keys() != now.keys():
        changed = sorted(before.keys() ^ now.keys())[0]
        raise UserError(f"env {name!r}: the env_state of reset and of step differ: only one has {changed}")
    _check_metrics(env, name, state)
    for path, leaf in before.items():
        if _form(leaf) != _form(now[path]):
            raise UserError(
                f"env {name!r}: the env_state must keep its form, but {path} is {_form(leaf)} after reset and "
                f"{_form(now[path])} after step"
            )


def uses_key(env: JaxEnv) -> bool:
    """Whether `reset` of an environment uses its key at all. If not, every episode begins in the same state."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr = jax.make_jaxpr(env.reset)(key).jaxpr
    return any(jaxpr.invars[0] is used for equation in jaxpr.eqns for used in equation.invars)


class Counted(NamedTuple):
    """The state of an environment with a time limit. time [] int32: the steps since the reset"""

    env_state: Any
    time: Array


def _first(spec: Spec, reset: Reset, key: Key) -> tuple[Any, Step]:
    env_state, obs = reset(key)
    lead, no = _lead(spec), jnp.zeros(_lead(spec), bool)
    row = Step(_fitted(spec, obs), _no_action(spec), jnp.zeros(lead, jnp.float32), ~no, no, no)
    return _strong(env_state), row


def _next(
    spec: Spec, step: Advance, native: Callable[[Array], Any], key: Key, env_state: Any, action: Array
) -> tuple[Any, Step]:
    env_state, obs, reward, terminated, truncated = step(key, env_state, native(action))
    lead = _lead(spec)
    reward = jnp.broadcast_to(jnp.asarray(reward, jnp.float32), lead)
    terminal, cut = (jnp.broadcast_to(jnp.asarray(flag, bool), lead) for flag in (terminated, truncated))
    row = Step(_fitted(spec, obs), _no_action(spec), reward, jnp.zeros(lead, bool), terminal | cut, terminal)
    return _strong(env_state), row


def _fitted(spec: Spec, obs: Any) -> dict[str, Array]:
    """Returns the observation {k: [..]} in the dtypes and shapes of `spec`. Raises UserError if it does not fit."""
    given = {key: space for key, space in spec.obs.items() if not (spec.agents > 1 and key == AGENT)}
    found = dict(_flat(obs, "")) if isinstance(obs, Mapping) else {key: obs for key in given}
    if missing := sorted(given.keys() - found.keys()):
        raise UserError(f"the observation has no key {missing[0]!r}, although the spec has one")
    fitted = {key: _fit(key, space, _lead(spec), jnp.asarray(found[key])) for key, space in given.items()}
    return {AGENT: jnp.arange(spec.agents, dtype=jnp.int32), **fitted} if spec.agents > 1 else fitted


def _flat(obs: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in obs.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _fit(key: str, space: Space, lead: tuple[int, ...], array: Array) -> Array:
    whole = space.image and space.dtype == "uint8" and space.bounds is None  # other dtypes are scaled otherwise
    kinds = "u" if whole else KINDS.get(jnp.dtype(space.dtype).kind, "iub")
    size = int(np.prod((*lead, *space.shape)))
    if is_key(array) or array.dtype.kind not in kinds or array.size != size:
        raise UserError(
            f"observation key {key!r} is {array.dtype} {list(array.shape)}, its space is "
            f"{space.dtype} {[*lead, *space.shape]}"
        )
    return array.astype(space.dtype).reshape((*lead, *space.shape))


def _strong(tree: Any) -> Any:
    """Returns a pytree whose arrays have fixed dtypes, so that `step` returns the form that it takes."""
    return jax.tree.map(lambda x: x if is_key(x) else jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def _stretched(middle: Any, half: Any, low: Any, high: Any, vector: Array) -> Array:
    numbers = jnp.clip(vector, -1.0, 1.0).reshape(np.shape(low))
    return jnp.clip(middle + half * numbers, low, high)


def _reset_counted(env: JaxEnv, key: Key) -> tuple[Counted, Step]:
    env_state, row = env.reset(key)
    return Counted(env_state, jnp.zeros((), jnp.int32)), row


def _step_counted(env: JaxEnv, steps: int, key: Key, state: Counted, action: Array) -> tuple[Counted, Step]:
    env_state, row = env.step(key, state.env_state, action)
    time = state.time + 1
    return Counted(env_state, time), row._replace(is_last=row.is_last | (time >= steps))


def _step_repeated(env: JaxEnv, times: int, key: Key, env_state: Any, action: Array) -> tuple[Any, Step]:
    keys = jax.random.split(key, times)
    forms = jax.eval_shape(env.step, key, env_state, action)[1]
    empty = jax.tree.map(lambda form: jnp.zeros(form.shape, form.dtype), forms)

    def goes_on(carry: tuple[Array, Any, Step]) -> Array:
        return (carry[0] < times) & ~jnp.any(carry[2].is_last)

    def again(carry: tuple[Array, Any, Step]) -> tuple[Array, Any, Step]:
        done, state, before = carry
        state, row = env.step(keys[done], state, action)
        return done + 1, state, row._replace(reward=before.reward + row.reward)

    return jax.lax.while_loop(goes_on, again, (jnp.zeros((), jnp.int32), env_state, empty))[1:]


def _step_scaled(env: JaxEnv, factor: float, key: Key, env_state: Any, action: Array) -> tuple[Any, Step]:
    env_state, row = env.step(key, env_state, action)
    return env_state, row._replace(reward=row.reward * jnp.float32(factor))


def _inside(function: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    return None if function is None else lambda state: function(state.env_state)


def _lead(spec: Spec) -> tuple[int, ...]:
    """Returns the shape that every array of a row begins with."""
    return (spec.agents,) if spec.agents > 1 else ()


def _no_action(spec: Spec) -> Array:
    return jnp.zeros((*_lead(spec), spec.action_width), jnp.float32)


def _fault(env: JaxEnv) -> str:
    """Returns what is wrong with the fields of an environment, or ""."""
    for what in ("reset", "step", "render", "metrics"):
        found = getattr(env, what)
        if not callable(found) and not (found is None and what in ("render", "metrics")):
            return f"{what} is a {type(found).__name__}, not a function"
    if not isinstance(env.spec, Spec):
        return f"its spec is a {type(env.spec).__name__}, not a Spec"
    obs, action, agents = env.spec.obs, env.spec.action, env.spec.agents
    if not isinstance(obs, Mapping) or not obs:
        return "the obs of its spec must be a mapping with at least one key, {name: Space}"
    for key, space in obs.items():
        if not isinstance(space, Space):
            return f"observation key {key!r} of its spec is a {type(space).__name__}, not a Space"
    if not isinstance(action, Action) or action.width < 1:
        return f"the action of its spec must be an Action of at least one number, not {action!r}"
    return "" if isinstance(agents, int) and agents > 0 else f"agents of its spec must be 1 or more, not {agents!r}"


def _traced(env: JaxEnv, name: str, what: str, *args: Any) -> Any:
    """Traces "reset" or "step" and checks its row. Returns the form of the env_state. Raises UserError."""

    def watched(*args: Any) -> Any:
        answer = getattr(env, what)(*args)
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Step)):
            raise UserError(f"{what} must return (env_state, row), it returned {_described(answer)}")
        _check_row(env.spec, what, answer[1])
        return answer[0]

    try:
        return jax.eval_shape(watched, *args)
    except UserError as error:
        raise UserError(f"env {name!r}: {error}") from None
    except Exception as error:
        raise UserError(f"env {name!r}: {what} cannot be traced by JAX: {_first_line(error)}") from error


def _check_metrics(env: JaxEnv, name: str, state: Any) -> None:
    """Raises UserError if the metrics of an environment are not a mapping from names to numbers."""
    if env.metrics is None:
        return
    try:
        found = jax.eval_shape(lambda state: jax.tree.map(jnp.asarray, env.metrics(state)), state)  # type: ignore[misc]
    except Exception as error:
        raise UserError(f"env {name!r}: metrics cannot be traced by JAX: {_first_line(error)}") from error
    if not isinstance(found, Mapping):
        raise UserError(f"env {name!r}: metrics must return {{name: number}}, it returned {_described(found)}")
    for key, number in found.items():
        if not NAME.fullmatch(str(key)):
            raise UserError(f"env {name!r}: the metric {key!r} must be named with letters, digits and _ - . / only")
        if not hasattr(number, "shape") or number.shape or number.dtype.kind not in "fiubV":
            raise UserError(f"env {name!r}: the metric {key!r} must be one number")


def _check_row(spec: Spec, what: str, row: Step) -> None:
    """Raises UserError if a row does not fit the spec. It is checked while it is traced, so Python numbers are seen."""
    if not isinstance(row.obs, Mapping) or row.obs.keys() != spec.obs.keys():
        keys = sorted(row.obs) if isinstance(row.obs, Mapping) else _described(row.obs)
        raise UserError(f"the row of {what} has the observations {keys}, the spec {sorted(spec.obs)}")
    lead = _lead(spec)
    due = {f"observation key {key!r}": (row.obs[key], space.shape, space.dtype) for key, space in spec.obs.items()}
    due["action"] = row.action, (spec.action_width,), "float32"
    due["reward"] = row.reward, (), "float32"
    due |= {flag: (getattr(row, flag), (), "bool") for flag in ("is_first", "is_last", "is_terminal")}
    for part, (array, shape, dtype) in due.items():
        wanted = f"{dtype} {[*lead, *shape]}"
        if not isinstance(array, jax.Array | np.ndarray | np.generic):
            raise UserError(f"the row of {what}: {part} is a Python {type(array).__name__}, it must be {wanted}")
        if (array.dtype.name, array.shape) != (dtype, (*lead, *shape)):
            raise UserError(f"the row of {what}: {part} is {_form(array)}, it must be {wanted}")


def _leaves(tree: Any) -> dict[str, Any]:
    return {f"env_state{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _form(array: Any) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _described(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, tuple) else f"a {type(value).__name__}"


def _first_line(error: Exception) -> str:
    """Returns the type and the first line of an error of JAX, and the last place outside of JAX."""
    skipped = ("/jax/", "/equinox/", inspect.getsourcefile(_first_line) or "")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not any(part in f.filename for part in skipped)]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}{place}"
