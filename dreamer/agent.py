"""World model + behavior + optimizer = Agent. The only file that knows both."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dreamer import contracts, plugins
from dreamer.errors import UserError
from dreamer.fields import at_least
from dreamer.interfaces import (
    PRIORITY,
    Agent,
    Array,
    Batch,
    Behavior,
    Carry,
    Dream,
    Key,
    Latent,
    Losses,
    Metrics,
    Obs,
    Params,
    Replayed,
    TrainState,
    WorldModel,
)  # fmt: skip
from dreamer.ops import optimizers, trees
from dreamer.ops.keys import named_keys
from dreamer.spaces import MASK, Spec

sg = jax.lax.stop_gradient


def _plugin_config(name: str, package: str) -> Any:
    return plugins.load(name, package).Config()


@dataclasses.dataclass(frozen=True)
class Config:
    """What the agent is made of."""

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
    "the one optimizer of both"


class Aux(NamedTuple):
    """What comes with the losses: the next extra, packed posteriors {name: [B, T, ..]}, metrics {name: []}."""

    extra: Any
    latent: Mapping[str, Array]
    metrics: Metrics


def compute_dtype(name: str) -> Any:
    """"float32", "bfloat16" or "auto" -> jax dtype for the default device."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def make(config: Config, spec: Spec, *, priorities: bool = False) -> Agent:
    """The agent for an environment, its parts found by name. priorities: see `assemble`.

    Errors: UserError when a name is unknown, an observation does not suit the world model, or a part breaks its
    contract (dreamer/contracts.py), at once or when it is traced.
    """
    shared = dict(dtype=compute_dtype(config.compute_dtype), horizon=config.horizon, contdisc=config.contdisc)
    name = config.world_model.name
    module = plugins.load(name, "dreamer.world_models")
    world_model, width = contracts.make_world_model(module, name, config.world_model, spec, **shared)
    name = config.behavior.name
    module = plugins.load(name, "dreamer.behaviors")
    behavior = contracts.make_behavior(module, name, config.behavior, spec, feat_width=width, **shared)
    return assemble(world_model, behavior, config.optimizer, spec, priorities=priorities)


