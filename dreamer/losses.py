"""Computes all losses of a world model and a behavior on one batch, and their weighted sum, which an update minimises.

Here the action of row t becomes the previous action of row t + 1. Gradients from dreams do not reach the world model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer.errors import UserError
from dreamer.interfaces import (
    Array,
    Batch,
    Behavior,
    Dream,
    Key,
    Losses,
    Metrics,
    Obs,
    Params,
    Replayed,
    State,
    Variables,
    WorldModel,
)  # fmt: skip
from dreamer.ops.keys import named_keys
from dreamer.spaces import Spec

sg = jax.lax.stop_gradient
PARTS = ("world_model", "behavior")


class Aux(NamedTuple):
    """The results, besides losses, of the functions that `make_losses` and `total_loss` return.

    extra {part: extra}: the next extra | latent {name: [B, T, ..]}: the packed posterior latents | metrics {name: []}
    surprise [B, T]: how badly each row was predicted; None: not returned by the world model, or not wanted
    """

    extra: Any
    latent: Mapping[str, Array]
    metrics: Metrics
    surprise: Array | None


def make_losses(world_model: WorldModel, behavior: Behavior, spec: Spec) -> Callable[..., tuple[Losses, Aux]]:
    """Returns a function that computes all losses: (params, extra, hyper, key, batch) -> losses {name: [..]}, Aux.

    params, extra and hyper hold both parts, as in a TrainState.
    """

    def losses(params: Params, extra: Any, hyper: Any, key: Key, batch: Batch) -> tuple[Losses, Aux]:
        keys = named_keys(key, *PARTS)
        own = {part: Variables(params[part], extra[part], hyper[part]) for part in PARTS}
        state, prev_action, rows = align(world_model, spec, batch)
        losses, out = world_model.loss(own["world_model"], keys["world_model"], state, prev_action, rows)
        check_losses(losses, rows)
        frozen = own["world_model"]._replace(params=sg(params["world_model"]))
        start = world_model.starts(frozen, sg(out.latent), prev_action, rows.is_first)
        behavior_losses, (behavior_extra, metrics) = behavior.loss(
            own["behavior"], keys["behavior"], make_dream(world_model, frozen), sg(start),
            Replayed(rows, world_model.feat(out.latent)),
        )  # fmt: skip
        extra = {**extra, "world_model": out.extra, "behavior": behavior_extra}
        aux = Aux(extra, world_model.pack(sg(out.latent)), joined(out.metrics, metrics), out.surprise)
        return {**losses, **behavior_losses}, aux

    return losses


def check_losses(losses: Losses, rows: Batch) -> None:
    """Raises AssertionError unless each loss of a world model has the shape [B, T'] with T' <= T."""
    for name, loss in losses.items():
        if loss.ndim != 2 or len(loss) != len(rows.reward) or loss.shape[1] > rows.reward.shape[1]:
            raise AssertionError(f"loss {name!r} has shape {loss.shape}, not [B, T'] for T' up to {rows.reward.shape}")


def joined(metrics: Metrics, more: Metrics) -> Metrics:
    """Merges two sets of metrics. Raises ValueError when they share a name, so that no metric hides another."""
    if clash := metrics.keys() & more.keys():
        raise ValueError(f"metrics named {sorted(clash)} come from two places")
    return {**metrics, **more}


def total_loss(
    world_model: WorldModel, behavior: Behavior, spec: Spec, *, priorities: bool = False
) -> Callable[..., tuple[Array, Aux]]:
    """Returns the function to minimise: (params, extra, hyper, key, batch) -> sum of scale * mean loss, Aux.

    hyper["scale"] {name: []}: the scales. The metrics of Aux hold each mean loss.
    priorities: whether `Aux.surprise` is computed; otherwise it is None.
    The returned function raises ValueError when the names of losses and scales differ, so that no term is forgotten.
    """
    all_losses = make_losses(world_model, behavior, spec)
    names = {**world_model.scales, **behavior.scales}

    def total(params: Params, extra: Any, hyper: Any, key: Key, batch: Batch) -> tuple[Array, Aux]:
        losses, aux = all_losses(params, extra, hyper, key, batch)
        if set(losses) != set(names):
            raise ValueError(f"losses and scales differ: {sorted(set(losses) ^ set(names))}")
        means = {name: value.astype(jnp.float32).mean() for name, value in losses.items()}
        scales = hyper["scale"]
        total = jnp.sum(jnp.stack([scales[name] * mean for name, mean in means.items()]))
        surprise = None
        if priorities:
            shape = (batch.reward.shape[0], batch.reward.shape[1] - bool(batch.latent))
            surprise = row_losses(world_model, scales, losses, shape) if aux.surprise is None else sg(aux.surprise)
        metrics = joined(aux.metrics, {f"loss/{name}": mean for name, mean in means.items()})
        return total, aux._replace(metrics=metrics, surprise=surprise)

    return total


def row_losses(
    world_model: WorldModel, scales: Mapping[str, Array], losses: Losses, shape: tuple[int, int]
) -> Array:
    """Returns the sum of scale * loss over the world model's losses for each row, [B, T] float32, without gradients.

    shape: (B, T). Raises UserError when a loss does not have one number per row; a model with such a loss must itself
    return how badly it predicted each row, as `Learned.surprise`.
    """
    own = {name: losses[name] for name in world_model.scales}
    if any(loss.shape != shape for loss in own.values()):
        raise UserError("replay.priority needs a world model that returns the surprise of each row; this one does not")
    return sg(jnp.sum(jnp.stack([scales[name] * loss.astype(jnp.float32) for name, loss in own.items()]), 0))


def align(world_model: WorldModel, spec: Spec, batch: Batch) -> tuple[State, Array, Batch]:
    """Splits a replay batch into an initial state [B, ..], prev_action [B, T, A], and the T rows to train on.

    Only here does the action of row t become the previous action of row t + 1. A context row is dropped: its latent
    becomes the initial state, and its action the first previous action. Without a context row, the state is that of
    `WorldModel.initial` and the first previous action is 0. The rows keep those latents that the world model `reads`.
    """
    check_rows(spec, batch.obs, batch.action, batch.is_first, batch.reward.shape)
    batch_size = batch.reward.shape[0]
    prev_action = jnp.concatenate([jnp.zeros_like(batch.action[:, :1]), batch.action[:, :-1]], 1)
    if not batch.latent:
        return world_model.initial(batch_size), prev_action, batch
    state = world_model.unpack({name: x[:, 0] for name, x in batch.latent.items()})
    read = {name: batch.latent[name] for name in sorted(world_model.reads)}
    rows = jax.tree.map(lambda x: x[:, 1:], batch._replace(latent=read))
    return state, prev_action[:, 1:], rows


def check_rows(spec: Spec, obs: Obs, action: Array, is_first: Array, lead: tuple[int, ...]) -> None:
    """Raises AssertionError unless obs {k: [*lead, ..]}, action [*lead, A] and is_first [*lead] match the spec.

    lead: the leading axes, such as (B, T)
    """
    if set(obs) != set(spec.obs):
        raise AssertionError(f"observation keys {sorted(obs)} are not those of the spec, {sorted(spec.obs)}")
    wanted = {f"observation {name!r}": (obs[name], space.shape) for name, space in spec.obs.items()}
    wanted |= {"action": (action, (spec.action_width,)), "is_first": (is_first, ())}
    for name, (array, shape) in wanted.items():
        if array.shape != (*lead, *shape):
            raise AssertionError(f"{name} has shape {array.shape}, not {(*lead, *shape)}")


def make_dream(world_model: WorldModel, v: Variables) -> Dream:
    """Returns the functions of a world model as a Dream, with the variables `v` filled in."""

    def observe(key: Key, state: State, obs: Obs, prev_action: Array, is_first: Array) -> State:
        rows = jax.tree.map(lambda x: x[:, None], (dict(obs), prev_action, is_first))
        return world_model.observe(v, key, state, *rows)[0]

    return Dream(
        imagine=functools.partial(world_model.imagine, v),
        feat=lambda state: world_model.feat(world_model.latent(state)),
        predict=functools.partial(world_model.predict, v),
        decode=lambda state: world_model.decode(v, world_model.latent(state)),
        observe=observe,
        draw=lambda deter: world_model.decode(v, world_model.from_deter(v, deter)) if world_model.deter_width else {},
    )
