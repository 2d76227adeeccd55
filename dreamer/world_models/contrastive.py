"""C-SWM: a world model of objects that is learned by contrast, without reconstruction and without rewards.

Source: Kipf, van der Pol, Welling, Contrastive Learning of Structured World Models, 2020. docs/contrastive.md has the
equations. The latent of a row depends on its image alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dreamer.errors import UserError
from dreamer.fields import at_least, check_bounds
from dreamer.interfaces import Array, Batch, Extra, Key, Learned, Network, Obs, Params, Variables, WorldModel
from dreamer.nets.adapters import from_flax
from dreamer.nets.images import to_unit
from dreamer.nets.objects import (
    Extractor,
    ObjectEncoder,
    Transition,
    action_of_objects,
    initial_running,
    map_shape,
)
from dreamer.ops.keys import named_keys
from dreamer.spaces import MASK, Spec

CHANNELS = 16  # the hidden convolutions of the extractor have hidden / CHANNELS channels


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the contrastive world model. The defaults are those of the source for its grid worlds."""

    name: str = "contrastive"
    "module in dreamer.world_models, or a dotted module of your own"
    objects: Annotated[int, at_least(1)] = 5
    "K, object slots"
    width: Annotated[int, at_least(1)] = 2
    "D, numbers in the state of an object"
    hidden: Annotated[int, at_least(16)] = 512
    "width of the hidden layers; the extractor's convolutions have a sixteenth of it"
    extractor: Literal["small", "medium", "large"] = "small"
    "convolutions that find the objects: 10x10 with stride 10, 9x9 and 5x5 with stride 5, or four of 3x3"
    action: Literal["split", "copy", "ignore"] = "split"
    "what an object receives of an action: its share of the entries, all of them, or nothing"
    sigma: Annotated[float, at_least(1e-6)] = 0.5
    "scale of distances in the energy"
    hinge: Annotated[float, at_least(0)] = 1.0
    "energy from which a negative has no gradient"

    def __post_init__(self) -> None:
        check_bounds(self)


class Latent(NamedTuple):
    """A latent, which is also the state: objects [.., K, D] float32."""

    objects: Array


class Nets(NamedTuple):
    """The networks: extractor(images, running, train), encoder(maps), transition(objects, action of each)."""

    extractor: Network
    encoder: Network
    transition: Network


class Energies(NamedTuple):
    """The losses of N transitions, and what they were computed from.

    positive, negative [N]: the terms of the loss | objects, next_objects [N, K, D] | running: the next statistics
    """

    positive: Array
    negative: Array
    objects: Array
    next_objects: Array
    running: Any


