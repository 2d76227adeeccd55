"""The world model of World Models (Ha and Schmidhuber 2018): an autoencoder V, then a recurrent mixture density M.

V encodes each image alone as z, drawn from a normal. M reads z and the action, and predicts a mixture of normals for
the next z and whether the episode ends. They learn one after the other: first V, then M on the codes of a frozen V.
Replay stores the codes, so that V sees each row once after it has learned.
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
from dreamer.interfaces import Array, Batch, Key, Learned, Losses, Network, Obs, Params, Variables, WorldModel
from dreamer.nets import mdn_rnn, predictors, vae
from dreamer.nets.adapters import from_flax
from dreamer.nets.images import from_unit, to_unit
from dreamer.nets.mdn_rnn import Memory
from dreamer.nets.predictors import Predictor
from dreamer.ops import mixture
from dreamer.ops.keys import named_keys
from dreamer.spaces import Space, Spec

sg = jax.lax.stop_gradient
V, M, C = range(3)  # the phases


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the world model of Ha and Schmidhuber 2018. The defaults are those of its CarRacing."""

    name: str = "vae_mdn_rnn"
    "module in dreamer.world_models, or a dotted module of your own"
    vae_updates: Annotated[int, at_least(0)] = 10_000
    "updates that train the autoencoder V; they come first; 0 = V stays as it is, for example as init_from gives it"
    rnn_updates: Annotated[int, at_least(0)] = 4_000
    "updates that train the recurrent network M; they follow, and after them the world model is frozen; 0 = none"
    size: Annotated[int, at_least(1)] = 32
    "Z, width of the code z of an image"
    channels: Annotated[tuple[int, ...], at_least(1)] = (32, 64, 128, 256)
    "channels of V's four convolutions"
    kl_tolerance: Annotated[float, at_least(0)] = 0.5
    "KL per number of z below which V's KL loss has no gradient, in nats"
    hidden: Annotated[int, at_least(1)] = 256
    "H, width of M's LSTM"
    components: Annotated[int, at_least(1)] = 5
    "K, normals in the mixture for each number of z"
    temperature: Annotated[float, at_least(1e-3)] = 1.0
    "randomness of dreams: 1 as learned, higher for dreams that are harder to exploit"
    reward: Literal["head", "alive"] = "head"
    "the reward in dreams: a linear head on the features, or 1 for each step as in a game of survival"
    cell: bool = False
    "show the LSTM's cell to the behavior too: its features are [z, c, h] and not [z, h]"
    bins: Annotated[int, at_least(3)] = 255
    "two-hot bins of the reward head"

    def __post_init__(self) -> None:
        check_bounds(self)
        if len(self.channels) != len(vae.KERNELS):
            raise UserError(f"channels must have {len(vae.KERNELS)} entries, not {len(self.channels)}")
        if self.bins % 2 == 0:
            raise UserError(f"bins must be odd, not {self.bins}")


class Code(NamedTuple):
    """The normal from which z is drawn: mean, log_var [.., Z] float32, and encoder [.., 1] int32.

    encoder: the `fingerprint` of the encoder that made it, or 0. Other parameters, as V learns or as a member of a
    population inherits them, make the codes that are stored in the replay invalid.
    """

    mean: Array
    log_var: Array
    encoder: Array


class Latent(NamedTuple):
    """A latent, which is also a state. z [.., Z], hidden, cell [.., H] float32

    The memory has read the rows before this one. So it predicts z, and V infers z from the row itself.
    code: of the row; in dreams that of the row where the dream began
    """

    z: Array
    memory: Memory
    code: Code


class Nets(NamedTuple):
    """V's encoder and decoder, M's LSTM and output, and the reward head, which is None without one."""

    enc: Network
    dec: Network
    lstm: Network
    out: Network
    reward: Predictor | None


def make_nets(config: Config, space: Space, dtype: Any) -> Nets:
    """Makes all networks for images of `space`."""
    return Nets(
        enc=from_flax(vae.Encoder(config.channels, config.size, dtype)),
        dec=from_flax(vae.Decoder(config.channels, space.shape[-1], dtype)),
        lstm=from_flax(mdn_rnn.LSTM(dtype)),
        out=from_flax(mdn_rnn.Output(config.size, config.components, True, dtype)),
        reward=predictors.scalar(0, 1, config.bins, dtype) if config.reward == "head" else None,
    )


