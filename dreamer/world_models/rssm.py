"""The recurrent state-space model of DreamerV3: what the world was, is and may become, in latent space."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dreamer import plugins
from dreamer.errors import UserError
from dreamer.fields import at_least, between, check_bounds
from dreamer.interfaces import Array, Batch, Extra, Key, Network, Obs, Params, Variables, WorldModel, WorldModelOut
from dreamer.nets.adapters import from_flax
from dreamer.nets.block_gru import Core, Logits
from dreamer.nets.decoder import reconstruction_loss, to_observation
from dreamer.nets.heads import BinaryHead, BitsHead, ScalarHead
from dreamer.ops import distributions as dist
from dreamer.ops.balance import kl_balance
from dreamer.ops.keys import named_keys
from dreamer.ops.scan import scan_time
from dreamer.spaces import MASK, Space, Spec

sg = jax.lax.stop_gradient
MOST_CLASSES = 65_536  # of one observation


@dataclasses.dataclass(frozen=True)
class Config:
    """DreamerV3's world model. Sizes: experiments/size*.yaml."""

    name: str = "rssm"
    "module in dreamer.world_models, or a dotted module of your own"
    deter: Annotated[int, at_least(1)] = 512
    "D, width of the recurrent state"
    hidden: Annotated[int, at_least(1)] = 64
    "width of the hidden layers of core, prior and posterior"
    stoch: Annotated[int, at_least(1)] = 32
    "S, groups of the stochastic state"
    classes: Annotated[int, at_least(1)] = 4
    "C, classes in each group"
    blocks: Annotated[int, at_least(1)] = 8
    "blocks of the recurrent core and of the image decoder's first layer"
    units: Annotated[int, at_least(1)] = 64
    "width of the encoder, decoder, reward and continue MLPs"
    depth: Annotated[int, at_least(1)] = 4
    "base number of image channels"
    mults: Annotated[tuple[int, ...], at_least(1)] = (2, 3, 4, 4)
    "image channels of each stage, times depth"
    kernel: Annotated[int, at_least(1)] = 5
    "side of the image convolutions"
    encoder: str = "encoder"
    "module in dreamer.nets, or your own 'package.module:make', that makes the encoder Network"
    decoder: str = "decoder"
    "likewise for the decoder"
    encoder_layers: Annotated[int, at_least(0)] = 3
    "hidden layers of the vector encoder and decoder"
    core_layers: Annotated[int, at_least(0)] = 1
    "block-linear layers before the gates of the core"
    prior_layers: Annotated[int, at_least(0)] = 2
    "hidden layers of the prior"
    posterior_layers: Annotated[int, at_least(0)] = 1
    "hidden layers of the posterior"
    reward_layers: Annotated[int, at_least(0)] = 1
    "hidden layers of the reward head"
    cont_layers: Annotated[int, at_least(0)] = 1
    "hidden layers of the continue head, and of the head for action masks"
    bins: Annotated[int, at_least(3)] = 255
    "K, two-hot bins of the reward head"
    symlog: bool = True
    "squash vector observations with symlog before the encoder"
    unimix: Annotated[float, between(0, 1)] = 0.01
    "share of the uniform distribution mixed into prior and posterior"
    free_nats: Annotated[float, at_least(0)] = 1.0
    "KL below which dyn and rep give no gradient, per time step"
    rec_scale: Annotated[float, at_least(0)] = 1.0
    "weight of each key's reconstruction loss"
    reward_scale: Annotated[float, at_least(0)] = 1.0
    "weight of the reward loss"
    cont_scale: Annotated[float, at_least(0)] = 1.0
    "weight of the continue loss"
    mask_scale: Annotated[float, at_least(0)] = 1.0
    "weight of the loss of the action masks, in environments that have them"
    dyn_scale: Annotated[float, at_least(0)] = 1.0
    "weight of the dynamics loss, which trains the prior"
    rep_scale: Annotated[float, at_least(0)] = 0.1
    "weight of the representation loss, which trains the posterior"

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.deter % self.blocks:
            raise UserError(f"deter must be a multiple of blocks ({self.blocks}), not {self.deter}")
        if self.bins % 2 == 0:
            raise UserError(f"bins must be odd, not {self.bins}")
        if not self.mults:
            raise UserError("mults must have at least one stage")


