"""Joins a world model, a behavior and optimizers into an Agent.

Only this file and losses.py connect a world model to a behavior.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_type_hints

import jax
import jax.numpy as jnp
import optax

from dreamer import contracts, plugins
from dreamer.coerce import coerce
from dreamer.errors import UserError, nearest
from dreamer.fields import at_least
from dreamer.interfaces import (
    Agent,
    Array,
    Ask,
    Batch,
    Behavior,
    Carry,
    Hyper,
    Key,
    Metrics,
    Mode,
    Obs,
    Params,
    State,
    TrainState,
    Update,
    Variables,
    WorldModel,
)  # fmt: skip
from dreamer.losses import PARTS, align, check_rows, joined, make_dream, total_loss
from dreamer.ops import optimizers, trees
from dreamer.ops.keys import named_keys
from dreamer.spaces import MASK, Spec


def _plugin_config(name: str, package: str) -> Any:
    return plugins.load(name, package).Config()


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the agent: world model, behavior, optimizers, discount and precision."""

    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    "precision of the networks; auto = float32 on CPU, bfloat16 on accelerators. Parameters are always float32"
    horizon: Annotated[float, at_least(1)] = 333.0
    "discount horizon: future rewards are weighted by 1 - 1 / horizon per step"
    contdisc: bool = True
    "fold the discount into the world model's continue prediction"
    world_model: Any = dataclasses.field(default_factory=lambda: _plugin_config("rssm", "dreamer.world_models"))
    "the world model, a plug-in"
    behavior: Any = dataclasses.field(default_factory=lambda: _plugin_config("actor_critic", "dreamer.behaviors"))
    "the behavior, a plug-in"
    optimizer: optimizers.Config = optimizers.Config()
    "the optimizer of all parameters without an entry in `optimizers`"
    optimizers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    "changes to `optimizer` for parameters whose names begin with a prefix, such as behavior or world_model/dec"

    def __post_init__(self) -> None:
        optimizer_configs(self)


def optimizer_configs(config: Config) -> dict[str, optimizers.Config]:
    """Returns the optimizers of an agent as {prefix of parameter names: Config}.

    The entry "" is the optimizer of all parameters that match no other prefix. Raises UserError when an optimizer has
    an unknown key or an invalid value.
    """
    kinds = get_type_hints(optimizers.Config)
    found = {"": config.optimizer}
    for prefix, differences in config.optimizers.items():
        changes = {}
        for name, value in differences.items():
            if name not in kinds:
                raise UserError(f"optimizers.{prefix}: unknown key {name!r}{nearest(name, kinds)}")
            try:
                changes[name] = coerce(value, kinds[name])
            except ValueError as error:
                raise UserError(f"optimizers.{prefix}.{name} must be {error.args[0]}, not {value!r}") from error
        try:
            found[prefix] = dataclasses.replace(config.optimizer, **changes)
        except (UserError, ValueError) as error:
            raise UserError(f"optimizers.{prefix}: {error}") from error
    return found


