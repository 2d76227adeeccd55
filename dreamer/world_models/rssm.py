"""The recurrent state-space model of DreamerV3, which infers and predicts latent states of the environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dreamer import plugins
from dreamer.errors import UserError
from dreamer.fields import at_least, between, check_bounds
from dreamer.interfaces import Array, Batch, Key, Learned, Network, Obs, Params, Variables, WorldModel
from dreamer.nets import predictors
from dreamer.nets.adapters import from_flax
from dreamer.nets.block_gru import Core, Logits
from dreamer.nets.decoder import reconstruction_loss, to_observation
from dreamer.nets.predictors import Predictor
from dreamer.ops import distributions as dist
from dreamer.ops import latent_dist
from dreamer.ops.balance import kl_balance
from dreamer.ops.keys import named_keys
from dreamer.ops.latent_dist import LatentDist, Stats
from dreamer.ops.scan import scan_time
from dreamer.spaces import MASK, Space, Spec

MOST_CLASSES = 65_536  # in one observation
NAMES = {"rew": "reward", "con": "cont", "mask": "allowed"}  # head -> prediction


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of DreamerV3's world model. The presets size1m to size400m set its size."""

    name: str = "rssm"
    "module in dreamer.world_models, or a dotted module of your own"
    deter: Annotated[int, at_least(1)] = 512
    "D, width of the recurrent state"
    hidden: Annotated[int, at_least(1)] = 64
    "width of the hidden layers of core, prior and posterior"
    latent: Literal["categorical", "gaussian"] = "categorical"
    "distribution of the stochastic state: one-hot classes, or normals as in DreamerV1"
    stoch: Annotated[int, at_least(1)] = 32
    "S, groups of the stochastic state"
    classes: Annotated[int, at_least(1)] = 4
    "C, classes in each group; a Gaussian group is one number"
    minstd: Annotated[float, at_least(0)] = 0.1
    "smallest standard deviation of a Gaussian state"
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
    "module in dreamer.nets, or your own 'package.module:make', that makes the decoder Network"
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
    rewarded: bool = True
    "predict rewards and true ends; false: learn from observations and actions alone"
    symlog: bool = True
    "squash vector observations with symlog before the encoder"
    unimix: Annotated[float, between(0, 1)] = 0.01
    "share of the uniform distribution mixed into prior and posterior"
    free_nats: Annotated[float, at_least(0)] = 1.0
    "KL per time step below which the dynamics and representation losses have no gradient"
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
    """A latent: deter [.., D] in the compute dtype | stoch [.., S, C] float32, one-hots, or Gaussians with C = 1."""

    deter: Array
    stoch: Array


class Nets(NamedTuple):
    """The networks | dist: the latent's distribution | heads: "rew" and "con" unless the model is made
    without rewards, and "mask" if there are action masks.
    """

    enc: Network
    dec: Network
    core: Network
    prior: Network
    posterior: Network
    dist: LatentDist
    heads: Mapping[str, Predictor]


def make_dist(config: Config, sample: Callable[[Key, Array], Array] = dist.sample_onehot) -> LatentDist:
    """Makes the distribution of stoch. sample(key, logits [.., S, C] after the uniform mix) draws the one-hots."""
    if config.latent == "gaussian":
        return latent_dist.gaussian(config.stoch, config.minstd)
    return latent_dist.categorical(config.stoch, config.classes, config.unimix, sample)


def make_nets(config: Config, spec: Spec, dtype: Any, sample: Callable[[Key, Array], Array]) -> Nets:
    """Makes all networks; the config names the encoder and the decoder. sample: see `make_dist`."""
    decoded = to_reconstruct(spec)
    shared = dict(
        depth=config.depth, mults=config.mults, units=config.units, layers=config.encoder_layers,
        kernel=config.kernel, dtype=dtype,
    )  # fmt: skip
    drawn = make_dist(config, sample)
    outputs = dict(hidden=config.hidden, stoch=drawn.outputs[0], classes=drawn.outputs[1], dtype=dtype)
    heads = {}
    if config.rewarded:
        heads["rew"] = predictors.scalar(config.reward_layers, config.units, config.bins, dtype)
        heads["con"] = predictors.chance(config.cont_layers, config.units, dtype)
    if spec.masked:
        heads["mask"] = predictors.bits(config.cont_layers, config.units, spec.action.onehots, dtype)
    return Nets(
        enc=_maker(config.encoder)(dict(spec.obs), symlog=config.symlog, **shared),
        dec=_maker(config.decoder)(decoded, blocks=config.blocks, **shared),
        core=from_flax(Core(config.hidden, config.blocks, config.core_layers, dtype)),
        prior=from_flax(Logits("prior", config.prior_layers, **outputs)),
        posterior=from_flax(Logits("obs", config.posterior_layers, **outputs)),
        dist=drawn,
        heads=heads,
    )


