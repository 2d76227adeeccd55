"""Losses of an actor and a critic on dreamed and on replayed sequences.

Source: DreamerV3, eq. 4 to 7. Behaviors with other advantages can use these losses, too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dreamer.interfaces import Array, Batch, Metrics
from dreamer.ops import distributions as dist
from dreamer.ops.returns import lambda_returns

sg = jax.lax.stop_gradient


class Norms(NamedTuple):
    """The normalisers of returns, values and advantages, or the states of these normalisers."""

    ret: Any
    val: Any
    adv: Any


class Imagined(NamedTuple):
    """A batch of N dreams with H + 1 states each.

    reward, cont [N, H+1] | value_logits [N, H+1, K]: the critic's logits, with gradient
    slow_value [N, H+1]: the slow critic's values, in the critic's normalised units
    log_prob, entropy [N, H+1]: log-probability of each action and entropy of the actor, with gradient
    """

    reward: Array
    cont: Array
    value_logits: Array
    slow_value: Array
    log_prob: Array
    entropy: Array


class Settings(NamedTuple):
    """Settings of the losses; all but `bins` and `slow_target` may be traced.

    bins [K]: the two-hot bins of the critic | lam: lambda of the returns | entropy: weight of the actor's entropy
    slow_scale: weight of the critic's pull to the slow critic | slow_target: compute returns and advantages with the
        slow critic's values | discount: 1 if cont already contains the discount
    """

    bins: Any
    lam: Array | float
    entropy: Array | float
    slow_scale: Array | float
    slow_target: bool
    discount: Array | float


def imagined_losses(
    settings: Settings, norms: Norms, states: Norms, dreamed: Imagined
) -> tuple[dict[str, Array], Array, Norms, Metrics]:
    """Computes the losses of actor and critic on dreamed trajectories. states: the states of the normalisers `norms`.

    Returns losses {"policy", "value": [N, H]}, the lambda-returns [N, H], the next states of `norms`, and metrics.
    The actor learns by REINFORCE, for discrete and for continuous actions. Source: DreamerV3, eq. 4 to 7.
    """
    chex.assert_equal_shape([dreamed.reward, dreamed.cont, dreamed.slow_value, dreamed.log_prob, dreamed.entropy])
    offset, scale = norms.val.stats(states.val)
    value = sg(dist.twohot_mean(dreamed.value_logits, settings.bins)) * scale + offset
    slow_value = sg(dreamed.slow_value) * scale + offset
    baseline = slow_value if settings.slow_target else value
    # The whole trajectory is weighted by the cont of its start: dreams from a terminal state have weight 0.
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
    """Returns the critic's loss [..]: the two-hot cross-entropy of logits [.., K] with target [..].

    The cross-entropy with slow_value [..], the slow critic's values, is added with the weight slow_scale.
    """
    loss = dist.twohot_loss(logits, target, settings.bins)
    return loss + settings.slow_scale * dist.twohot_loss(logits, slow_value, settings.bins)


def replayed_loss(
    settings: Settings, discount: Array | float, rows: Batch, boot: Array, logits: Array, slow_value: Array
) -> tuple[Array, Array]:
    """Computes the critic's loss on replayed sequences `rows` [B, T]. Returns loss and lambda-returns, both [B, T-1].

    boot [B, T]: the dreamed return from each row, which serves as the value of the row | slow_value [B, T]: the slow
    critic's values | logits [B, T, K]: the critic's logits, with gradient
    A terminal row has the value 0. A row that is last but not terminal has the value boot. Last rows have no loss.
    """
    last = rows.is_last.astype(jnp.float32)
    live = (1 - rows.is_terminal.astype(jnp.float32)) * discount
    returns = sg(
        jax.vmap(lambda_returns)(
            rows.reward[:, 1:], live[:, 1:], boot[:, 1:], ((1 - last) * settings.lam)[:, 1:]
        )
    )
    loss = (1 - last[:, :-1]) * critic_loss(settings, logits[:, :-1], returns, sg(slow_value)[:, :-1])
    return loss, returns