def compute_dtype(name: str) -> Any:
    """Returns the dtype called "float32" or "bfloat16". "auto" means float32 on CPU and bfloat16 on accelerators."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def make(config: Config, spec: Spec, *, priorities: bool = False) -> Agent:
    """Makes the agent for an environment from the parts that the config names. priorities: see `assemble`.

    A world model's module may have a function complete(config) -> config, which adds the settings of other parts that
    follow from its own, such as the updates in which an optimizer is active.
    Raises UserError when a name is unknown, an observation does not suit the world model, the behavior needs rewards
    but the world model is not `rewarded`, or a part breaks its contract (dreamer/contracts.py). The functions of the
    Agent also raise UserError, while jax traces them.
    """
    shared = dict(dtype=compute_dtype(config.compute_dtype), horizon=config.horizon, contdisc=config.contdisc)
    name = config.world_model.name
    module = plugins.load(name, "dreamer.world_models")
    config = getattr(module, "complete", lambda given: given)(config)
    world_model, width = contracts.make_world_model(module, name, config.world_model, spec, **shared)
    name = config.behavior.name
    module = plugins.load(name, "dreamer.behaviors")
    widths = dict(feat_width=width, deter_width=world_model.deter_width)
    behavior = contracts.make_behavior(module, name, config.behavior, spec, **widths, **shared)
    unmet = sorted(behavior.needs & {"reward", "cont"})
    if unmet and getattr(config.world_model, "rewarded", True) is False:
        raise UserError(
            f"the behavior {name!r} needs {', '.join(unmet)}, which the world model does not predict with "
            "agent.world_model.rewarded: false; set it to true, or agent.behavior.name to random"
        )
    return assemble(world_model, behavior, optimizer_configs(config), spec, priorities=priorities)


def assemble(
    world_model: WorldModel,
    behavior: Behavior,
    optimizer: optimizers.Config | Mapping[str, optimizers.Config],
    spec: Spec,
    *,
    priorities: bool = False,
) -> Agent:
    """Joins a world model, a behavior and optimizers into an agent.

    optimizer: one for all parameters, or several as returned by `optimizer_configs`.
    priorities: whether updates return how badly each row was predicted, for a prioritised replay.
    Raises UserError when both parts have a loss of the same name, when the behavior needs a prediction that the world
    model lacks, or when an optimizer's prefix matches no parameter.
    """
    configs = {"": optimizer} if isinstance(optimizer, optimizers.Config) else dict(optimizer)
    scales = check_parts(world_model, behavior)
    params_form = jax.eval_shape(lambda: _init_parts(world_model, behavior, jax.random.key(0))[0])
    check_prefixes(configs, params_form)
    transformation, prefixes = optimizers.partition(configs, params_form)

    def init(key: Key) -> TrainState:
        keys = named_keys(key, *PARTS, "train")
        params, extra, hyper = _init_parts(world_model, behavior, key)
        hyper["scale"] = {name: jnp.float32(scale) for name, scale in scales.items()}
        hyper["learning_rate"] = {prefix: jnp.float32(one.learning_rate) for prefix, one in configs.items()}
        opt_state = transformation.init(params)
        return TrainState(jnp.zeros((), jnp.int32), keys["train"], params, extra, hyper, opt_state)

    def initial_carry(envs: int) -> Carry:
        prev_action = jnp.zeros((envs, spec.action_width), jnp.float32)
        return Carry(world_model.initial(envs), prev_action, behavior.initial(envs))

    def report(state: TrainState, batch: Batch) -> dict[str, Array]:
        own = variables(state)
        shown = in_mind(world_model, behavior, spec, own, state.key, batch)
        return joined(open_loop(world_model, spec, own["world_model"], state.key, batch), shown)

    def pack(state: State) -> Mapping[str, Array]:
        return world_model.pack(world_model.latent(state))

    loss = total_loss(world_model, behavior, spec, priorities=priorities)
    update = make_update(behavior, loss, transformation, configs, prefixes)
    act, encode = make_act(world_model, behavior, spec), make_encode(world_model, spec)
    return Agent(
        init, variables, initial_carry, update, act, report, encode, pack, world_model.storage, scales, world_model,
        behavior, frozenset(world_model.reads),
    )  # fmt: skip


def make_update(
    behavior: Behavior, loss: Callable[..., Any], transformation: optax.GradientTransformation,
    configs: Mapping[str, optimizers.Config], prefixes: Any,
) -> Callable[[TrainState, Batch], tuple[TrainState, Update]]:  # fmt: skip
    """Returns `Agent.update`, which takes one gradient step and then calls `behavior.refresh`.

    loss: as returned by `total_loss` | transformation, prefixes: as returned by `optimizers.partition`
    configs: as returned by `optimizer_configs`
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Update]:
        key = jax.random.fold_in(state.key, state.step)
        grad = jax.value_and_grad(loss, has_aux=True)
        (total, aux), grads = grad(state.params, state.extra, state.hyper, key, batch)
        updates, opt_state = transformation.update(grads, state.opt_state, state.params)
        rates = {
            prefix: optimizers.learning_rate(one, state.hyper["learning_rate"][prefix], state.step)
            for prefix, one in configs.items()
        }
        updates = jax.tree.map(lambda u, prefix: -rates[prefix] * u, updates, prefixes)
        after = state._replace(
            step=state.step + 1, params=optax.apply_updates(state.params, updates), extra=aux.extra, opt_state=opt_state
        )
        refreshed = behavior.refresh(variables(after)["behavior"])
        after = after._replace(extra={**after.extra, "behavior": refreshed})
        metrics = joined(aux.metrics, train_metrics(total, rates, grads, updates, after.params))
        return after, Update(aux.latent, metrics, aux.surprise)

    return update