def assemble(
    world_model: WorldModel,
    behavior: Behavior,
    optimizer_config: optimizers.Config,
    spec: Spec,
    *,
    priorities: bool = False,
) -> Agent:
    """An agent from its parts.

    priorities: whether updates give, beside the latents, the world model's loss on each row for a prioritised replay.
    Errors: UserError when the two parts name a loss alike.
    """
    if clash := set(world_model.scales) & set(behavior.scales):
        raise UserError(f"world model and behavior both have losses named {sorted(clash)}")
    optimizer = optimizers.make(optimizer_config)
    loss = total_loss(world_model, behavior, spec, priorities=priorities)

    def init(key: Key) -> TrainState:
        keys = named_keys(key, "world_model", "behavior", "train")
        parts = {"world_model": world_model.init(keys["world_model"]), "behavior": behavior.init(keys["behavior"])}
        params = {name: part.params for name, part in parts.items()}
        extra = {name: part.extra for name, part in parts.items()}
        extra["optimizer"] = {"learning_rate": jnp.float32(optimizer_config.learning_rate)}
        return TrainState(jnp.zeros((), jnp.int32), keys["train"], params, extra, optimizer.init(params))

    def initial_carry(envs: int) -> Carry:
        return Carry(world_model.initial(envs), jnp.zeros((envs, spec.action_width), jnp.float32))

    def act(
        params: Params, key: Key, carry: Carry, obs: Obs, is_first: Array, mode: Literal["sample", "mode"] = "sample"
    ) -> tuple[Carry, Array]:
        check_rows(spec, obs, carry.prev_action, is_first, is_first.shape)
        keys = named_keys(key, "observe", "act")
        steps = jax.tree.map(lambda x: x[:, None], (dict(obs), carry.prev_action, is_first))
        latent = world_model.observe(params["world_model"], keys["observe"], carry.latent, *steps)
        latent = jax.tree.map(lambda x: x[:, 0], latent)
        dream = make_dream(world_model, params["world_model"])
        told = {"allowed": obs[MASK] == 1} if spec.masked else {}
        action = behavior.act(params["behavior"], keys["act"], dream, latent, mode, **told)
        return Carry(latent, action), action

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Mapping[str, Array], Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        grad = jax.value_and_grad(loss, has_aux=True)
        (total, (extra, latent, metrics)), grads = grad(state.params, state.extra, key, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        rate = optimizers.learning_rate(optimizer_config, extra["optimizer"]["learning_rate"], state.step)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        params = optax.apply_updates(state.params, updates)
        extra = {**extra, "behavior": behavior.refresh(params["behavior"], extra["behavior"])}
        metrics = metrics | train_metrics(total, rate, grads, updates, params)
        return TrainState(state.step + 1, state.key, params, extra, opt_state), latent, metrics

    def report(state: TrainState, batch: Batch) -> dict[str, Array]:
        return open_loop(world_model, spec, state.params["world_model"], state.key, batch)

    return Agent(init, initial_carry, update, act, report, world_model.pack, world_model.storage)


def make_losses(world_model: WorldModel, behavior: Behavior, spec: Spec) -> Callable[..., tuple[Losses, Aux]]:
    """All losses of both parts: (params, extra, key, batch) -> losses {name: [..]}, Aux."""

    def losses(params: Params, extra: Any, key: Key, batch: Batch) -> tuple[Losses, Aux]:
        keys = named_keys(key, "world_model", "behavior")
        latent, prev_action, rows = align(world_model, spec, batch)
        losses, out = world_model.loss(
            params["world_model"], extra["world_model"], keys["world_model"], latent, prev_action, rows
        )
        chex.assert_shape(list(losses.values()), rows.reward.shape)
        start = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out.latent)
        replayed = Replayed(world_model.feat(out.latent), rows.reward, rows.is_last, rows.is_terminal)
        behavior_losses, (behavior_extra, metrics) = behavior.loss(
            params["behavior"], extra["behavior"], keys["behavior"],
            make_dream(world_model, sg(params["world_model"])), sg(start), replayed,
        )  # fmt: skip
        extra = {**extra, "world_model": out.extra, "behavior": behavior_extra}
        aux = Aux(extra, world_model.pack(sg(out.latent)), {**out.metrics, **metrics})
        return {**losses, **behavior_losses}, aux

    return losses


def total_loss(
    world_model: WorldModel, behavior: Behavior, spec: Spec, *, priorities: bool = False
) -> Callable[..., tuple[Array, Aux]]:
    """The scalar to minimise: (params, extra, key, batch) -> sum of scale * mean loss, Aux with each mean loss.

    priorities: the latents of Aux have PRIORITY beside them.
    ValueError when the names of losses and scales differ, so that no term is forgotten.
    """
    all_losses = make_losses(world_model, behavior, spec)
    scales = {**world_model.scales, **behavior.scales}

    def total(params: Params, extra: Any, key: Key, batch: Batch) -> tuple[Array, Aux]:
        losses, aux = all_losses(params, extra, key, batch)
        if set(losses) != set(scales):
            raise ValueError(f"losses and scales differ: {sorted(set(losses) ^ set(scales))}")
        means = {name: value.astype(jnp.float32).mean() for name, value in losses.items()}
        metrics = aux.metrics | {f"loss/{name}": mean for name, mean in means.items()}
        total = jnp.sum(jnp.stack([scales[name] * mean for name, mean in means.items()]))
        if priorities:
            aux = aux._replace(latent={**aux.latent, PRIORITY: row_losses(world_model, losses)})
        return total, aux._replace(metrics=metrics)

    return total


def row_losses(world_model: WorldModel, losses: Losses) -> Array:
    """[B, T] float32: the sum of scale * loss over the world model's terms, without a gradient."""
    return sg(jnp.sum(jnp.stack([s * losses[n].astype(jnp.float32) for n, s in world_model.scales.items()]), 0))


