"""An actor and a critic that learn from dreams. They know a `Dream` and nothing of the world model behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dreamer.dreaming import rollout
from dreamer.errors import UserError
from dreamer.fields import at_least, between, check_bound, check_bounds
from dreamer.interfaces import Array, Behavior, Dream, Extra, Key, Latent, Metrics, Network, Params, Replayed, Variables
from dreamer.nets.adapters import from_flax
from dreamer.nets.heads import ActorHead, ScalarHead
from dreamer.ops import action_dist, normalize
from dreamer.ops import distributions as dist
from dreamer.ops.action_dist import ActionDist
from dreamer.ops.keys import named_keys
from dreamer.ops.returns import lambda_returns
from dreamer.spaces import Spec

sg = jax.lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class Config:
    """DreamerV3's actor-critic."""

    name: str = "actor_critic"
    "module in dreamer.behaviors, or a dotted module of your own"
    units: Annotated[int, at_least(1)] = 64
    "width of the actor and critic MLPs"
    actor_layers: Annotated[int, at_least(0)] = 3
    "hidden layers of the actor"
    critic_layers: Annotated[int, at_least(0)] = 3
    "hidden layers of the critic"
    bins: Annotated[int, at_least(3)] = 255
    "K, two-hot bins of the critic"
    imagine_length: Annotated[int, at_least(1)] = 15
    "H, steps dreamed from each replayed state"
    lam: Annotated[float, between(0, 1)] = 0.95
    "lambda of the returns, dreamed and replayed"
    entropy: Annotated[float, at_least(0)] = 3e-4
    "weight of the actor's entropy"
    actor_unimix: Annotated[float, between(0, 1)] = 0.0
    "share of the uniform distribution mixed into a discrete actor (the reference's actor has none)"
    minstd: Annotated[float, at_least(0)] = 0.1
    "smallest standard deviation of a continuous actor"
    maxstd: float = 1.0
    "largest standard deviation of a continuous actor"
    slow_rate: Annotated[float, between(0, 1)] = 0.02
    "share of the critic that moves into the slow critic at each update"
    slow_scale: Annotated[float, at_least(0)] = 1.0
    "weight of the critic's pull to the slow critic's mean"
    slow_target: bool = False
    "take the values in returns and advantages from the slow critic"
    return_norm: Literal["percentiles", "moments", "none"] = "percentiles"
    "what scales the returns in the advantage"
    value_norm: Literal["percentiles", "moments", "none"] = "none"
    "what normalises the critic's targets"
    advantage_norm: Literal["percentiles", "moments", "none"] = "none"
    "what normalises the advantages"
    policy_scale: Annotated[float, at_least(0)] = 1.0
    "weight of the actor's loss"
    value_scale: Annotated[float, at_least(0)] = 1.0
    "weight of the critic's loss in dreams"
    repval_scale: Annotated[float, at_least(0)] = 0.3
    "weight of the critic's loss on replayed sequences, which also trains the world model"

    def __post_init__(self) -> None:
        check_bounds(self)
        check_bound("maxstd", self.maxstd, at_least(self.minstd))
        if self.bins % 2 == 0:
            raise UserError(f"bins must be odd, not {self.bins}")


# --- losses -----------------------------------------------------------------------------------------


class Norms(NamedTuple):
    """Normalisers of returns, values and advantages, or their states."""

    ret: Any
    val: Any
    adv: Any


class Imagined(NamedTuple):
    """One dreamed batch, H + 1 states: reward, cont [N, H+1], critic logits [N, H+1, K] with gradient, slow values
    [N, H+1] before normalisation, log_prob and entropy [N, H+1] of the actor with gradient."""

    reward: Array
    cont: Array
    value_logits: Array
    slow_value: Array
    log_prob: Array
    entropy: Array


class Settings(NamedTuple):
    """Numbers of the losses; `entropy` and `discount` may be traced. discount is 1 when cont contains it already."""

    bins: Any
    lam: float
    entropy: Array | float
    slow_scale: float
    slow_target: bool
    discount: Array | float