def make_act(world_model: WorldModel, behavior: Behavior, spec: Spec) -> Callable[..., tuple[Carry, Array]]:
    """Returns `Agent.act`, which observes one time step of each environment and lets the behavior choose actions."""

    def act(
        variables: Mapping[str, Variables], key: Key, carry: Carry, obs: Obs, is_first: Array, mode: Mode = "sample",
        command: Mapping[str, Array] | None = None,
    ) -> tuple[Carry, Array]:  # fmt: skip
        check_rows(spec, obs, carry.prev_action, is_first, is_first.shape)
        keys = named_keys(key, "observe", "act")
        steps = jax.tree.map(lambda x: x[:, None], (dict(obs), carry.prev_action, is_first))
        state, _ = world_model.observe(variables["world_model"], keys["observe"], carry.state, *steps)
        dream = make_dream(world_model, variables["world_model"])
        ask = Ask(is_first, obs[MASK] == 1 if spec.masked else None, command or {})
        action, own = behavior.act(variables["behavior"], keys["act"], dream, state, carry.behavior, ask, mode)
        return Carry(state, action, own), action

    return act


def make_encode(world_model: WorldModel, spec: Spec) -> Callable[..., Array]:
    """Returns `Agent.encode`, which computes the features of observations as if each began an episode."""

    def encode(variables: Mapping[str, Variables], key: Key, obs: Obs) -> Array:
        envs = len(next(iter(obs.values())))
        blank = (jnp.zeros((envs, spec.action_width)), jnp.ones(envs, bool))
        steps = jax.tree.map(lambda x: x[:, None], (dict(obs), *blank))
        state, _ = world_model.observe(variables["world_model"], key, world_model.initial(envs), *steps)
        return world_model.feat(world_model.latent(state))

    return encode


def variables(state: TrainState) -> dict[str, Variables]:
    """Returns {part: Variables} of a train state, for the parts "world_model" and "behavior"."""
    return {part: Variables(state.params[part], state.extra[part], state.hyper[part]) for part in PARTS}


def _init_parts(
    world_model: WorldModel, behavior: Behavior, key: Key
) -> tuple[dict[str, Params], dict[str, Any], dict[str, Hyper]]:
    """Initialises the world model and the behavior. Returns params, extra and hyper, each as {part: ..}."""
    keys = named_keys(key, *PARTS)
    parts = {"world_model": world_model.init(keys["world_model"]), "behavior": behavior.init(keys["behavior"])}
    params, extra, hyper = ({part: v[kind] for part, v in parts.items()} for kind in range(3))
    return params, extra, hyper


def check_parts(world_model: WorldModel, behavior: Behavior) -> dict[str, float]:
    """Returns the scales {loss name: weight in the total loss} of both parts.

    Raises UserError when both have a loss of the same name, or when the behavior needs a prediction that the world
    model lacks.
    """
    if clash := set(world_model.scales) & set(behavior.scales):
        raise UserError(f"world model and behavior both have losses named {sorted(clash)}")
    predicted = jax.eval_shape(
        lambda: world_model.predict(
            world_model.init(jax.random.key(0)), world_model.feat(world_model.latent(world_model.initial(1)))
        )
    )
    if lacking := sorted(behavior.needs - set(predicted)):
        raise UserError(
            f"the behavior needs {', '.join(lacking)}, which the world model does not predict; it predicts "
            f"{', '.join(sorted(predicted)) or 'nothing'}"
        )
    return {**world_model.scales, **behavior.scales}


