"""What Director's goal autoencoder, manager and worker learn from replayed states and from dreams on two time scales.

Source: Director (Hafner et al. 2022). The behavior `director` makes the networks and keeps the variables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer.dreaming import hierarchy, judged
from dreamer.dreaming.hierarchy import Blocks
from dreamer.dreaming.judged import Judged
from dreamer.interfaces import Array, Dream, Extra, Key, Losses, Metrics, Network, Obs, Params, State, Variables
from dreamer.nets.predictors import Predictor
from dreamer.ops import action_dist
from dreamer.ops import distributions as dist
from dreamer.ops.action_dist import ActionDist
from dreamer.ops.adaptive import Range, adapt
from dreamer.spaces import Spec

sg = jax.lax.stop_gradient
ENTROPY = Range(1e-5, 1e2, inverse=True)  # of the weights of entropies
KL = Range(1e-5, 1.0)  # of the weight of the autoencoder's KL
NEAR = 0.7  # reward of the worker from which a goal counts as reached
SHOWN = 4  # goals in a picture


class Nets(NamedTuple):
    """The networks. enc(goal [.., G]) -> logits [.., S, C] | dec(code [.., S, C]) -> goal [.., G]

    manager(feat [.., F]) -> logits [.., S, C] | worker([feat, goal] [.., F + G]) -> outputs that `ActionDist` reads
    critics {name: Predictor}: "worker" of [feat, goal], the others of feat
    steps: K | classes: C | unimix: the share of the uniform distribution mixed into the manager
    """

    enc: Network
    dec: Network
    manager: Network
    worker: Network
    critics: Mapping[str, Predictor]
    steps: int
    classes: int
    unimix: float


class Part(NamedTuple):
    """What one part of the behavior learned: its losses, the next values of its extra, its metrics."""

    losses: Losses
    extra: dict[str, Any]
    metrics: Metrics


def beside(feat: Array, goal: Array) -> Array:
    """Returns [feat, goal] [.., F + G], in the dtype of the features [.., F]."""
    return jnp.concatenate([feat, goal.astype(feat.dtype)], -1)


def choose(nets: Nets, params: Params, key: Key | None, feat: Array) -> tuple[Array, Array]:
    """Returns the manager's code [.., S, C] and goal [.., G] for feat [.., F]; without a key, the most likely ones."""
    logits = dist.mix_uniform(nets.manager.apply(params["manager"], feat), nets.unimix)
    if key is None:
        code = jax.nn.one_hot(jnp.argmax(logits, -1), nets.classes)
    else:
        code = dist.sample_onehot(key, logits)
    return code, nets.dec.apply(params["dec"], code)


# --- what each part learns --------------------------------------------------------------------------


def dream_of(
    nets: Nets, actions: ActionDist, params: Params, key: Key, dream: Dream, start: State, blocks: int, masked: bool
) -> Blocks:
    """Dreams `blocks` blocks from start [N, ..]. masked: whether the model predicts which actions are allowed."""

    def work(key: Key, feat: Array, goal: Array) -> Array:
        allowed = dream.predict(feat)["allowed"] if masked else None
        return actions.sample(key, nets.worker.apply(params["worker"], beside(feat, goal)), allowed)

    return sg(
        hierarchy.dream_blocks(
            dream, lambda key, feat: choose(nets, params, key, feat), work, key, sg(start), blocks, nets.steps
        )
    )


def code_of(nets: Nets, params: Params, key: Key, state: Array) -> tuple[Array, Array]:
    """Draws the code [.., S, C] of state [.., G], with straight-through gradients. Returns it and its logits."""
    logits = dist.mix_uniform(nets.enc.apply(params, state), 0.0)
    return dist.straight_through(dist.sample_onehot(key, sg(logits)), logits), logits


def train_autoencoder(nets: Nets, v: Variables, key: Key, state: Array) -> Part:
    """Trains the autoencoder on replayed states [B, T, G]."""
    state = sg(state.astype(jnp.float32))
    code, logits = code_of(nets, v.params["enc"], key, state)
    rec, kl = judged.code_losses(nets.dec.apply(v.params["dec"], code), state, logits)
    weight = adapt(v.extra["weights"]["kl"], kl, v.hyper["kl_target"], KL)
    metrics = {"goal/rec": rec.mean(), "goal/kl": kl.mean(), "goal/kl_weight": weight}
    return Part({"goal": rec + weight * kl}, {"weights": {"kl": weight}}, metrics)