def _maker(name: str) -> Callable[..., Network]:
    found = plugins.load(name, "dreamer.nets")
    return found if callable(found) else found.make


def to_reconstruct(spec: Spec) -> dict[str, Space]:
    """Returns the observations that the decoder reconstructs: all but the action mask, which has its own head.

    Raises UserError when there is no such observation, or when an observation has too many classes.
    """
    decoded = {name: space for name, space in spec.obs.items() if not (spec.masked and name == MASK)}
    if not decoded:
        raise UserError("the environment has no observation that the agent can use")
    for key, space in decoded.items():
        if space.discrete and space.width > MOST_CLASSES:
            raise UserError(
                f"observation {key!r} has {space.width:,} classes, and each needs its own input and output in the "
                f"networks; at most {MOST_CLASSES:,} are supported: use a Box"
            )
    return decoded


# --- single steps -----------------------------------------------------------------------------------


def observe_step(
    nets: Nets, params: Params, key: Key, latent: Latent, tokens: Array, prev_action: Array, is_first: Array
) -> tuple[Latent, Stats]:
    """Returns the posterior latent and its statistics after one row: tokens [B, E], prev_action [B, A], is_first [B].

    In rows with is_first set, the core receives zeros in place of the incoming latent and the previous action.
    """
    deter, stoch, prev_action = (_keep(~is_first, x) for x in (*latent, prev_action))
    deter = nets.core.apply(params["dyn"], deter, stoch, prev_action)
    post = nets.dist.stats(nets.posterior.apply(params["dyn"], deter, tokens))
    return Latent(deter, nets.dist.sample(key, post)), post


def imagine_step(nets: Nets, params: Params, key: Key, latent: Latent, action: Array) -> Latent:
    """Samples the next latent [N, ..] from the prior, given latent [N, ..] and action [N, A]."""
    deter = nets.core.apply(params["dyn"], latent.deter, latent.stoch, action)
    prior = nets.dist.stats(nets.prior.apply(params["dyn"], deter))
    return Latent(deter, nets.dist.sample(key, prior))


def _keep(mask: Array, x: Array) -> Array:
    return jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros_like(x))


def observe_sequence(
    nets: Nets, params: Params, key: Key, latent: Latent, tokens: Array, prev_action: Array, is_first: Array
) -> tuple[Latent, Latent, Stats]:
    """Observes tokens [B, T, E]. Returns the last latent [B, ..], all posterior latents [B, T, ..] and statistics."""
    def step(carry: Latent, inputs: tuple[Array, ...], key: Key) -> tuple[Latent, tuple[Latent, Stats]]:
        latent, post = observe_step(nets, params, key, carry, *inputs)
        return latent, (latent, post)

    keys = jax.random.split(key, is_first.shape[1])
    last, (latents, post) = scan_time(step, latent, (tokens, prev_action, is_first), keys)
    return last, latents, post


# --- the record -------------------------------------------------------------------------------------


def make(
    config: Config, spec: Spec, *, dtype: Any = jnp.float32, horizon: float = 333.0, contdisc: bool = True,
    sample: Callable[[Key, Array], Array] = dist.sample_onehot,
) -> WorldModel:  # fmt: skip
    """Makes the world model for an environment. sample: as in `make_dist`, for posterior and prior.

    With contdisc, the target of the continue head, and thus the cont of `predict`, contains the discount
    1 - 1 / horizon. A model that is not `rewarded` reads neither rewards nor true ends, and predicts neither. Raises
    UserError when an observation does not suit the encoder.
    """
    decoded = to_reconstruct(spec)
    nets = make_nets(config, spec, dtype, sample)

    def initial(batch_size: int) -> Latent:
        deter = jnp.zeros((batch_size, config.deter), dtype)
        return Latent(deter, jnp.zeros((batch_size, *nets.dist.shape), jnp.float32))

    def feat(latent: Latent) -> Array:
        stoch = latent.stoch.reshape(*latent.stoch.shape[:-2], -1)
        return jnp.concatenate([latent.deter.astype(dtype), stoch.astype(dtype)], -1)

    def init(key: Key) -> Variables:
        hyper = {"free_nats": jnp.float32(config.free_nats)}
        if config.rewarded:
            hyper["live_label"] = jnp.float32(1 - 1 / horizon if contdisc else 1.0)
        return Variables(_init_params(nets, spec, key, initial(1), feat), (), hyper)

    def observe(
        v: Variables, key: Key, state: Latent, obs: Obs, prev_action: Array, is_first: Array
    ) -> tuple[Latent, Latent]:
        tokens = nets.enc.apply(v.params["enc"], obs)
        last, latents, _ = observe_sequence(nets, v.params, key, state, tokens, prev_action, is_first)
        return last, latents

    def imagine(v: Variables, key: Key, state: Latent, action: Array) -> Latent:
        return imagine_step(nets, v.params, key, state, action)

    def predict(v: Variables, feat: Array) -> dict[str, Array]:
        return {NAMES[name]: head.predict(v.params[name], feat) for name, head in nets.heads.items()}

    def loss(
        v: Variables, key: Key, state: Latent, prev_action: Array, batch: Batch
    ) -> tuple[dict[str, Array], Learned]:
        chex.assert_shape(prev_action, (*batch.reward.shape, spec.action_width))
        latents, losses, metrics = _dynamics_losses(nets, v, key, state, prev_action, batch)
        losses |= _head_losses(nets, v, feat(latents), batch)
        outs = nets.dec.apply(v.params["dec"], *latents)
        for name, space in decoded.items():
            losses[f"rec/{name}"] = reconstruction_loss(space, outs[name], batch.obs[name])
        return losses, Learned(latents, v.extra, metrics)

    def decode(v: Variables, latent: Latent) -> Mapping[str, Array]:
        outs = nets.dec.apply(v.params["dec"], *latent)
        return {name: to_observation(space, outs[name]) for name, space in decoded.items()}

    def from_deter(v: Variables, deter: Array) -> Latent:
        prior = nets.dist.stats(nets.prior.apply(v.params["dyn"], deter.astype(dtype)))
        return Latent(deter.astype(dtype), nets.dist.mode(prior))

    pack, unpack, storage = _packing(nets.dist, config.deter, dtype)
    return WorldModel(
        init, initial, observe, starts, imagine, lambda state: state, feat, predict, loss, decode, pack, unpack,
        storage, _scales(config, spec, decoded), deter_width=config.deter, from_deter=from_deter,
    )  # fmt: skip