def complete(agent: Any) -> Any:
    """Returns the agent's Config with each part trained in its phase: see `agent.make`.

    V's and M's optimizers get their `start` and `stop`; that of a part without updates gets a learning rate of 0.
    A behavior with a `start` of 0 starts when M has learned.
    """
    own, given = agent.world_model, agent.optimizers
    ends = (own.vae_updates, own.vae_updates + own.rnn_updates)
    phases: dict[str, dict[str, Any]] = {
        "world_model/vae": {"stop": ends[0]} if own.vae_updates else {"learning_rate": 0.0},
        "world_model/rnn": {"start": ends[0], "stop": ends[1]} if own.rnn_updates else {"learning_rate": 0.0},
    }
    for prefix in phases:
        if clash := sorted({"start", "stop"} & set(given.get(prefix, {}))):
            raise UserError(f"optimizers.{prefix}.{clash[0]} follows from world_model.vae_updates and rnn_updates")
    optimizers = {**given, **{prefix: given.get(prefix, {}) | times for prefix, times in phases.items()}}
    behavior = agent.behavior
    if getattr(behavior, "start", None) == 0:
        behavior = dataclasses.replace(behavior, start=ends[1])
    return dataclasses.replace(agent, optimizers=optimizers, behavior=behavior)


def the_image(spec: Spec) -> tuple[str, Space]:
    """Returns the key and the space of the image that V encodes. Raises UserError unless it is the only observation."""
    (name, space), *others = spec.obs.items()
    if others or not space.image or space.shape[:2] != (vae.SIDE, vae.SIDE):
        seen = ", ".join(f"{key} {list(one.shape)}" for key, one in spec.obs.items())
        raise UserError(f"world model 'vae_mdn_rnn' sees one image of {vae.SIDE} x {vae.SIDE} pixels, not {seen}")
    return name, space