def imagined_losses(
    settings: Settings, norms: Norms, states: Norms, dreamed: Imagined
) -> tuple[dict[str, Array], Array, Norms, Metrics]:
    """Actor and critic losses of dreamed trajectories.

    Returns losses {"policy", "value": [N, H]}, returns [N, H], the next normaliser states and metrics.
    REINFORCE for discrete and continuous actions alike. Source: DreamerV3, eq. 4 to 7.
    """
    chex.assert_equal_shape([dreamed.reward, dreamed.cont, dreamed.slow_value, dreamed.log_prob, dreamed.entropy])
    offset, scale = norms.val.stats(states.val)
    value = sg(dist.twohot_mean(dreamed.value_logits, settings.bins)) * scale + offset
    slow_value = sg(dreamed.slow_value) * scale + offset
    baseline = slow_value if settings.slow_target else value
    # The start's own cont weighs the whole trajectory: dreams from a terminal state count nothing.
    cont = settings.discount * dreamed.cont
    weight = sg(jnp.cumprod(cont, 1) / settings.discount)
    returns = sg(
        jax.vmap(lambda r, c, v: lambda_returns(r, c, v, settings.lam))(
            dreamed.reward[:, 1:], cont[:, 1:], baseline[:, 1:]
        )
    )
    ret_state = norms.ret.update(states.ret, returns)
    ret_offset, ret_scale = norms.ret.stats(ret_state)
    adv = (returns - baseline[:, :-1]) / ret_scale
    adv_state = norms.adv.update(states.adv, adv)
    adv_offset, adv_scale = norms.adv.stats(adv_state)
    gain = dreamed.log_prob[:, :-1] * sg((adv - adv_offset) / adv_scale) + settings.entropy * dreamed.entropy[:, :-1]
    val_state = norms.val.update(states.val, returns)
    target = (returns - norms.val.stats(val_state)[0]) / norms.val.stats(val_state)[1]
    losses = {
        "policy": weight[:, :-1] * -gain,
        "value": weight[:, :-1]
        * critic_loss(settings, dreamed.value_logits[:, :-1], target, sg(dreamed.slow_value)[:, :-1]),
    }
    normed = (returns - ret_offset) / ret_scale
    metrics = {
        "dream/reward": dreamed.reward.mean(), "dream/cont": dreamed.cont.mean(), "dream/weight": weight.mean(),
        "dream/adv": adv.mean(), "dream/adv_std": adv.std(), "dream/adv_mag": jnp.abs(adv).mean(),
        "dream/value": value.mean(), "dream/slow_value": slow_value.mean(), "dream/target": target.mean(),
        "dream/return": returns.mean(), "dream/return_scale": ret_scale, "dream/return_normed": normed.mean(),
        "dream/return_normed_min": normed.min(), "dream/return_normed_max": normed.max(),
        "dream/return_rate": (jnp.abs(normed) >= 1.0).mean(), "dream/action_entropy": dreamed.entropy[:, :-1].mean(),
    }  # fmt: skip
    return losses, returns, Norms(ret_state, val_state, adv_state), metrics


def critic_loss(settings: Settings, logits: Array, target: Array, slow_value: Array) -> Array:
    """Two-hot cross-entropy of logits [.., K] with the target [..] and, weighted, with the slow critic's mean [..]."""
    loss = dist.twohot_loss(logits, target, settings.bins)
    return loss + settings.slow_scale * dist.twohot_loss(logits, slow_value, settings.bins)


def replayed_loss(
    settings: Settings, discount: Array | float, replayed: Replayed, boot: Array, logits: Array, slow_value: Array
) -> tuple[Array, Array]:
    """The critic's loss on real sequences -> loss [B, T-1], returns [B, T-1].

    boot [B, T]: the dreamed return from each row, which bootstraps where a sequence is cut. logits [B, T, K] with
    gradient. The value beyond a terminal row is 0, beyond a merely last row it is boot.
    """
    last = replayed.is_last.astype(jnp.float32)
    live = (1 - replayed.is_terminal.astype(jnp.float32)) * discount
    returns = sg(
        jax.vmap(lambda_returns)(
            replayed.reward[:, 1:], live[:, 1:], boot[:, 1:], ((1 - last) * settings.lam)[:, 1:]
        )
    )
    loss = (1 - last[:, :-1]) * critic_loss(settings, logits[:, :-1], returns, sg(slow_value)[:, :-1])
    return loss, returns


# --- the record -------------------------------------------------------------------------------------