def make_nets(config: Config, dtype: Any = jnp.float32) -> Nets:
    """Makes the networks."""
    return Nets(
        from_flax(Extractor(config.extractor, config.objects, config.hidden // CHANNELS, dtype)),
        from_flax(ObjectEncoder(config.hidden, config.width, dtype)),
        from_flax(Transition(config.hidden, dtype)),
    )


def encode(
    nets: Nets, params: Params, running: Any, images: Array, train: bool
) -> tuple[Array, Array, Any]:
    """Encodes images from 0 to 1 [.., H, W, C] as objects [.., K, D]. train: whether the statistics are the batch's.

    Returns the objects, the feature maps [.., K, h, w], and the next running statistics.
    """
    lead, flat = images.shape[:-3], images.reshape(-1, *images.shape[-3:])
    maps, running = nets.extractor.apply(params["extractor"], flat, running, train)
    objects = nets.encoder.apply(params["encoder"], maps)
    return objects.reshape(*lead, *objects.shape[1:]), maps.reshape(*lead, *maps.shape[1:]), running


def energy(difference: Array, sigma: Array | float) -> Array:
    """Returns the energy [..] of a difference of objects [.., K, D]: |d|^2 / (2 sigma^2), the mean over the objects."""
    return (0.5 / jnp.square(sigma)) * jnp.square(difference).sum(-1).mean(-1)


def transition_energies(
    nets: Nets, v: Variables, images: Array, action: Array, next_images: Array, order: Array
) -> Energies:
    """Computes both terms of the loss, equations 3 to 5 of the source, for N transitions. Nothing is stopped.

    images, next_images [N, H, W, C] from 0 to 1: each with batch statistics of its own, as in the source
    action [N, K, a] | order [N]: for each transition, the one whose current state is its negative
    """
    objects, _, running = encode(nets, v.params, v.extra["running"], images, train=True)
    next_objects, _, running = encode(nets, v.params, running, next_images, train=True)
    moved = objects + nets.transition.apply(v.params["transition"], objects, action)
    apart = energy(objects - objects[order], v.hyper["sigma"])
    positive = energy(moved - next_objects, v.hyper["sigma"])
    return Energies(positive, jnp.maximum(0.0, v.hyper["hinge"] - apart), objects, next_objects, running)


def make(
    config: Config, spec: Spec, *, dtype: Any = jnp.float32, horizon: float = 333.0, contdisc: bool = True,
    shuffle: Callable[[Key, int], Array] = jax.random.permutation,
) -> WorldModel:  # fmt: skip
    """Makes the world model for an environment. shuffle(key, n) -> [n]: the order in which negatives are drawn.

    Raises UserError unless the environment shows one image, which is large enough, and unless its actions can be split.
    """
    image, nets = image_of(spec, config), make_nets(config, dtype)
    check_action(spec, config)
    space = spec.obs[image]

    def init(key: Key) -> Variables:
        keys = named_keys(key, "extractor", "encoder", "transition")
        running = initial_running(config.extractor, config.hidden // CHANNELS)
        action = action_of_objects(jnp.zeros((1, spec.action_width)), config.objects, config.action)
        maps = jnp.zeros((1, config.objects, *map_shape(config.extractor, *space.shape[:2])))
        params = {
            "extractor": nets.extractor.init(keys["extractor"], jnp.zeros((1, *space.shape)), running, False),
            "encoder": nets.encoder.init(keys["encoder"], maps),
            "transition": nets.transition.init(keys["transition"], initial(1).objects, action),
        }
        hyper = {"sigma": jnp.float32(config.sigma), "hinge": jnp.float32(config.hinge)}
        return Variables(params, {"running": running}, hyper)

    def initial(batch_size: int) -> Latent:
        return Latent(jnp.zeros((batch_size, config.objects, config.width)))

    def observe(
        v: Variables, key: Key, state: Latent, obs: Obs, prev_action: Array, is_first: Array
    ) -> tuple[Latent, Latent]:
        objects, _, _ = encode(nets, v.params, v.extra["running"], to_unit(space, obs[image]), train=False)
        return Latent(objects[:, -1]), Latent(objects)

    def imagine(v: Variables, key: Key, state: Latent, action: Array) -> Latent:
        each = action_of_objects(action, config.objects, config.action)
        return Latent(state.objects + nets.transition.apply(v.params["transition"], state.objects, each))

    def loss(v: Variables, key: Key, state: Latent, prev_action: Array, batch: Batch) -> tuple[Any, Learned]:
        rows = batch.reward.shape
        chex.assert_shape(prev_action, (*rows, spec.action_width))
        lead, count = (rows[0], rows[1] - 1), rows[0] * (rows[1] - 1)
        images = to_unit(space, batch.obs[image])
        now, after = (x.reshape(count, *space.shape) for x in (images[:, :-1], images[:, 1:]))
        action = action_of_objects(prev_action[:, 1:].reshape(count, -1), config.objects, config.action)
        order = shuffle(named_keys(key, "negatives")["negatives"], count)
        out = transition_energies(nets, v, now, action, after, order)
        weight = transition_weights(batch.is_first)
        losses = {name: getattr(out, name).reshape(lead) * weight for name in ("positive", "negative")}
        objects, last = (x.reshape(*lead, *x.shape[1:]) for x in (out.objects, out.next_objects))
        latent = Latent(jnp.concatenate([objects, last[:, -1:]], 1))
        surprise = jnp.pad(losses["positive"], ((0, 0), (1, 0)))
        extra: Extra = {"running": out.running}
        return losses, Learned(latent, extra, {}, surprise)

    def pictures(v: Variables, obs: Obs) -> Mapping[str, Array]:
        """Draws each image with the feature maps of its objects beside it, [.., H, (K + 1) W, 1 or 3]."""
        images = to_unit(space, obs[image])
        _, maps, _ = encode(nets, v.params, v.extra["running"], images, train=False)
        return {"objects": 255 * side_by_side(images, maps)}

    return WorldModel(
        init, initial, observe, starts, imagine, lambda state: state, feat, lambda v, feat: {}, loss,
        decode=lambda v, latent: {}, pack=lambda latent: {}, unpack=lambda packed: None, storage={},
        scales={"positive": 1.0, "negative": 1.0}, pictures=pictures,
    )  # fmt: skip


def feat(latent: Latent) -> Array:
    """`WorldModel.feat`: the states of all objects, joined: [.., K D]."""
    return latent.objects.reshape(*latent.objects.shape[:-2], -1)


def starts(v: Variables, latent: Latent, prev_action: Array, is_first: Array) -> Latent:
    """`WorldModel.starts`: the objects of all rows, [B * T, K, D]."""
    return Latent(latent.objects.reshape(-1, *latent.objects.shape[2:]))


def side_by_side(images: Array, maps: Array) -> Array:
    """Joins images [.., H, W, C] and maps [.., K, h, w], enlarged to the images' size: [.., H, (K + 1) W, 1 or 3].

    If the images have other than one or three channels, only the last one is shown.
    """
    *lead, height, width, channels = images.shape
    count = 3 if channels == 3 else 1
    large = jax.image.resize(maps, (*maps.shape[:-2], height, width), "nearest")
    row = jnp.moveaxis(large, -3, -2).reshape(*lead, height, -1, 1)
    return jnp.concatenate([images[..., -count:], jnp.broadcast_to(row, (*row.shape[:-1], count))], -2)


def transition_weights(is_first: Array) -> Array:
    """Returns the weights of transitions [B, T - 1] for flags [B, T]: 0 across the border of two episodes.

    The others have equal weights, so that the mean over all is the mean over the true transitions.
    """
    inside = 1.0 - is_first[:, 1:].astype(jnp.float32)
    return inside / jnp.maximum(inside.mean(), 1.0 / inside.size)


def image_of(spec: Spec, config: Config) -> str:
    """Returns the key of the image that the model sees. Raises UserError if there is none, or more than one."""
    keys = [key for key, space in spec.obs.items() if not (spec.masked and key == MASK)]
    if len(keys) != 1 or not spec.obs[keys[0]].image:
        raise UserError(
            "world model 'contrastive' sees one image and nothing else; the environment shows "
            f"{', '.join(sorted(keys))}"
        )
    height, width, _ = spec.obs[keys[0]].shape
    if min(map_shape(config.extractor, height, width)) < 1:
        raise UserError(
            f"agent.world_model.extractor {config.extractor!r} leaves nothing of images of {height}x{width} pixels: "
            "use larger images or 'large'"
        )
    return keys[0]


def check_action(spec: Spec, config: Config) -> None:
    """Raises UserError if the action is to be split, but not into equal parts, one for each object."""
    if config.action == "split" and spec.action_width % config.objects:
        raise UserError(
            f"agent.world_model.action 'split' gives each of {config.objects} objects the same number of entries of an "
            f"action, but it has {spec.action_width}: use 'copy', or another agent.world_model.objects"
        )