def make(
    config: Config, spec: Spec, *, dtype: Any = jnp.float32, horizon: float = 333.0, contdisc: bool = True
) -> WorldModel:
    """Makes the world model for an environment. Raises UserError when it does not show one image of 64 x 64 pixels.

    With contdisc, the `cont` of `predict` contains the discount 1 - 1 / horizon.
    """
    image, space = the_image(spec)
    nets = make_nets(config, space, dtype)
    phases = (config.vae_updates, config.vae_updates + config.rnn_updates)
    live = 1 - 1 / horizon if contdisc else 1.0
    rnn_losses = ("mdn", "done", "rew") if nets.reward else ("mdn", "done")

    def initial(batch_size: int) -> Latent:
        memory = Memory(*(jnp.zeros((batch_size, config.hidden)) for _ in Memory._fields))
        z = jnp.zeros((batch_size, config.size))
        return Latent(z, memory, no_code(z))

    def feat(latent: Latent) -> Array:
        z, (hidden, cell), _ = latent
        return jnp.concatenate([z, cell, hidden] if config.cell else [z, hidden], -1)

    def init(key: Key) -> Variables:
        params = init_params(nets, spec, key, initial(1), feat)
        return Variables(params, {"updates": jnp.int32(0)}, {"temperature": jnp.float32(config.temperature)})

    def encode(params: Params, obs: Obs) -> Code:
        mean, log_var = nets.enc.apply(params["vae"]["enc"], to_unit(space, obs[image], dtype))
        return Code(mean, log_var, jnp.full((*mean.shape[:-1], 1), fingerprint(params["vae"]["enc"])))

    def observe(
        v: Variables, key: Key, state: Latent, obs: Obs, prev_action: Array, is_first: Array
    ) -> tuple[Latent, Latent]:
        code = encode(v.params, obs)
        latents = remember(nets, v.params, state, draw(key, code), code, prev_action, is_first)
        return jax.tree.map(lambda x: x[:, -1], latents), latents

    def imagine(v: Variables, key: Key, state: Latent, action: Array) -> Latent:
        memory = nets.lstm.apply(v.params["rnn"]["lstm"], state.memory, state.z, action)
        predicted = nets.out.apply(v.params["rnn"]["out"], memory.hidden)
        return state._replace(z=mixture.sample(key, predicted.z, v.hyper["temperature"]), memory=memory)

    def predict(v: Variables, feat: Array) -> dict[str, Array]:
        done = nets.out.apply(v.params["rnn"]["out"], feat[..., -config.hidden :]).done[..., 0]
        reward = jnp.ones(feat.shape[:-1])
        if nets.reward:
            reward = nets.reward.predict(v.params["rnn"]["rew"], feat)
        return {"reward": reward, "cont": live * jax.nn.sigmoid(-done)}

    def loss(
        v: Variables, key: Key, state: Latent, prev_action: Array, batch: Batch
    ) -> tuple[Losses, Learned]:
        chex.assert_shape(prev_action, (*batch.reward.shape, spec.action_width))
        keys = named_keys(key, "observe")
        frozen = sg(v.params)
        rows, steps = batch.reward.shape
        silent = {f"rec/{image}": jnp.zeros((rows, steps)), "kl": jnp.zeros((rows, steps))}
        silent |= {name: jnp.zeros((rows, steps - 1)) for name in rnn_losses}

        def recall(params: Params) -> Latent:
            code = stored_or(batch.latent, frozen["vae"]["enc"], lambda: encode(frozen, batch.obs))
            return remember(nets, params, state, draw(keys["observe"], code), code, prev_action, batch.is_first)

        def learn_v() -> tuple[Losses, Latent]:
            losses, z = vae_losses(nets, config, v.params["vae"], keys["observe"], to_unit(space, batch.obs[image]))
            losses = {f"rec/{image}": losses["rec"], "kl": losses["kl"]}
            return silent | losses, remember(nets, frozen, state, sg(z), no_code(z), prev_action, batch.is_first)

        def learn_m() -> tuple[Losses, Latent]:
            latents = recall(v.params)
            return silent | memory_losses(nets, v.params["rnn"], latents, feat(latents), batch), sg(latents)

        def only_observe() -> tuple[Losses, Latent]:
            return silent, recall(frozen)

        phase = phase_of(phases, v.extra["updates"])
        losses, latents = jax.lax.switch(phase, [learn_v, learn_m, only_observe])
        metrics = {"train/phase": (phase + 1).astype(jnp.float32)}
        surprise = losses[f"rec/{image}"] + losses["kl"] + jnp.pad(losses["mdn"], ((0, 0), (1, 0)))
        return losses, Learned(latents, {"updates": v.extra["updates"] + 1}, metrics, sg(surprise))

    def decode(v: Variables, latent: Latent) -> Mapping[str, Array]:
        return {image: from_unit(space, nets.dec.apply(v.params["vae"]["dec"], latent.z))}

    widths = dict.fromkeys(("z", "mean", "log_var"), config.size) | dict.fromkeys(Memory._fields, config.hidden)
    storage = {name: Space((width,), "float32") for name, width in widths.items()}
    return WorldModel(
        init, initial, observe, starts, imagine, lambda state: state, feat, predict, loss, decode, pack, unpack,
        storage | {"encoder": Space((1,), "int32")},
        dict.fromkeys((f"rec/{image}", "kl", *rnn_losses), 1.0), reads=frozenset(Code._fields),
    )  # fmt: skip


def phase_of(phases: tuple[int, int], updates: Array) -> Array:
    """Returns the phase [] int32 after `updates` [] updates: V, M or C. phases: the updates at which M and C begin."""
    m_begins, c_begins = ((updates >= start).astype(jnp.int32) for start in phases)
    return m_begins + c_begins


def init_params(nets: Nets, spec: Spec, key: Key, latent: Latent, feat: Any) -> Params:
    """Returns the parameters of V under "vae", and those of M and the reward head under "rnn"."""
    keys = named_keys(key, "enc", "dec", "lstm", "out", "rew")
    (image,) = spec.obs.values()
    action = jnp.zeros((1, spec.action_width))
    rnn = {
        "lstm": nets.lstm.init(keys["lstm"], latent.memory, latent.z, action),
        "out": nets.out.init(keys["out"], latent.memory.hidden),
    }
    if nets.reward:
        rnn["rew"] = nets.reward.init(keys["rew"], feat(latent))
    enc = nets.enc.init(keys["enc"], jnp.zeros((1, *image.shape)))
    return {"vae": {"enc": enc, "dec": nets.dec.init(keys["dec"], latent.z)}, "rnn": rnn}


