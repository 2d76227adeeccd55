"""Distributions of actions: categoricals for the one-hots of an action, bounded normals for its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.ops import distributions as dist

Array = jax.Array
Outs = Mapping[str, Array]
NEVER = -1e9  # logit of a forbidden entry: finite, so that 0 times it is 0


class ActionDist(NamedTuple):
    """The distribution of actions [.., A], given the outputs `outs` of an actor.

    sample(key, outs, allowed), mode(outs, allowed) -> action [.., A]
    log_prob(outs, action, allowed), entropy(outs, allowed) -> [..], summed over all parts
    allowed [.., n] bool: which entries of the one-hots may be chosen; None: all entries
    If `allowed` forbids all entries of a one-hot, all of them may be chosen.
    """

    sample: Callable[..., Array]
    mode: Callable[..., Array]
    log_prob: Callable[..., Array]
    entropy: Callable[..., Array]


def discrete_actions(classes: Sequence[int], unimix: float = 0.0) -> ActionDist:
    """Returns independent categoricals. classes: the number of classes of each | unimix: the share that is uniform.

    outs["logits"] [.., sum(classes)] holds the logits of all categoricals.
    """
    pick, back, real = _groups(classes)

    def log_probs(outs: Outs, allowed: Array | None) -> Array:
        """Normalised log-probabilities [.., groups, largest group]."""
        logits = outs["logits"].astype(jnp.float32)[..., pick]
        if allowed is None and real.all():
            return dist.mix_uniform(logits, unimix)
        valid = jnp.broadcast_to(real, logits.shape)
        if allowed is not None:
            chosen_from = allowed[..., pick] & valid
            valid = jnp.where(chosen_from.any(-1, keepdims=True), chosen_from, valid)
        logp = jax.nn.log_softmax(jnp.where(valid, logits, NEVER))
        if not unimix:
            return logp
        uniform = valid / valid.sum(-1, keepdims=True)
        return jnp.log(jnp.where(valid, (1 - unimix) * jnp.exp(logp) + unimix * uniform, np.exp(-80)))

    def flat(onehots: Array) -> Array:
        return onehots.reshape(*onehots.shape[:-2], -1)[..., back]

    def sample(key: Array, outs: Outs, allowed: Array | None = None) -> Array:
        return flat(dist.sample_onehot(key, log_probs(outs, allowed)))

    def mode(outs: Outs, allowed: Array | None = None) -> Array:
        logp = log_probs(outs, allowed)
        return flat(jax.nn.one_hot(jnp.argmax(logp, -1), logp.shape[-1]))

    def log_prob(outs: Outs, action: Array, allowed: Array | None = None) -> Array:
        logp = log_probs(outs, allowed)
        taken = jnp.where(jnp.broadcast_to(real, logp.shape), action[..., pick], 0.0)
        return jnp.sum(taken * logp, (-2, -1))

    def entropy(outs: Outs, allowed: Array | None = None) -> Array:
        return dist.categorical_entropy(log_probs(outs, allowed)).sum(-1)

    return ActionDist(sample, mode, log_prob, entropy)


def continuous_actions(minstd: Array | float = 0.1, maxstd: Array | float = 1.0) -> ActionDist:
    """Returns independent normals, with a mean in [-1, 1] and a standard deviation in [minstd, maxstd].

    They are computed from the raw outs["mean"] and outs["stddev"], each [.., A]. Samples are not clipped.
    """

    def stats(outs: Outs) -> tuple[Array, Array]:
        return dist.bounded_normal(outs["mean"], outs["stddev"], minstd, maxstd)

    def sample(key: Array, outs: Outs, allowed: Array | None = None) -> Array:
        mean, std = stats(outs)
        return mean + std * jax.random.normal(key, mean.shape)

    return ActionDist(
        sample=sample,
        mode=lambda outs, allowed=None: stats(outs)[0],
        log_prob=lambda outs, action, allowed=None: dist.normal_log_prob(*stats(outs), action),
        entropy=lambda outs, allowed=None: dist.normal_entropy(stats(outs)[1]),
    )


def hybrid_actions(discrete: ActionDist, continuous: ActionDist, onehots: int) -> ActionDist:
    """Joins two distributions: the first `onehots` entries of an action follow `discrete`, the others `continuous`."""

    def sample(key: Array, outs: Outs, allowed: Array | None = None) -> Array:
        keys = jax.random.split(key)
        return jnp.concatenate([discrete.sample(keys[0], outs, allowed), continuous.sample(keys[1], outs)], -1)

    def mode(outs: Outs, allowed: Array | None = None) -> Array:
        return jnp.concatenate([discrete.mode(outs, allowed), continuous.mode(outs)], -1)

    def log_prob(outs: Outs, action: Array, allowed: Array | None = None) -> Array:
        first, rest = action[..., :onehots], action[..., onehots:]
        return discrete.log_prob(outs, first, allowed) + continuous.log_prob(outs, rest)

    def entropy(outs: Outs, allowed: Array | None = None) -> Array:
        return discrete.entropy(outs, allowed) + continuous.entropy(outs)

    return ActionDist(sample, mode, log_prob, entropy)


def make(
    classes: Sequence[int], continuous: int, *, unimix: float = 0.0, minstd: Array | float = 0.1,
    maxstd: Array | float = 1.0,
) -> ActionDist:
    """Returns the distribution of actions [.., A]: a one-hot for each of `classes`, then real numbers.

    continuous: how many real numbers there are
    """
    numbers = continuous_actions(minstd, maxstd)
    if not classes:
        return numbers
    onehots = discrete_actions(classes, unimix)
    return hybrid_actions(onehots, numbers, sum(classes)) if continuous else onehots


def uniform(
    key: Array, lead: tuple[int, ...], classes: Sequence[int], continuous: int, allowed: Array | None = None
) -> Array:
    """Draws actions [*lead, A]: one-hots of equally likely classes, and numbers between -1 and 1.

    classes, continuous: as in `make` | allowed [*lead, n] bool: which entries of the one-hots may be chosen
    """
    keys = jax.random.split(key)
    numbers = jax.random.uniform(keys[0], (*lead, continuous), minval=-1.0, maxval=1.0)
    if not classes:
        return numbers
    equal = {"logits": jnp.zeros((*lead, sum(classes)))}
    return jnp.concatenate([discrete_actions(classes).sample(keys[1], equal, allowed), numbers], -1)


def widest(outs: Outs) -> dict[str, Array]:
    """Returns outputs for the distribution with the largest entropy: equal logits and the largest deviations."""
    return {name: jnp.full_like(x, jnp.inf if name == "stddev" else 0.0) for name, x in outs.items()}


def _groups(classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns indices that rearrange one-hots, joined in a vector [n], to rows of equal length with padding, and back.

    The result is (pick, back, real). pick [groups, largest]: for each entry of the rows, its index in the vector
    back [n]: for each entry of the vector, its index in the flattened rows | real [groups, largest]: False for padding
    """
    largest, starts = max(classes), np.cumsum([0, *classes[:-1]])
    column = np.arange(largest)
    real = column < np.asarray(classes)[:, None]
    return np.where(real, starts[:, None] + column, 0), np.flatnonzero(real), real