class Latent(NamedTuple):
    """deter [.., D] in the compute dtype, stoch [.., S, C] one-hot float32."""

    deter: Array
    stoch: Array


class Nets(NamedTuple):
    """The networks, and how their outputs are read: two-hot bins of the reward, mixing and sampling of logits.

    mask: None in an environment without action masks
    """

    enc: Network
    dec: Network
    core: Network
    prior: Network
    posterior: Network
    rew: Network
    con: Network
    mask: Network | None
    bins: Any
    unimix: float
    sample: Callable[[Key, Array], Array]


def make_nets(config: Config, spec: Spec, dtype: Any, sample: Callable[[Key, Array], Array]) -> Nets:
    """All networks of the world model; encoder and decoder by name."""
    if not (decoded := to_reconstruct(spec)):
        raise UserError("the environment shows no observation that the agent can see")
    for key, space in decoded.items():
        if space.discrete and space.width > MOST_CLASSES:
            raise UserError(
                f"observation {key!r} has {space.width:,} classes, an input and an output of the networks for each; at "
                f"most {MOST_CLASSES:,}: give it as a Box"
            )
    shared = dict(
        depth=config.depth, mults=config.mults, units=config.units, layers=config.encoder_layers,
        kernel=config.kernel, dtype=dtype,
    )  # fmt: skip
    logits = dict(hidden=config.hidden, stoch=config.stoch, classes=config.classes, dtype=dtype)
    return Nets(
        enc=_maker(config.encoder)(dict(spec.obs), symlog=config.symlog, **shared),
        dec=_maker(config.decoder)(decoded, blocks=config.blocks, **shared),
        core=from_flax(Core(config.hidden, config.blocks, config.core_layers, dtype)),
        prior=from_flax(Logits("prior", config.prior_layers, **logits)),
        posterior=from_flax(Logits("obs", config.posterior_layers, **logits)),
        rew=from_flax(ScalarHead(config.reward_layers, config.units, config.bins, dtype=dtype)),
        con=from_flax(BinaryHead(config.cont_layers, config.units, dtype)),
        mask=from_flax(BitsHead(config.cont_layers, config.units, spec.action.onehots, dtype)) if spec.masked else None,
        bins=dist.twohot_bins(config.bins),
        unimix=config.unimix,
        sample=sample,
    )


def _maker(name: str) -> Callable[..., Network]:
    found = plugins.load(name, "dreamer.nets")
    return found if callable(found) else found.make


def to_reconstruct(spec: Spec) -> dict[str, Space]:
    """The observations that the decoder is to give: all but the action mask, which has a head of its own."""
    return {name: space for name, space in spec.obs.items() if not (spec.masked and name == MASK)}


# --- single steps -----------------------------------------------------------------------------------


def observe_step(
    nets: Nets, params: Params, key: Key, latent: Latent, tokens: Array, prev_action: Array, is_first: Array
) -> tuple[Latent, Array]:
    """One filtering step: tokens [B, E], prev_action [B, A], is_first [B] -> posterior latent, mixed logits [B, S, C].

    Where is_first, the incoming latent and the previous action are dropped and the core runs on zeros.
    """
    deter, stoch, prev_action = (_keep(~is_first, x) for x in (*latent, prev_action))
    deter = nets.core.apply(params["dyn"], deter, stoch, prev_action)
    logits = dist.mix_uniform(nets.posterior.apply(params["dyn"], deter, tokens), nets.unimix)
    sample = nets.sample(key, sg(logits))
    return Latent(deter, dist.straight_through(sample, logits)), logits


def imagine_step(nets: Nets, params: Params, key: Key, latent: Latent, action: Array) -> Latent:
    """One prior step: latent [N, ..], action [N, A] -> latent [N, ..]."""
    deter = nets.core.apply(params["dyn"], latent.deter, latent.stoch, action)
    logits = dist.mix_uniform(nets.prior.apply(params["dyn"], deter), nets.unimix)
    return Latent(deter, dist.straight_through(nets.sample(key, logits), logits))


def _keep(mask: Array, x: Array) -> Array:
    return jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros_like(x))