def _judge(
    critic: Predictor, v: Variables, name: str, seen: Array, reward: Array, cont: Array, scale: Array | float
) -> tuple[Judged, Array]:
    """Returns the returns and values of dreams by the critic `name`, and its loss [.., H].

    seen [.., H+1, n]: the inputs of the critic | reward [.., H] | cont [.., H+1]: without the discount
    """
    value = critic.predict(v.extra["slow"][name], seen)
    returns = judged.returns_of(reward, v.hyper["discount"] * cont, value, v.hyper["lam"])
    weight = hierarchy.state_weights(cont, v.hyper["discount"])[..., :-1]
    loss = weight * critic.loss(v.params[f"value_{name}"], seen[..., :-1, :], returns)
    return Judged(returns, value[..., :-1], scale), loss


def train_manager(nets: Nets, v: Variables, blocks: Blocks, cont: Array, rewards: Mapping[str, Array]) -> Part:
    """Trains the manager and its critics. cont [N, H+1] | rewards {"extrinsic", "exploration": [N, H]}"""
    coarse = {name: hierarchy.block_rewards(reward, cont, nets.steps) for name, reward in rewards.items()}
    conts = hierarchy.block_conts(cont, nets.steps)
    return manager_losses(nets, v, blocks.feat[:, :: nets.steps], blocks.code, conts, coarse)


def manager_losses(
    nets: Nets, v: Variables, feat: Array, code: Array, cont: Array, rewards: Mapping[str, Array]
) -> Part:
    """Returns what the manager and its critics learn from a dream of b blocks.

    feat [N, b+1, F], cont [N, b+1]: of the states between blocks | code [N, b, S, C] | rewards {name: [N, b]}
    """
    found, losses, metrics = {}, {}, {}
    for name, reward in rewards.items():
        scale = v.hyper[f"{name}_scale"]
        found[name], losses[f"value/{name}"] = _judge(nets.critics[name], v, name, feat, reward, cont, scale)
        metrics[f"manager/reward_{name}"] = reward.mean()
        metrics[f"manager/return_{name}"] = found[name].returns.mean()
    norms = v.extra["norms"]
    score, after, advantage = judged.score(found, norms, norms["manager_advantage"])
    logits = dist.mix_uniform(nets.manager.apply(v.params["manager"], feat[:, :-1]), nets.unimix)
    entropy = dist.categorical_entropy(logits) / math.log(nets.classes)
    weight = adapt(v.extra["weights"]["manager"], entropy, v.hyper["manager_entropy"], ENTROPY)
    log_prob = dist.categorical_log_prob(logits, code).sum(-1)
    bonus = (weight.reshape(1, 1, -1) * entropy).sum(-1)
    near = hierarchy.state_weights(cont, v.hyper["discount"])[:, :-1]
    losses["manager"] = judged.actor_loss(log_prob, bonus, score, near)
    metrics |= {"manager/entropy": entropy.mean(), "manager/entropy_weight": weight.mean()}
    extra = {"weights": {"manager": weight}, "norms": after | {"manager_advantage": advantage}}
    return Part(losses, extra, metrics)


def train_worker(
    nets: Nets, actions: ActionDist, v: Variables, blocks: Blocks, cont: Array, state: Array, allowed: Array | None
) -> Part:
    """Trains the worker and its critic. cont [N, H+1] | state [N, H+1, G] | allowed [N, H+1, n]: action masks"""
    feat, conts, states = (hierarchy.split_states(x, nets.steps) for x in (blocks.feat, cont, state))
    goal = jnp.broadcast_to(blocks.goal[:, :, None], states.shape)
    reward = hierarchy.goal_reward(goal, states)[..., 1:]
    action = hierarchy.split_steps(blocks.action, nets.steps)
    some = None if allowed is None else hierarchy.split_states(allowed, nets.steps)[..., :-1, :]
    part = worker_losses(nets, actions, v, beside(feat, goal), action, conts, reward, some)
    return part._replace(metrics={**part.metrics, "worker/reached": (reward[..., -1] > NEAR).mean()})


