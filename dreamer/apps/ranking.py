"""Ranks the predictions of a world model: Hits@k and MRR in latent space, for any model, also one without a decoder.

Source: Kipf, van der Pol, Welling 2020, section 4.2. Episodes begin with a reset and have random actions. The features
of the true state after some steps are compared with the predictions for all episodes, which the model dreams from the
first row under the true actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer import plugins
from dreamer.apps.acting import Trained, opened
from dreamer.errors import UserError
from dreamer.interfaces import Agent, Array, Key, Variables
from dreamer.runtime.env.actions import random_actions
from dreamer.runtime.env.rows import empty_step
from dreamer.spaces import MASK, for_device

STEPS = (1, 5, 10)
CHUNK = 100  # episodes in a batch; an incomplete last batch is dropped, as in the source
HITS = (1, 5, 10)
SEED = 2_000_003  # keeps the seeds apart from those of training and of evaluations
TRIES = 10  # times as many episodes are played, if most are too short
NUMBERS = 2**24  # differences that are held at once


class Episodes(NamedTuple):
    """N episodes of S steps with random actions. obs {k: [N, S + 1, ..]} | action [N, S, A]"""

    obs: Mapping[str, np.ndarray]
    action: np.ndarray


def rank(trained: Trained, env: plugins.EnvName, episodes: int, *, seed: int = 0) -> dict[int, dict[str, float]]:
    """Ranks the predictions of a trained world model for 1, 5 and 10 steps.

    Returns {steps: {"hits1", "hits5", "hits10", "mrr"}}, each from 0 to 1. Only whole batches of 100 episodes count.
    Raises UserError if there are fewer than 100 episodes, or if the environment's episodes have fewer than 10 steps.
    """
    if episodes < CHUNK:
        raise UserError(f"a ranking needs {CHUNK} episodes or more, not {episodes}: an incomplete batch is dropped")
    made = collect(trained, env, used(episodes), max(STEPS), seed)
    true, predicted = features(trained.agent, trained.variables["world_model"], made, jax.random.key(seed))
    return {steps: scores(ranks(predicted[steps], true[steps])) for steps in STEPS}


def used(episodes: int) -> int:
    """Returns how many episodes count: those in whole batches of 100."""
    return episodes // CHUNK * CHUNK


def collect(trained: Trained, env: plugins.EnvName, episodes: int, steps: int, seed: int) -> Episodes:
    """Plays random actions in a new environment until `episodes` episodes have `steps` steps. Drops shorter episodes.

    Raises UserError if the environment has several agents, or if too many episodes are shorter.
    """
    config, rng = trained.config, np.random.default_rng(SEED + seed)
    with opened(config, env, SEED + seed) as rows:
        spec, step = rows.spec, empty_step(rows.spec, 1)
        kept: list[Any] = []
        for _ in range(TRIES * episodes + 1):
            if len(kept) == episodes:
                break
            seen: list[Any] = []
            while len(seen) <= steps and not (seen and step.is_last[0]):
                rows.turn(step, 0)
                allowed = step.obs[MASK][0] == 1 if spec.masked else None
                step.action[:] = random_actions(spec.action, rng, 1, allowed)
                seen.append(({key: x[0].copy() for key, x in step.obs.items()}, step.action[0].copy()))
            if len(seen) > steps:
                kept.append(seen)
            if not step.is_last[0]:
                rows.end({})
        else:
            raise UserError(
                f"only {len(kept)} of {TRIES * episodes} episodes of env {config.env!r} have {steps} steps under "
                "random actions"
            )
    obs = {key: np.stack([[row[0][key] for row in seen] for seen in kept]) for key in spec.obs}
    return Episodes(for_device(spec.obs, obs), np.stack([[row[1] for row in seen[:-1]] for seen in kept]))


def features(
    agent: Agent, v: Variables, episodes: Episodes, key: Key, steps: Sequence[int] = STEPS
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Returns the true and the predicted features after 1, 5, .. `steps`: two of {steps: [N, F] float32}.

    The true ones are those of the posterior, which has observed all rows until then.
    """
    model, length = agent.world_model, max(steps)

    def one(v: Variables, key: Key, obs: Mapping[str, Array], action: Array) -> tuple[Any, Any]:
        keys = jax.random.split(key, length + 2)
        count = len(action)
        prev = jnp.pad(action[:, :length], ((0, 0), (1, 0), (0, 0)))
        first = jnp.broadcast_to(jnp.arange(length + 1) == 0, (count, length + 1))
        obs = {k: x[:, : length + 1] for k, x in obs.items()}
        _, latent = model.observe(v, keys[0], model.initial(count), obs, prev, first)
        start = ({k: x[:, :1] for k, x in obs.items()}, prev[:, :1], first[:, :1])
        state, _ = model.observe(v, keys[1], model.initial(count), *start)

        def step(state: Any, inputs: tuple[Key, Array]) -> tuple[Any, Array]:
            state = model.imagine(v, inputs[0], state, inputs[1])
            return state, model.feat(model.latent(state)).astype(jnp.float32)

        _, dreamed = jax.lax.scan(step, state, (keys[2:], action[:, :length].swapaxes(0, 1)))
        feat = model.feat(latent).astype(jnp.float32)
        return {k: feat[:, k] for k in steps}, {k: dreamed[k - 1] for k in steps}

    compiled = jax.jit(one)
    parts = []
    for begin in range(0, len(episodes.action), CHUNK):
        part = jax.tree.map(lambda x, begin=begin: x[begin : begin + CHUNK], episodes)
        parts.append(jax.tree.map(np.asarray, compiled(v, jax.random.fold_in(key, begin), part.obs, part.action)))
    return jax.tree.map(lambda *all_: np.concatenate(all_), *parts)


def distances(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the squared distance of each true state i to each prediction j: two of [N, F] -> [N, N]."""
    each = max(1, NUMBERS // max(1, predicted.size))
    parts = [
        np.square(true[i : i + each, None].astype(np.float64) - predicted[None]).sum(-1)
        for i in range(0, len(true), each)
    ]
    return np.concatenate(parts)


def ranks(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the rank of the own prediction of each true state among all predictions, int [N]; 1 is the best.

    The rank is 1 + the number of predictions that are strictly nearer, so ties never hurt.
    """
    found = distances(predicted, true)
    return 1 + (found < np.diagonal(found)[:, None]).sum(1)


def scores(found: np.ndarray) -> dict[str, float]:
    """Returns Hits@1, Hits@5 and Hits@10, the shares of ranks up to 1, 5 and 10, and the mean reciprocal rank."""
    return {f"hits{most}": float(np.mean(found <= most)) for most in HITS} | {"mrr": float(np.mean(1 / found))}


def lines(found: Mapping[int, Mapping[str, float]], episodes: int) -> list[str]:
    """Returns a table to print. episodes: how many were asked for."""
    head = f"ranks among the predictions of {used(episodes):,} episodes with random actions:"
    rows = [
        f"{steps:5d}  " + "  ".join(f"{100 * row[name]:8.2f} %" for name in row) for steps, row in found.items()
    ]
    names = [f"Hits@{most}" for most in HITS] + ["MRR"]
    return [head, "steps  " + "  ".join(f"{name:>10}" for name in names), *rows]