def observe_sequence(
    nets: Nets, params: Params, key: Key, latent: Latent, tokens: Array, prev_action: Array, is_first: Array
) -> tuple[Latent, Array]:
    """Filtering over time: tokens [B, T, E] .. -> posterior latents [B, T, ..], mixed logits [B, T, S, C]."""
    def step(carry: Latent, inputs: tuple[Array, ...], key: Key) -> tuple[Latent, tuple[Latent, Array]]:
        latent, logits = observe_step(nets, params, key, carry, *inputs)
        return latent, (latent, logits)

    keys = jax.random.split(key, is_first.shape[1])
    _, outs = scan_time(step, latent, (tokens, prev_action, is_first), keys)
    return outs


# --- the record -------------------------------------------------------------------------------------


def make(
    config: Config, spec: Spec, *, dtype: Any = jnp.float32, horizon: float = 333.0, contdisc: bool = True,
    sample: Callable[[Key, Array], Array] = dist.sample_onehot,
) -> WorldModel:  # fmt: skip
    """The world model for an environment; `sample(key, mixed logits) -> one-hot` draws posterior and prior.

    With contdisc, the discount 1 - 1 / horizon is folded into the continue target and so into `predict`'s cont.
    Errors: UserError when an observation does not suit the encoder.
    """
    nets = make_nets(config, spec, dtype, sample)
    decoded = to_reconstruct(spec)

    def initial(batch_size: int) -> Latent:
        deter = jnp.zeros((batch_size, config.deter), dtype)
        return Latent(deter, jnp.zeros((batch_size, config.stoch, config.classes), jnp.float32))

    def feat(latent: Latent) -> Array:
        stoch = latent.stoch.reshape(*latent.stoch.shape[:-2], -1)
        return jnp.concatenate([latent.deter.astype(dtype), stoch.astype(dtype)], -1)

    def init(key: Key) -> Variables:
        params = _init_params(nets, spec, key, initial(1), feat)
        label = 1 - 1 / horizon if contdisc else 1.0
        hyper = {"free_nats": jnp.float32(config.free_nats), "live_label": jnp.float32(label)}
        return Variables(params, {"hyper": hyper})

    def observe(
        params: Params, key: Key, latent: Latent, obs: Obs, prev_action: Array, is_first: Array
    ) -> Latent:
        tokens = nets.enc.apply(params["enc"], obs)
        return observe_sequence(nets, params, key, latent, tokens, prev_action, is_first)[0]

    def imagine(params: Params, key: Key, latent: Latent, action: Array) -> Latent:
        return imagine_step(nets, params, key, latent, action)

    def predict(params: Params, feat: Array) -> tuple[Array, Array]:
        reward = dist.twohot_mean(nets.rew.apply(params["rew"], feat), nets.bins)
        return reward, jax.nn.sigmoid(nets.con.apply(params["con"], feat))

    def allowed(params: Params, feat: Array) -> Array:
        assert nets.mask is not None
        return nets.mask.apply(params["mask"], feat) > 0

    def loss(
        params: Params, extra: Extra, key: Key, latent: Latent, prev_action: Array, batch: Batch
    ) -> tuple[dict[str, Array], WorldModelOut]:
        chex.assert_shape(prev_action, (*batch.reward.shape, spec.action_width))
        latents, losses, metrics = _dynamics_losses(nets, params, extra["hyper"], key, latent, prev_action, batch)
        losses |= _head_losses(nets, params, extra["hyper"], feat(latents), batch)
        outs = nets.dec.apply(params["dec"], *latents)
        for name, space in decoded.items():
            losses[f"rec/{name}"] = reconstruction_loss(space, outs[name], batch.obs[name])
        return losses, WorldModelOut(latents, extra, metrics)

    def decode(params: Params, latent: Latent) -> Mapping[str, Array]:
        outs = nets.dec.apply(params["dec"], *latent)
        return {name: to_observation(space, outs[name]) for name, space in decoded.items()}

    scales = dict(
        rew=config.reward_scale, con=config.cont_scale, dyn=config.dyn_scale, rep=config.rep_scale
    ) | {f"rec/{name}": config.rec_scale for name in decoded}
    if spec.masked:
        scales["mask"] = config.mask_scale
    pack, unpack, storage = _packing(config, dtype)
    return WorldModel(
        init, initial, observe, imagine, feat, predict, loss, decode, pack, unpack, storage, scales,
        allowed if spec.masked else None,
    )  # fmt: skip


