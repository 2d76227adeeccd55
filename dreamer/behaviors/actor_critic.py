"""An actor and a critic that learn from dreams. They use a `Dream`, and do not depend on the kind of world model.

With a `penalty`, an ensemble of one-step predictors learns from the replayed rows. Where its members disagree, dreamed
rewards are lowered, so that the actor stays close to the data. Source: offline DreamerV2, Lu et al. 2022.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dreamer.dreaming import ensemble
from dreamer.dreaming.actor_critic import Imagined, Norms, Settings, imagined_losses, replayed_loss
from dreamer.dreaming.rollout import rollout
from dreamer.errors import UserError
from dreamer.fields import at_least, between, check_bound, check_bounds
from dreamer.interfaces import (
    Array,
    Ask,
    Behavior,
    Dream,
    Extra,
    Hyper,
    Key,
    Metrics,
    Mode,
    Network,
    Replayed,
    State,
    Variables,
)  # fmt: skip
from dreamer.nets.adapters import from_flax
from dreamer.nets.heads import ActorHead, ScalarHead
from dreamer.ops import action_dist, normalize
from dreamer.ops import distributions as dist
from dreamer.ops.action_dist import ActionDist
from dreamer.ops.keys import named_keys
from dreamer.spaces import Spec

sg = jax.lax.stop_gradient
USUAL = normalize.stream()  # the usual size of the disagreement in dreams
TRACED = ("entropy", "lam", "slow_rate", "slow_scale", "minstd", "maxstd")  # fields of Config that are in hyper


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of DreamerV3's actor-critic."""

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
    "use the slow critic's values in returns and advantages"
    return_norm: Literal["percentiles", "moments", "none"] = "percentiles"
    "normaliser that scales the returns in the advantage"
    value_norm: Literal["percentiles", "moments", "none"] = "none"
    "normaliser of the critic's targets"
    advantage_norm: Literal["percentiles", "moments", "none"] = "none"
    "normaliser of the advantages"
    policy_scale: Annotated[float, at_least(0)] = 1.0
    "weight of the actor's loss"
    value_scale: Annotated[float, at_least(0)] = 1.0
    "weight of the critic's loss in dreams"
    repval_scale: Annotated[float, at_least(0)] = 0.3
    "weight of the critic's loss on replayed sequences, which also trains the world model"
    penalty: Annotated[float, at_least(0)] = 0.0
    "weight of the ensemble's disagreement, which is subtracted from dreamed rewards; 0 = no ensemble"
    penalty_norm: Literal["none", "stream"] = "none"
    "stream: divide the disagreement by a moving average of its mean in dreams; none: use it as it is"
    ensemble: ensemble.Config = ensemble.Config()
    "the ensemble"

    def __post_init__(self) -> None:
        check_bounds(self)
        check_bound("maxstd", self.maxstd, at_least(self.minstd))
        if self.bins % 2 == 0:
            raise UserError(f"bins must be odd, not {self.bins}")


class Nets(NamedTuple):
    """The networks of an actor-critic, and what is needed to read their outputs.

    actor(feat) -> outputs that `ActionDist` reads | critic(feat) -> logits [.., K] of the two-hot `bins` [K]
    norms: the normalisers | masked: whether the environment has action masks
    ensemble(feat, action) -> predictions [M, .., F] of the next features; None: there is no penalty
    """

    actor: Network
    critic: Network
    bins: Any
    norms: Norms
    masked: bool
    ensemble: Network | None = None