def starts(v: Variables, latent: Latent, prev_action: Array, is_first: Array) -> Latent:
    """`WorldModel.starts`: returns the latents of all rows, reshaped from [B, T, ..] to [B * T, ..]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), latent)


def _scales(config: Config, spec: Spec, decoded: Mapping[str, Space]) -> dict[str, float]:
    scales = dict(dyn=config.dyn_scale, rep=config.rep_scale)
    if config.rewarded:
        scales = dict(rew=config.reward_scale, con=config.cont_scale) | scales
    masks = {"mask": config.mask_scale} if spec.masked else {}
    return scales | {f"rec/{name}": config.rec_scale for name in decoded} | masks


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
    return {
        "enc": enc,
        "dyn": dyn,
        "dec": nets.dec.init(keys["dec"], *latent),
        **{name: head.init(keys[name], feat(latent)) for name, head in nets.heads.items()},
    }


def _dynamics_losses(
    nets: Nets, v: Variables, key: Key, state: Latent, prev_action: Array, batch: Batch
) -> tuple[Latent, dict[str, Array], dict[str, Array]]:
    """Returns the posterior latents of a batch, the KL losses {"dyn", "rep": [B, T]}, and metrics []."""
    tokens = nets.enc.apply(v.params["enc"], batch.obs)
    key = named_keys(key, "observe")["observe"]
    _, latents, post = observe_sequence(nets, v.params, key, state, tokens, prev_action, batch.is_first)
    prior = nets.dist.stats(nets.prior.apply(v.params["dyn"], latents.deter))
    dyn, rep, raw = kl_balance(post, prior, v.hyper["free_nats"], nets.dist.kl)
    metrics = {
        "latent/prior_entropy": nets.dist.entropy(prior).mean(),
        "latent/post_entropy": nets.dist.entropy(post).mean(),
        "latent/kl": raw.mean(),
    }
    return latents, {"dyn": dyn, "rep": rep}, metrics


def _head_losses(nets: Nets, v: Variables, feats: Array, batch: Batch) -> dict[str, Array]:
    targets: dict[str, Array] = {}
    if "rew" in nets.heads:
        live = 1.0 - batch.is_terminal.astype(jnp.float32)
        targets |= {"rew": batch.reward, "con": live * v.hyper["live_label"]}
    if "mask" in nets.heads:
        targets["mask"] = batch.obs[MASK].astype(jnp.float32)
    return {name: nets.heads[name].loss(v.params[name], feats, target) for name, target in targets.items()}


def _packing(
    drawn: LatentDist, deter: int, dtype: Any
) -> tuple[Callable[..., Any], Callable[..., Any], Mapping[str, Space]]:
    """Returns pack, unpack and storage of the WorldModel. drawn: packs stoch | deter: D | dtype: of deter."""
    def pack(latent: Latent) -> Mapping[str, Array]:
        return {"deter": latent.deter.astype(dtype), "stoch": drawn.pack(latent.stoch)}

    def unpack(packed: Mapping[str, Array]) -> Latent:
        return Latent(packed["deter"].astype(dtype), drawn.unpack(packed["stoch"]))

    return pack, unpack, {"deter": Space((deter,), jnp.dtype(dtype).name), "stoch": Space(*drawn.packed)}