def _init_params(
    nets: Nets, spec: Spec, key: Key, latent: Latent, feat: Callable[[Latent], Array]
) -> Params:
    keys = named_keys(key, "enc", "dec", "core", "prior", "posterior", "rew", "con", "mask")
    obs = {k: jnp.zeros((1, *space.shape), space.device_dtype) for k, space in spec.obs.items()}
    enc = nets.enc.init(keys["enc"], obs)
    tokens = nets.enc.apply(enc, obs)
    dyn = (
        nets.core.init(keys["core"], *latent, jnp.zeros((1, spec.action_width)))
        | nets.prior.init(keys["prior"], latent.deter)
        | nets.posterior.init(keys["posterior"], latent.deter, tokens)
    )
    heads = {"rew": nets.rew, "con": nets.con} | ({"mask": nets.mask} if nets.mask else {})
    return {
        "enc": enc,
        "dyn": dyn,
        "dec": nets.dec.init(keys["dec"], *latent),
        **{name: head.init(keys[name], feat(latent)) for name, head in heads.items()},
    }


def _dynamics_losses(
    nets: Nets, params: Params, hyper: Mapping[str, Array], key: Key, latent: Latent, prev_action: Array, batch: Batch
) -> tuple[Latent, dict[str, Array], dict[str, Array]]:
    """Posterior latents of a batch, the KL losses between posterior and prior [B, T], metrics []."""
    tokens = nets.enc.apply(params["enc"], batch.obs)
    key = named_keys(key, "observe")["observe"]
    latents, post = observe_sequence(nets, params, key, latent, tokens, prev_action, batch.is_first)
    prior = dist.mix_uniform(nets.prior.apply(params["dyn"], latents.deter), nets.unimix)
    dyn, rep, raw = kl_balance(post, prior, hyper["free_nats"])
    metrics = {
        "latent/prior_entropy": dist.categorical_entropy(prior).sum(-1).mean(),
        "latent/post_entropy": dist.categorical_entropy(post).sum(-1).mean(),
        "latent/kl": raw.mean(),
    }
    return latents, {"dyn": dyn, "rep": rep}, metrics


def _head_losses(
    nets: Nets, params: Params, hyper: Mapping[str, Array], feats: Array, batch: Batch
) -> dict[str, Array]:
    label = (1.0 - batch.is_terminal.astype(jnp.float32)) * hyper["live_label"]
    losses = {
        "rew": dist.twohot_loss(nets.rew.apply(params["rew"], feats), batch.reward, nets.bins),
        "con": dist.bernoulli_loss(nets.con.apply(params["con"], feats), label),
    }
    if nets.mask:
        allowed = batch.obs[MASK].astype(jnp.float32)
        losses["mask"] = dist.bernoulli_loss(nets.mask.apply(params["mask"], feats), allowed).sum(-1)
    return losses


def _packing(config: Config, dtype: Any) -> tuple[Callable[..., Any], Callable[..., Any], Mapping[str, Space]]:
    """Replay keeps the class of each group instead of its one-hot: the same bits back, a fraction of the bytes."""
    index = "uint8" if config.classes < 256 else "uint16"
    # One more value stands for the all-zero state before the first step.
    empty = config.classes

    def pack(latent: Latent) -> Mapping[str, Array]:
        classes = jnp.where(latent.stoch.sum(-1) > 0.5, jnp.argmax(latent.stoch, -1), empty)
        return {"deter": latent.deter.astype(dtype), "stoch": classes.astype(index)}

    def unpack(packed: Mapping[str, Array]) -> Latent:
        return Latent(packed["deter"].astype(dtype), jax.nn.one_hot(packed["stoch"], config.classes))

    storage = {
        "deter": Space((config.deter,), jnp.dtype(dtype).name),
        "stoch": Space((config.stoch,), index),
    }
    return pack, unpack, storage


def parameter_count(params: Params) -> int:
    """Number of trainable scalars."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))