def worker_losses(
    nets: Nets, actions: ActionDist, v: Variables, seen: Array, action: Array, cont: Array, reward: Array,
    allowed: Array | None,
) -> Part:  # fmt: skip
    """Returns what the worker and its critic learn from dreams of K steps.

    seen [.., K+1, F+G]: features and goal | action [.., K, A], reward [.., K] | cont [.., K+1]
    allowed [.., K, n]: action masks
    """
    said, value_loss = _judge(nets.critics["worker"], v, "worker", seen, reward, cont, 1.0)
    norms = v.extra["norms"]
    score, after, advantage = judged.score({"worker": said}, norms, norms["worker_advantage"])
    outs = nets.worker.apply(v.params["worker"], seen[..., :-1, :])
    entropy = _relative_entropy(actions, v.hyper["minstd"], outs, allowed)
    weight = adapt(v.extra["weights"]["worker"], entropy, v.hyper["worker_entropy"], ENTROPY)
    near = hierarchy.state_weights(cont, v.hyper["discount"])[..., :-1]
    loss = judged.actor_loss(actions.log_prob(outs, action, allowed), weight * entropy, score, near)
    metrics = {
        "worker/reward": reward.mean(), "worker/return": said.returns.mean(), "worker/entropy": entropy.mean(),
        "worker/entropy_weight": weight,
    }  # fmt: skip
    extra = {"weights": {"worker": weight}, "norms": after | {"worker_advantage": advantage}}
    return Part({"worker": loss, "value/worker": value_loss}, extra, metrics)


def _relative_entropy(actions: ActionDist, minstd: Array, outs: Mapping[str, Array], allowed: Array | None) -> Array:
    """Returns the entropy [..] of the worker: 0 for the smallest that it can have, 1 for the largest."""
    most = actions.entropy(action_dist.widest(outs), allowed)
    numbers = outs["mean"].shape[-1] if "mean" in outs else 0
    least = numbers * (0.5 * math.log(2 * math.pi * math.e) + jnp.log(minstd))
    return (actions.entropy(outs, allowed) - least) / jnp.maximum(most - least, 1e-6)


def joined(parts: Sequence[Part], extra: Extra, metrics: Metrics) -> tuple[Losses, tuple[Extra, Metrics]]:
    """Joins what the parts learned, as `Behavior.loss` returns it. extra: the values before."""
    losses: Losses = {}
    weights, norms = dict(extra["weights"]), dict(extra["norms"])
    for part in parts:
        losses, metrics = losses | part.losses, metrics | part.metrics
        weights, norms = weights | part.extra["weights"], norms | part.extra.get("norms", {})
    after = {"updates": extra["updates"] + 1, "slow": extra["slow"], "weights": weights, "norms": norms}
    return losses, (after, metrics)


# --- pictures ---------------------------------------------------------------------------------------


def pictures(
    nets: Nets, spec: Spec, params: Params, key: Key, dream: Dream, feat: Array, obs: Obs, width: int
) -> dict[str, Array]:
    """Returns, for each image k, {"goals_k": [B, T, h, n * w, 1 or 3]}: n images side by side.

    They are the observation, the state as the autoencoder returns it, and goals that the manager might choose.
    """
    logits = nets.enc.apply(params["enc"], feat[..., :width].astype(jnp.float32))
    returned = nets.dec.apply(params["dec"], jax.nn.one_hot(jnp.argmax(logits, -1), nets.classes))
    goals = [choose(nets, params, key, feat)[1] for key in jax.random.split(key, SHOWN)]
    drawn = [obs, *(dream.draw(goal) for goal in (returned, *goals))]
    found = {}
    for name, space in spec.obs.items():
        if space.image and name in drawn[1]:
            low, high = space.ends
            shown = 3 if space.shape[-1] % 3 == 0 else 1
            side = [(x[name][..., -shown:].astype(jnp.float32) - low) * (255 / (high - low)) for x in drawn]
            found[f"goals_{name}"] = jnp.clip(jnp.concatenate(side, 3), 0, 255)
    return found