def check_prefixes(configs: Mapping[str, optimizers.Config], params: Any) -> None:
    """Raises UserError when a prefix in `configs`, other than "", matches no parameter's name in the tree `params`."""
    used = set(jax.tree.leaves(optimizers.prefixes_of(configs, params)))
    if unknown := sorted(set(configs) - used - {""}):
        leaves = jax.tree.leaves_with_path(params)
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        choices = {"/".join(name.split("/")[:depth]) for name in names for depth in (1, 2)}
        raise UserError(
            f"agent.optimizers.{unknown[0]}: no parameter's name begins with {unknown[0]!r}"
            f"{nearest(unknown[0], choices)}"
        )


def train_metrics(
    total: Array, rates: Mapping[str, Array], grads: Params, updates: Params, params: Params
) -> Metrics:
    """Returns the metrics of an update, each []: learning rates, loss, and sizes of gradients, updates and parameters.

    total: the loss | rates {prefix of parameter names: learning rate []} | grads: the gradients before clipping
    params: the parameters after the update
    """
    named = {f"train/learning_rate{f'/{prefix}' if prefix else ''}": rate for prefix, rate in rates.items()}
    return named | {
        "train/loss": total, "train/grad_norm": trees.norm(grads),
        "train/grad_rms": trees.rms(grads), "train/update_rms": trees.rms(updates),
        "train/update_max": trees.largest(updates), "train/param_rms": trees.rms(params),
    }  # fmt: skip


def open_loop(world_model: WorldModel, spec: Spec, v: Variables, key: Key, batch: Batch) -> dict[str, Array]:
    """Returns true and dreamed observations of the first B <= 6 sequences: {"truth/k", "dream/k": [B, T, ..]}.

    k is the name of an observation that the model decodes. The model observes the first half of the T rows, and dreams
    the second half with the true actions. Adds {"seen/name": [B, T, h, w, 1 or 3]}, the `pictures` of the model.
    """
    state, prev_action, rows = align(world_model, spec, jax.tree.map(lambda x: x[:6], batch))
    keys = named_keys(key, "report_observe", "report_imagine")
    half = rows.reward.shape[1] // 2
    seen = {name: x[:, :half] for name, x in rows.obs.items()}
    state, observed = world_model.observe(
        v, keys["report_observe"], state, seen, prev_action[:, :half], rows.is_first[:, :half]
    )

    def step(state: State, inputs: tuple[Key, Array]) -> tuple[State, Any]:
        state = world_model.imagine(v, inputs[0], state, inputs[1])
        return state, world_model.latent(state)

    future = prev_action[:, half:].swapaxes(0, 1)
    _, dreamed = jax.lax.scan(step, state, (jax.random.split(keys["report_imagine"], len(future)), future))
    latents = jax.tree.map(lambda a, b: jnp.concatenate([a, b.swapaxes(0, 1)], 1), observed, dreamed)
    decoded = world_model.decode(v, latents)
    seen_as = {f"seen/{name}": x for name, x in world_model.pictures(v, rows.obs).items()}
    return {f"dream/{k}": x for k, x in decoded.items()} | {f"truth/{k}": rows.obs[k] for k in decoded} | seen_as


def in_mind(
    world_model: WorldModel, behavior: Behavior, spec: Spec, own: Mapping[str, Variables], key: Key, batch: Batch
) -> dict[str, Array]:
    """Returns the `pictures` of the behavior at the rows of the first B <= 6 sequences, all of which are observed.

    own: the Variables of both parts. The result is {"mind/name": [B, T, h, w, 1 or 3]}.
    """
    state, prev_action, rows = align(world_model, spec, jax.tree.map(lambda x: x[:6], batch))
    keys = named_keys(key, "mind_observe", "mind")
    v = own["world_model"]
    _, latents = world_model.observe(v, keys["mind_observe"], state, rows.obs, prev_action, rows.is_first)
    dream, feat = make_dream(world_model, v), world_model.feat(latents)
    seen = behavior.pictures(own["behavior"], keys["mind"], dream, feat, rows.obs)
    return {f"mind/{name}": picture for name, picture in seen.items()}