def make(
    config: Config, spec: Spec, *, feat_width: int, dtype: Any = jnp.float32, horizon: float = 333.0,
    contdisc: bool = True, sample: Callable[..., Array] | None = None,
) -> Behavior:  # fmt: skip
    """Makes the actor-critic for features [.., feat_width].

    contdisc: whether the world model's `cont` already contains the discount 1 - 1 / horizon
    sample(key, actor outputs, allowed) -> action: draws the actions; None: the `sample` of the `ActionDist`
    """
    nets, actions_of = make_nets(config, spec, dtype, feat_width), functools.partial(_actions, config, spec, sample)

    def init(key: Key) -> Variables:
        keys, feat = named_keys(key, "pol", "val", "ens"), jnp.zeros((1, feat_width))
        params = {"pol": nets.actor.init(keys["pol"], feat), "val": nets.critic.init(keys["val"], feat)}
        # A copy, so that the two never share a buffer that may be donated.
        slow = jax.tree.map(jnp.copy, params["val"])
        extra = {"slow": slow, "norms": Norms(*(norm.init() for norm in nets.norms))}
        numbers = {name: getattr(config, name) for name in TRACED} | {"discount": 1 - 1 / horizon}
        if nets.ensemble:
            params["ens"] = nets.ensemble.init(keys["ens"], feat, jnp.zeros((1, spec.action_width)))
            extra["penalty"], numbers["penalty"] = USUAL.init(), config.penalty
        return Variables(params, extra, {name: jnp.float32(value) for name, value in numbers.items()})

    def act(
        v: Variables, key: Key, dream: Dream, state: State, carry: tuple, ask: Ask, mode: Mode
    ) -> tuple[Array, tuple]:
        outs, actions = nets.actor.apply(v.params["pol"], dream.feat(state)), actions_of(v.hyper)
        return actions.mode(outs, ask.allowed) if mode == "mode" else actions.sample(key, outs, ask.allowed), carry

    def loss(
        v: Variables, key: Key, dream: Dream, start: State, replayed: Replayed
    ) -> tuple[dict[str, Array], tuple[Extra, Metrics]]:
        hyper, actions = v.hyper, actions_of(v.hyper)
        discount = 1.0 if contdisc else hyper["discount"]
        numbers = (hyper["lam"], hyper["entropy"], hyper["slow_scale"])
        settings = Settings(nets.bins, *numbers, config.slow_target, discount)

        def policy(carry: tuple, key: Key, feat: Array) -> tuple[tuple, Array]:
            allowed = dream.predict(feat)["allowed"] if nets.masked else None
            return carry, actions.sample(key, nets.actor.apply(sg(v.params["pol"]), feat), allowed)

        feat, action, _ = sg(rollout(dream, policy, (), key, sg(start), config.imagine_length))
        dreamed, max_entropy = _evaluate(nets, actions, v, dream, feat, action)
        extra, more = v.extra, dict[str, Array]()
        if nets.ensemble:
            dreamed, extra, more = penalised(config, nets.ensemble, v, dreamed, feat, action)
        losses, returns, states, metrics = imagined_losses(settings, nets.norms, v.extra["norms"], dreamed)
        metrics["dream/action_entropy_max"] = max_entropy
        boot = returns[:, 0].reshape(replayed.rows.reward.shape)
        logits = nets.critic.apply(v.params["val"], replayed.feat)
        slow_value = dist.twohot_mean(nets.critic.apply(v.extra["slow"], sg(replayed.feat)), nets.bins)
        losses["repval"], _ = replayed_loss(settings, hyper["discount"], replayed.rows, boot, logits, slow_value)
        if nets.ensemble:
            predicted = nets.ensemble.apply(v.params["ens"], sg(replayed.feat), replayed.rows.action)
            losses["ens"] = ensemble.replayed_loss(predicted, replayed.feat, replayed.rows.is_first)
            known = sg(ensemble.disagreement(predicted[:, :, :-1], config.ensemble.measure))
            within = ~replayed.rows.is_first[:, 1:]
            more["ensemble/disagreement"] = jnp.sum(known * within) / jnp.maximum(within.sum(), 1)
        return losses, ({**extra, "norms": states}, {**metrics, **more})

    def refresh(v: Variables) -> Extra:
        rate = v.hyper["slow_rate"]
        slow = jax.tree.map(lambda fast, slow: rate * fast + (1 - rate) * slow, v.params["val"], v.extra["slow"])
        return {**v.extra, "slow": slow}

    scales = {"policy": config.policy_scale, "value": config.value_scale, "repval": config.repval_scale}
    scales |= {"ens": config.ensemble.scale} if nets.ensemble else {}
    needs = frozenset({"reward", "cont"} | ({"allowed"} if spec.masked else set()))
    return Behavior(init, lambda envs: (), act, loss, refresh, scales, needs)


