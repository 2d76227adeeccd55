"""A world model of your own: a recurrent network without random latents.

    dreamer train probe --env probes:both --agent.world-model.name docs.own_world_model

It sees vectors only. Its state is the output of a GRU that has read all rows up to now. In a dream there is no row to
read, so the network reads its own guess of the next one.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer.errors import UserError
from dreamer.fields import at_least
from dreamer.interfaces import Array, Batch, Key, Learned, Variables, WorldModel
from dreamer.nets import predictors
from dreamer.nets.adapters import from_flax
from dreamer.nets.encoder import concat_vectors
from dreamer.nets.layers import MLP, Linear
from dreamer.ops.scan import scan_time
from dreamer.spaces import Space, Spec

State = dict[str, Array]  # {"deter": [.., D]}
NAMES = {"rew": "reward", "con": "cont"}  # of a head's loss -> of its prediction


@dataclasses.dataclass(frozen=True)
class Config:
    """A deterministic recurrent world model."""

    name: str = "docs.own_world_model"
    "the module that holds it"
    deter: Annotated[int, at_least(1)] = 128
    "D, width of the recurrent state"
    units: Annotated[int, at_least(1)] = 64
    "width of the hidden layers"


class Core(nn.Module):
    """deter [N, D], action [N, A], row [N, O] -> the next deter [N, D]."""

    width: int

    @nn.compact
    def __call__(self, deter: Array, action: Array, row: Array) -> Array:
        return nn.GRUCell(self.width)(deter, jnp.concatenate([action, row], -1))[0]


class Numbers(nn.Module):
    """inputs [.., n] -> [.., count]."""

    units: int
    count: int

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        return Linear(self.count)(MLP(1, self.units)(jnp.concatenate(inputs, -1)))


def make(config: Config, spec: Spec, *, dtype: Any, horizon: float, contdisc: bool) -> WorldModel:
    """The world model for an environment, in float32. UserError when an observation is an image."""
    if images := [name for name, space in spec.obs.items() if space.image]:
        raise UserError(f"docs.own_world_model cannot see images, and {images[0]!r} is one")
    width = sum(space.width for space in spec.obs.values())  # O, numbers in a row
    core = from_flax(Core(config.deter))
    guess = from_flax(Numbers(config.units, width))  # of the next row, from deter and action
    decoder = from_flax(Numbers(config.units, width))
    heads = {"rew": predictors.scalar(1, config.units), "con": predictors.chance(1, config.units)}
    live = 1 - 1 / horizon if contdisc else 1.0

    def init(key: Key) -> Variables:
        deter, action, row = jnp.zeros((1, config.deter)), jnp.zeros((1, spec.action_width)), jnp.zeros((1, width))
        keys = iter(jax.random.split(key, 5))
        params = {
            "core": core.init(next(keys), deter, action, row),
            "guess": guess.init(next(keys), deter, action),
            "dec": decoder.init(next(keys), deter),
        }
        return Variables(params | {name: head.init(next(keys), deter) for name, head in heads.items()})

    def initial(batch_size: int) -> State:
        return {"deter": jnp.zeros((batch_size, config.deter))}

    def read(v: Variables, state: State, row: Array, prev_action: Array, is_first: Array) -> tuple[State, Array, Array]:
        """Reads rows [B, T, O] -> the last state, deter [B, T, D], and a guess of each row from those before it."""

        def step(deter: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            row, action, first = inputs
            deter, action = (jnp.where(first[:, None], 0.0, x) for x in (deter, action))
            after = core.apply(v.params["core"], deter, action, row)
            return after, (after, guess.apply(v.params["guess"], deter, action))

        last, (deter, guessed) = scan_time(step, state["deter"], (row, prev_action, is_first))
        return {"deter": last}, deter, guessed

    def observe(v: Variables, key: Key, state: State, obs: Any, prev_action: Array, is_first: Array) -> Any:
        state, deter, _ = read(v, state, concat_vectors(spec.obs, obs, True), prev_action, is_first)
        return state, {"deter": deter}

    def imagine(v: Variables, key: Key, state: State, action: Array) -> State:
        row = guess.apply(v.params["guess"], state["deter"], action)
        return {"deter": core.apply(v.params["core"], state["deter"], action, row)}

    def predict(v: Variables, feat: Array) -> dict[str, Array]:
        return {NAMES[name]: head.predict(v.params[name], feat) for name, head in heads.items()}

    def loss(v: Variables, key: Key, state: State, prev_action: Array, batch: Batch) -> Any:
        row = concat_vectors(spec.obs, batch.obs, True)
        _, deter, guessed = read(v, state, row, prev_action, batch.is_first)
        losses = {
            "rec": jnp.square(decoder.apply(v.params["dec"], deter) - row).sum(-1),
            "dyn": jnp.where(batch.is_first, 0.0, jnp.square(guessed - row).sum(-1)),
            "rew": heads["rew"].loss(v.params["rew"], deter, batch.reward),
            "con": heads["con"].loss(v.params["con"], deter, live * (1.0 - batch.is_terminal)),
        }
        return losses, Learned({"deter": deter}, v.extra, {})

    return WorldModel(
        init=init, initial=initial, observe=observe, imagine=imagine, predict=predict, loss=loss,
        starts=lambda v, latent, prev_action, is_first: {"deter": latent["deter"].reshape(-1, config.deter)},
        latent=lambda state: state,  # one row's representation is all that the next row needs
        feat=lambda latent: latent["deter"],
        decode=lambda v, latent: {},  # no pictures
        pack=lambda latent: latent,
        unpack=lambda packed: packed,
        storage={"deter": Space((config.deter,), "float32")},
        scales={"rec": 1.0, "dyn": 1.0, "rew": 1.0, "con": 1.0},
    )  # fmt: skip