def make(
    config: Config, spec: Spec, *, feat_width: int, dtype: Any = jnp.float32, horizon: float = 333.0,
    contdisc: bool = True, sample: Callable[..., Array] | None = None,
) -> Behavior:  # fmt: skip
    """The actor-critic for features [.., feat_width]; `sample(key, actor outputs, allowed) -> action` draws actions."""
    taken = spec.action
    actor = from_flax(ActorHead(config.actor_layers, config.units, taken.onehots, taken.continuous, dtype=dtype))
    critic = from_flax(ScalarHead(config.critic_layers, config.units, config.bins, dtype=dtype))
    actions = action_dist.make(
        taken.classes, taken.continuous, unimix=config.actor_unimix, minstd=config.minstd, maxstd=config.maxstd
    )
    draw = sample or actions.sample
    norms = Norms(*map(normalize.make, (config.return_norm, config.value_norm, config.advantage_norm)))
    bins = dist.twohot_bins(config.bins)

    def init(key: Key) -> Variables:
        keys, feat = named_keys(key, "pol", "val"), jnp.zeros((1, feat_width))
        params = {"pol": actor.init(keys["pol"], feat), "val": critic.init(keys["val"], feat)}
        hyper = {"entropy": jnp.float32(config.entropy), "discount": jnp.float32(1 - 1 / horizon)}
        states = Norms(*(norm.init() for norm in norms))
        # A copy, so that the two never share a buffer that may be donated.
        slow = jax.tree.map(jnp.copy, params["val"])
        return Variables(params, {"slow": slow, "norms": states, "hyper": hyper})

    def act(
        params: Params, key: Key, dream: Dream, latent: Latent, mode: Literal["sample", "mode"],
        allowed: Array | None = None,
    ) -> Array:  # fmt: skip
        outs = actor.apply(params["pol"], dream.feat(latent))
        return draw(key, outs, allowed) if mode == "sample" else actions.mode(outs, allowed)

    def loss(
        params: Params, extra: Extra, key: Key, dream: Dream, start: Latent, replayed: Replayed
    ) -> tuple[dict[str, Array], tuple[Extra, Metrics]]:
        hyper = extra["hyper"]
        discount = 1.0 if contdisc else hyper["discount"]
        settings = Settings(
            bins, config.lam, hyper["entropy"], config.slow_scale, config.slow_target, discount
        )

        def policy(key: Key, feat: Array) -> Array:
            return draw(key, actor.apply(sg(params["pol"]), feat), _allowed(dream, feat))

        feat, action = sg(rollout(dream, policy, key, sg(start), config.imagine_length))
        dreamed = _evaluate(actor, critic, actions, params, extra, dream, feat, action, bins)
        losses, returns, states, metrics = imagined_losses(settings, norms, extra["norms"], dreamed)
        boot = returns[:, 0].reshape(replayed.reward.shape)
        logits = critic.apply(params["val"], replayed.feat)
        slow_value = dist.twohot_mean(critic.apply(extra["slow"], sg(replayed.feat)), bins)
        losses["repval"], _ = replayed_loss(settings, hyper["discount"], replayed, boot, logits, slow_value)
        return losses, ({**extra, "norms": states}, metrics)

    def refresh(params: Params, extra: Extra) -> Extra:
        rate = config.slow_rate
        slow = jax.tree.map(lambda fast, slow: rate * fast + (1 - rate) * slow, params["val"], extra["slow"])
        return {**extra, "slow": slow}

    scales = {"policy": config.policy_scale, "value": config.value_scale, "repval": config.repval_scale}
    return Behavior(init, act, loss, refresh, scales)


def _evaluate(
    actor: Network, critic: Network, actions: ActionDist, params: Params, extra: Extra, dream: Dream, feat: Array,
    action: Array, bins: Any,
) -> Imagined:  # fmt: skip
    # In the order in which they were dreamed: no copy. One axis of rows would be gathered where devices share a batch.
    feat, action = (x.swapaxes(0, 1) for x in (feat, action))
    reward, cont = dream.predict(feat)
    outs, allowed = actor.apply(params["pol"], feat), _allowed(dream, feat)
    rows = Imagined(
        reward=reward,
        cont=cont,
        value_logits=critic.apply(params["val"], feat),
        slow_value=dist.twohot_mean(critic.apply(extra["slow"], feat), bins),
        log_prob=actions.log_prob(outs, action, allowed),
        entropy=actions.entropy(outs, allowed),
    )
    return jax.tree.map(lambda x: x.swapaxes(0, 1), rows)


def _allowed(dream: Dream, feat: Array) -> Array | None:
    return None if dream.allowed is None else dream.allowed(feat)