def _actions(config: Config, spec: Spec, sample: Callable[..., Array] | None, hyper: Hyper) -> ActionDist:
    """Returns the distribution of actions; `sample` replaces its own way of drawing them."""
    actions = action_dist.make(
        spec.action.classes, spec.action.continuous, unimix=config.actor_unimix, minstd=hyper["minstd"],
        maxstd=hyper["maxstd"],
    )  # fmt: skip
    return actions._replace(sample=sample) if sample else actions


def make_nets(config: Config, spec: Spec, dtype: Any, feat_width: int) -> Nets:
    """Makes the networks of actor and critic, the critic's bins, the normalisers, and the ensemble of a penalty."""
    action = spec.action
    return Nets(
        actor=from_flax(ActorHead(config.actor_layers, config.units, action.onehots, action.continuous, dtype=dtype)),
        critic=from_flax(ScalarHead(config.critic_layers, config.units, config.bins, dtype=dtype)),
        bins=dist.twohot_bins(config.bins),
        norms=Norms(*map(normalize.make, (config.return_norm, config.value_norm, config.advantage_norm))),
        masked=spec.masked,
        ensemble=ensemble.make(config.ensemble, feat_width, dtype) if config.penalty else None,
    )


def _evaluate(
    nets: Nets, actions: ActionDist, v: Variables, dream: Dream, feat: Array, action: Array
) -> tuple[Imagined, Array]:
    """Computes the predictions, the critic's values and the policy in dreamed states.

    Returns them as an Imagined, and the largest entropy that the policy could have, averaged over the states, [].
    """
    # Kept in dreamed order, without a copy. Merging the axes into rows would gather a batch split over devices.
    feat, action = (x.swapaxes(0, 1) for x in (feat, action))
    predicted = dream.predict(feat)
    outs, allowed = nets.actor.apply(v.params["pol"], feat), predicted["allowed"] if nets.masked else None
    rows = Imagined(
        reward=predicted["reward"],
        cont=predicted["cont"],
        value_logits=nets.critic.apply(v.params["val"], feat),
        slow_value=dist.twohot_mean(nets.critic.apply(v.extra["slow"], feat), nets.bins),
        log_prob=actions.log_prob(outs, action, allowed),
        entropy=actions.entropy(outs, allowed),
    )
    # Without masks the largest entropy is the same in every row: one row is enough.
    widest = action_dist.widest(outs if nets.masked else jax.tree.map(lambda x: x[:2, :1], outs))
    max_entropy = actions.entropy(widest, allowed)[:-1].mean()
    return jax.tree.map(lambda x: x.swapaxes(0, 1), rows), max_entropy


def penalised(
    config: Config, net: Network, v: Variables, dreamed: Imagined, feat: Array, action: Array
) -> tuple[Imagined, Extra, Metrics]:
    """Lowers the rewards of dreams by the disagreement about the steps that lead to them, times the penalty.

    net: the ensemble | feat [N, H+1, F], action [N, H+1, A]: the dreams | dreamed: its reward [N, H+1]
    Returns the dreams with new rewards, the next extra, and metrics. r_t+1 - penalty * disagreement(feat_t, action_t).
    """
    found = ensemble.of_steps(config.ensemble, net, v.params["ens"], feat[:, :-1], action[:, :-1])
    usual = USUAL.update(v.extra["penalty"], found)
    scale = USUAL.stats(usual)[1] if config.penalty_norm == "stream" else 1.0
    penalty = v.hyper["penalty"] * found / scale
    reward = dreamed.reward.at[:, 1:].add(-penalty)
    metrics = {"dream/disagreement": found.mean(), "dream/penalty": penalty.mean()}
    return dreamed._replace(reward=reward), {**v.extra, "penalty": usual}, metrics