def remember(
    nets: Nets, params: Params, state: Latent, z: Array, code: Code, prev_action: Array, is_first: Array
) -> Latent:
    """Returns the latents [B, T, ..] of rows with z [B, T, Z] and code [B, T, ..], which follow `state` [B, ..].

    The memory of a row has read the codes and actions of the rows before it; that of a first row is empty.
    """
    before = jnp.concatenate([state.z[:, None], z[:, :-1]], 1)
    reset = jnp.pad(is_first[:, :-1], ((0, 0), (1, 0)))  # the memory of `state` is empty if its row is a first one
    _, memories = mdn_rnn.read(nets.lstm, params["rnn"]["lstm"], state.memory, (before, prev_action), reset)
    memories = jax.tree.map(lambda x: jnp.where(is_first[..., None], 0.0, x), memories)
    return Latent(z, memories, code)


def no_code(z: Array) -> Code:
    """Returns the code of rows [.., Z] that no encoder has seen."""
    return Code(jnp.zeros_like(z), jnp.zeros_like(z), jnp.zeros((*z.shape[:-1], 1), jnp.int32))


def draw(key: Key, code: Code) -> Array:
    """Draws z [.., Z]."""
    return vae.draw(code.mean, code.log_var, jax.random.normal(key, code.mean.shape))


def fingerprint(params: Params) -> Array:
    """Returns the sum [] int32 of the bits of all float32 parameters. It wraps around, so the order does not matter."""
    bits = [jax.lax.bitcast_convert_type(sg(x), jnp.int32).sum(dtype=jnp.int32) for x in jax.tree.leaves(params)]
    return jnp.stack(bits).sum(dtype=jnp.int32)


def stored_or(stored: Mapping[str, Array], params: Params, encode: Callable[[], Code]) -> Code:
    """Returns the codes [B, T, ..] stored with the rows if an encoder with `params` made them all, else `encode()`."""
    if not stored:
        return encode()
    code = Code(*(stored[name] for name in Code._fields))
    return jax.lax.cond((code.encoder == fingerprint(params)).all(), lambda: code, encode)


def vae_losses(nets: Nets, config: Config, params: Params, key: Key, image: Array) -> tuple[Losses, Array]:
    """Returns V's losses {"rec", "kl"} [..] on images [.., 64, 64, n] from 0 to 1, and their codes z [.., Z].

    rec: squared error, summed over pixels | kl: the KL to a standard normal, or its floor where it is below
    """
    mean, log_var = nets.enc.apply(params["enc"], image)
    z = vae.draw(mean, log_var, jax.random.normal(key, mean.shape))
    rec = jnp.square(nets.dec.apply(params["dec"], z) - image).sum((-3, -2, -1))
    return {"rec": rec, "kl": jnp.maximum(vae.kl_divergence(mean, log_var), config.kl_tolerance * config.size)}, z


def memory_losses(nets: Nets, params: Params, latents: Latent, feats: Array, batch: Batch) -> Losses:
    """Returns M's losses [B, T - 1] on all rows but the first of a batch, whose past may be missing.

    mdn: the negative log-likelihood of z, averaged over Z | done: see `mdn_rnn.done_loss` | rew: of the reward head
    The first row of an episode is not predicted, so its losses are 0.
    """
    latents, feats, batch = jax.tree.map(lambda x: x[:, 1:], (latents, feats, batch._replace(latent={})))
    predicted = nets.out.apply(params["out"], latents.memory.hidden)
    losses = {
        "mdn": -mixture.log_likelihood(predicted.z, sg(latents.z)).mean(-1),
        "done": mdn_rnn.done_loss(predicted.done[..., 0], batch.is_terminal),
    }
    if nets.reward:
        losses["rew"] = nets.reward.loss(params["rew"], feats, batch.reward)
    return {name: jnp.where(batch.is_first, 0.0, loss) for name, loss in losses.items()}


def starts(v: Variables, latent: Latent, prev_action: Array, is_first: Array) -> Latent:
    """`WorldModel.starts`: returns the latents of all rows, reshaped from [B, T, ..] to [B * T, ..]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), latent)


def pack(latent: Latent) -> Mapping[str, Array]:
    """`WorldModel.pack`: returns the arrays of a latent by name."""
    return {"z": latent.z, **latent.memory._asdict(), **latent.code._asdict()}


def unpack(packed: Mapping[str, Array]) -> Latent:
    """`WorldModel.unpack`: the inverse of `pack`."""
    code = Code(*(packed[name] for name in Code._fields))
    return Latent(packed["z"], Memory(packed["hidden"], packed["cell"]), code)