def align(world_model: WorldModel, spec: Spec, batch: Batch) -> tuple[Latent, Array, Batch]:
    """A batch as stored -> initial latent [B, ..], prev_action [B, T, A], and the T trained rows.

    The one place where the action of row t becomes the previous action of row t + 1. A context row lends its latent
    and its action and is dropped; without one, sequences start from the initial latent.
    """
    check_rows(spec, batch.obs, batch.action, batch.is_first, batch.reward.shape)
    batch_size = batch.reward.shape[0]
    prev_action = jnp.concatenate([jnp.zeros_like(batch.action[:, :1]), batch.action[:, :-1]], 1)
    if not batch.latent:
        return world_model.initial(batch_size), prev_action, batch
    latent = world_model.unpack({name: x[:, 0] for name, x in batch.latent.items()})
    rows = jax.tree.map(lambda x: x[:, 1:], batch._replace(latent={}))
    return latent, prev_action[:, 1:], rows


def check_rows(spec: Spec, obs: Obs, action: Array, is_first: Array, lead: tuple[int, ...]) -> None:
    """AssertionError unless obs, action and is_first have the leading axes `lead` and the shapes of the spec."""
    if set(obs) != set(spec.obs):
        raise AssertionError(f"observation keys {sorted(obs)} are not those of the spec, {sorted(spec.obs)}")
    wanted = {f"observation {name!r}": (obs[name], space.shape) for name, space in spec.obs.items()}
    wanted |= {"action": (action, (spec.action_width,)), "is_first": (is_first, ())}
    for name, (array, shape) in wanted.items():
        if array.shape != (*lead, *shape):
            raise AssertionError(f"{name} has shape {array.shape}, not {(*lead, *shape)}")


def make_dream(world_model: WorldModel, params: Params) -> Dream:
    """The world model with its parameters closed over."""
    return Dream(
        imagine=lambda key, latent, action: world_model.imagine(params, key, latent, action),
        feat=world_model.feat,
        predict=lambda feat: world_model.predict(params, feat),
        allowed=None if world_model.allowed is None else functools.partial(world_model.allowed, params),
    )


def train_metrics(total: Array, rate: Array, grads: Params, updates: Params, params: Params) -> Metrics:
    """Sizes of loss, unclipped gradients, applied updates and the parameters after them."""
    return {
        "train/loss": total, "train/learning_rate": rate, "train/grad_norm": trees.norm(grads),
        "train/grad_rms": trees.rms(grads), "train/update_rms": trees.rms(updates),
        "train/update_max": trees.largest(updates), "train/param_rms": trees.rms(params),
    }  # fmt: skip


def open_loop(world_model: WorldModel, spec: Spec, params: Params, key: Key, batch: Batch) -> dict[str, Array]:
    """Observes the first half of each sequence and dreams the rest under the true actions.

    Returns {"truth/k", "dream/k": [B, T, ..]} in the units of the observation, at most 6 sequences.
    """
    latent, prev_action, rows = align(world_model, spec, jax.tree.map(lambda x: x[:6], batch))
    keys = named_keys(key, "report_observe", "report_imagine")
    half = rows.reward.shape[1] // 2
    seen = {name: x[:, :half] for name, x in rows.obs.items()}
    observed = world_model.observe(
        params, keys["report_observe"], latent, seen, prev_action[:, :half], rows.is_first[:, :half]
    )

    def step(latent: Latent, inputs: tuple[Key, Array]) -> tuple[Latent, Latent]:
        latent = world_model.imagine(params, inputs[0], latent, inputs[1])
        return latent, latent

    future = prev_action[:, half:].swapaxes(0, 1)
    last = jax.tree.map(lambda x: x[:, -1], observed)
    _, dreamed = jax.lax.scan(step, last, (jax.random.split(keys["report_imagine"], len(future)), future))
    latents = jax.tree.map(lambda a, b: jnp.concatenate([a, b.swapaxes(0, 1)], 1), observed, dreamed)
    decoded = world_model.decode(params, latents)
    return {f"dream/{k}": x for k, x in decoded.items()} | {f"truth/{k}": rows.obs[k] for k in decoded}
