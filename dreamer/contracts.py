"""Checks that plug-ins return what `interfaces.py` requires. An error is one line: plug-in, function and fault.

The functions of a WorldModel or a Behavior are wrapped. The wrappers compare shapes while jax traces the functions, so
that a compiled step has no overhead.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from dreamer.errors import UserError, one_line
from dreamer.interfaces import Ask, Batch, Behavior, Learned, Losses, State, Variables, WorldModel
from dreamer.spaces import Spec

LONGEST = 400  # characters that are kept of another library's message
NOT_FUNCTIONS = ("scales", "storage", "needs", "deter_width", "reads")
PREDICTIONS = ("reward", "cont")  # predictions of one number per row
SIGNATURES = {
    WorldModel: "make(config, spec, *, dtype, horizon, contdisc) -> WorldModel",
    Behavior: "make(config, spec, *, feat_width, dtype, horizon, contdisc) -> Behavior",
}  # fmt: skip


class Fault(Exception):
    """Raised when a function of a plug-in has returned a wrong result. The message describes the result."""


class Plugin(NamedTuple):
    """A plug-in. label: its name in errors, such as "world model 'my_lab.model'" | spec: the Spec of its environment"""

    label: str
    spec: Spec


def make_world_model(module: Any, name: str, config: Any, spec: Spec, **shared: Any) -> tuple[WorldModel, int]:
    """Makes and checks the world model of a plug-in's module. Returns the model and the width F of its features.

    name: the plug-in's name for messages | shared: the keyword arguments dtype, horizon and contdisc of `make`
    Raises UserError when the plug-in breaks the contract. So do the functions of the model, while jax traces them.
    """
    plugin = Plugin(f"world model {name!r}", spec)
    model: WorldModel = _made(plugin, module, WorldModel, (config, spec), shared)
    checks: dict[str, Callable] = {
        "init": _is_variables,
        "imagine": lambda out, v, key, state, action: _same(out, state, "state"),
        "observe": lambda out, *args: _is_posterior(out, model, *args),
        "starts": lambda out, v, latent, prev_action, is_first: _is_start(out, model.initial, is_first.size),
        "feat": _is_array,
        "predict": _is_prediction,
        "loss": lambda out, v, key, state, prev_action, batch: _is_model_loss(out, model.scales, batch, v.extra),
        "pack": lambda out, latent: _is_packed(out, model.storage),
        "decode": lambda out, v, latent: _is_decoded(out, spec),
        "pictures": lambda out, v, obs: _are_pictures(out, obs),
        "from_deter": lambda out, v, deter: _is_latent(out, model, deter),
    }
    model = _guarded(plugin, model, checks)
    if unknown := sorted(set(model.reads) - set(model.storage)):
        raise UserError(f"{plugin.label}: reads names {unknown[0]!r}, which is not in storage: {sorted(model.storage)}")
    shape = jax.eval_shape(lambda: model.feat(model.latent(model.initial(1)))).shape
    if len(shape) != 2 or shape[0] != 1:
        raise UserError(f"{plugin.label}: feat(latent(initial(1))) has shape {list(shape)}, not [1, F]")
    if not isinstance(model.deter_width, int) or not 0 <= model.deter_width <= shape[-1]:
        raise UserError(f"{plugin.label}: deter_width is {model.deter_width!r}, not from 0 to F, {shape[-1]}")
    return model, shape[-1]


def make_behavior(module: Any, name: str, config: Any, spec: Spec, **shared: Any) -> Behavior:
    """Makes and checks the behavior of a plug-in's module. name, errors: as in `make_world_model`.

    shared: the keyword arguments feat_width, dtype, horizon and contdisc of `make`; deter_width, if it takes it
    """
    plugin = Plugin(f"behavior {name!r}", spec)
    if "deter_width" in shared and not _takes(getattr(module, "make", None), "deter_width"):
        shared.pop("deter_width")
    behavior: Behavior = _made(plugin, module, Behavior, (config, spec), shared)
    checks: dict[str, Callable] = {
        "init": _is_variables,
        "act": lambda out, v, key, dream, state, carry, ask, mode: _is_act(out, carry, ask, spec),
        "loss": lambda out, v, *rest: _is_behavior_loss(out, behavior.scales, v.extra),
        "refresh": lambda out, v: _same(out, v.extra, "extra"),
        "pictures": lambda out, v, key, dream, feat, obs: _are_pictures(out, obs),
    }
    return _guarded(plugin, behavior, checks)


# The record -----------------------------------------------------------------------------------------------------------


def _made(plugin: Plugin, module: Any, record: Any, args: tuple, shared: Mapping[str, Any]) -> Any:
    """Calls the module's `make`, checks the fields of the result, and returns it as a `record`.

    record: the class WorldModel or Behavior | args, shared: the arguments of `make`
    """
    if not callable(getattr(module, "make", None)):
        raise UserError(f"{plugin.label} has no function {SIGNATURES[record]}")
    made = _called(plugin, "make", module.make, args, shared)
    missing = [f for f in record._fields if not hasattr(made, f) and f not in record._field_defaults]
    if missing:
        kind = type(made).__name__
        raise UserError(f"{plugin.label}: make returns a {kind}, not a {record.__name__}: no {missing[0]!r}")
    made = record(*(getattr(made, f, record._field_defaults.get(f)) for f in record._fields))
    for field in record._fields:
        value = getattr(made, field)
        if field not in NOT_FUNCTIONS and not callable(value):
            raise UserError(f"{plugin.label}: {field} is a {type(value).__name__}, not a function")
        if field in ("needs", "reads") and not isinstance(value, frozenset | set):
            raise UserError(f"{plugin.label}: {field} is a {type(value).__name__}, not a set of names")
        if field in ("scales", "storage") and not isinstance(value, Mapping):
            raise UserError(f"{plugin.label}: {field} is a {type(value).__name__}, not a mapping by name")
    for loss, scale in made.scales.items():
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise UserError(f"{plugin.label}: the scale of loss {loss!r} is a {type(scale).__name__}, not a number")
    return made


def _takes(function: Any, name: str) -> bool:
    """Returns whether `function` has a parameter called `name`, by which it asks for an argument that few need."""
    return callable(function) and name in inspect.signature(function).parameters


def _guarded(plugin: Plugin, record: Any, checks: Mapping[str, Callable]) -> Any:
    """Returns `record` with each function wrapped, so that its result is checked and an error names the function.

    record: a WorldModel or a Behavior | checks {name of a function: check(result, *arguments)}
    """
    functions = {f: getattr(record, f) for f in record._fields if callable(getattr(record, f))}
    return record._replace(**{f: _guard(plugin, f, function, checks.get(f)) for f, function in functions.items()})


def _guard(plugin: Plugin, name: str, function: Callable, check: Callable | None) -> Callable:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        out = _called(plugin, name, function, args, kwargs)
        if check is not None:
            try:
                check(out, *args, **kwargs)
            except Fault as fault:
                raise UserError(f"{plugin.label}: {name} returns {fault}") from None
        return out

    return guarded


def _called(plugin: Plugin, name: str, function: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
    except (UserError, jax.errors.JaxRuntimeError):  # `devices.errors` explains the errors of a device
        raise
    except Exception as error:
        text = one_line(error)
        if len(text) > LONGEST:  # the file and line are at the end
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        raise UserError(f"{plugin.label}: {name} failed: {text}") from error


# The results of functions ---------------------------------------------------------------------------------------------


def _is_variables(out: Any, *args: Any) -> None:
    if not isinstance(out, Variables):
        raise Fault(f"a {type(out).__name__}, not Variables(params, extra, hyper)")


def _is_array(out: Any, *args: Any) -> None:
    if not hasattr(out, "shape"):
        raise Fault(f"a {type(out).__name__}, not an array")


def _is_posterior(
    out: Any, model: WorldModel, v: Any, key: Any, state: State, obs: Any, action: Any, is_first: Any
) -> None:
    if not isinstance(out, tuple) or len(out) != 2:
        raise Fault(f"a {type(out).__name__}, not a pair (state, latent)")
    _same(out[0], state, "state")
    steps = is_first.shape[1]
    latent = jax.eval_shape(model.latent, state)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], steps, *x.shape[1:]), x.dtype), latent)
    _same(out[1], wanted, "latent")


def _is_start(out: Any, initial: Callable[[int], State], count: int) -> None:
    _same(out, jax.eval_shape(lambda: initial(count)), "state")


def _is_prediction(out: Any, v: Any, feat: Any) -> None:
    if not isinstance(out, Mapping):
        raise Fault(f"a {type(out).__name__}, not a mapping by name, such as {{'reward', 'cont'}}")
    for name, value in out.items():
        shape = getattr(value, "shape", None)
        whole = feat.shape[:-1]
        if shape is None or shape[: len(whole)] != whole or (name in PREDICTIONS and shape != whole):
            raise Fault(f"{name} of shape {_shape(value)}, not {list(whole)}")


def _is_model_loss(out: Any, scales: Mapping, batch: Batch, extra: Any) -> None:
    if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[1], Learned):
        raise Fault(f"a {type(out).__name__}, not a pair (losses, Learned)")
    losses, more = out
    _is_losses(losses, scales)
    rows, steps = batch.reward.shape
    for name, value in losses.items():
        if value.ndim != 2 or value.shape[0] != rows or value.shape[1] > steps:
            raise Fault(f"loss {name!r} of shape {_shape(value)}, not [{rows}, {steps}] or shorter in time, a number "
                        "for each row [B, T]")  # fmt: skip
    _same(more.extra, extra, "extra")
    _is_metrics(more.metrics)
    if more.surprise is not None and more.surprise.shape != (rows, steps):
        raise Fault(f"a surprise of shape {_shape(more.surprise)}, not [{rows}, {steps}], a number for each row [B, T]")


def _is_behavior_loss(out: Any, scales: Mapping, extra: Any) -> None:
    if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[1], tuple) or len(out[1]) != 2:
        raise Fault(f"a {type(out).__name__}, not losses, (extra, metrics)")
    losses, (new, metrics) = out
    _is_losses(losses, scales)
    _same(new, extra, "extra")
    _is_metrics(metrics)


def _is_losses(losses: Losses, scales: Mapping) -> None:
    if not isinstance(losses, Mapping):
        raise Fault(f"losses as a {type(losses).__name__}, not a mapping by name")
    for name in sorted(set(losses) ^ set(scales)):
        without = "has no scale" if name in losses else "has a scale and is not among its losses"
        raise Fault(f"losses {sorted(losses)} for scales {sorted(scales)}: {name!r} {without}")
    for name, value in losses.items():
        if not hasattr(value, "dtype") or not jax.numpy.issubdtype(value.dtype, jax.numpy.floating):
            raise Fault(f"loss {name!r} as {getattr(value, 'dtype', type(value).__name__)}, not an array of floats")


def _is_metrics(metrics: Any) -> None:
    for name, value in metrics.items() if isinstance(metrics, Mapping) else [("metrics", metrics)]:
        if jax.numpy.ndim(value) != 0:
            raise Fault(f"metric {name!r} of shape {_shape(value)}, not one number")


def _is_packed(out: Any, storage: Mapping) -> None:
    if set(out) != set(storage):
        raise Fault(f"{sorted(out)}, but storage describes {sorted(storage)}")
    for name, value in out.items():
        wanted = tuple(storage[name].shape)
        if tuple(value.shape)[len(value.shape) - len(wanted) :] != wanted:
            raise Fault(f"{name!r} of shape {_shape(value)}, but storage declares [.., {', '.join(map(str, wanted))}]")


def _is_decoded(out: Any, spec: Spec) -> None:
    if unknown := sorted(set(out) - set(spec.obs)):
        raise Fault(f"{unknown[0]!r}, which is no observation; there are {sorted(spec.obs)}")


def _is_latent(out: Any, model: WorldModel, deter: Any) -> None:
    one = jax.eval_shape(lambda: model.latent(model.initial(1)))
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*deter.shape[:-1], *x.shape[1:]), x.dtype), one)
    _same(out, wanted, "latent")


def _are_pictures(out: Any, obs: Any) -> None:
    lead = next(iter(obs.values())).shape[:2]
    for name, picture in out.items():
        if picture.ndim != 5 or picture.shape[:2] != lead or picture.shape[-1] not in (1, 3):
            raise Fault(f"{name!r} of shape {_shape(picture)}, not [{lead[0]}, {lead[1]}, h, w, 1 or 3]")


def _is_act(out: Any, carry: Any, ask: Ask, spec: Spec) -> None:
    if not isinstance(out, tuple) or len(out) != 2:
        raise Fault(f"a {type(out).__name__}, not a pair (action, carry)")
    wanted = (ask.is_first.shape[0], spec.action_width)
    if getattr(out[0], "shape", None) != wanted:
        raise Fault(f"an action of shape {_shape(out[0])}, not {list(wanted)} [E, A]")
    _same(out[1], carry, "carry")


def _same(out: Any, wanted: Any, what: str) -> None:
    """Raises Fault for the first leaf of `out` whose name or shape differs from `wanted`. what: a noun for `out`."""
    found, asked = _leaves(out), _leaves(wanted)
    for name in sorted(set(found) ^ set(asked)):
        raise Fault(f"{what} {'with' if name in found else 'without'} {name or 'a leaf'}, which it was "
                    f"{'not ' if name in found else ''}given")  # fmt: skip
    for name, leaf in found.items():
        if leaf.shape != asked[name].shape:
            raise Fault(f"{what}{name} of shape {_shape(leaf)}, not {_shape(asked[name])}")


def _leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _shape(value: Any) -> str:
    return str(list(getattr(value, "shape", ())))
