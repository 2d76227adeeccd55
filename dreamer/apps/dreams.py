"""Python access to the world model of a trained run: encode episodes, dream from their rows, predict rewards."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.errors import UserError
from dreamer.interfaces import Agent, Array, Ask, Batch, Key, Latent, Mode, State, Variables
from dreamer.losses import align, make_dream
from dreamer.spaces import Spec, for_device


class Dreamed(NamedTuple):
    """N dreams of H steps as numpy arrays. A dream has H + 1 rows; the first row is the start.

    obs {k: [N, H + 1, ..]}: the decoded observations, in the units of the environment
    action [N, H + 1, A]: the action chosen at each row; the last action is not executed
    predicted {"reward", "cont": [N, H + 1]}: the predicted rewards and the probabilities that the episode continues
    feat [N, H + 1, F]: the features from which the model predicts
    """

    obs: Mapping[str, np.ndarray]
    action: np.ndarray
    predicted: Mapping[str, np.ndarray]
    feat: np.ndarray


class LoadedWorldModel:
    """The world model of a trained agent. Owns the device copy of the agent's variables.

        agent = dreamer.load("runs/...")
        episode = agent.play(seed=0)
        dream = agent.world_model.dream(episode, row=10, steps=50)

    An episode is a `Batch` [B, T] without latents, as returned by `LoadedAgent.play`.
    """

    def __init__(self, agent: Agent, variables: Mapping[str, Variables], spec: Spec):
        self._agent, self._variables, self.spec = agent, variables, spec
        self._states = jax.jit(functools.partial(states_of, agent, spec))
        self._dream = jax.jit(functools.partial(dream_from, agent), static_argnames=("steps", "mode"))
        self._decode = jax.jit(lambda v, latent: agent.world_model.decode(v, latent))
        self._predict = jax.jit(lambda v, latent: agent.world_model.predict(v, agent.world_model.feat(latent)))

    def encode(self, episode: Batch, seed: int = 0) -> Latent:
        """Returns the posterior latents [B, T, ..] of an episode, a pytree of the world model. seed: for sampling them.

        Raises UserError when the observations of the episode have other keys than those of the run.
        """
        return self._observed(episode, seed)[0]

    def decode(self, latent: Latent) -> dict[str, np.ndarray]:
        """Decodes latents [.., ..] to observations {k: [.., ..]} in the environment's units. Keeps the leading axes."""
        return _to_numpy(self._decode(self._variables["world_model"], latent))

    def predict(self, latent: Latent) -> dict[str, np.ndarray]:
        """Predicts {"reward", "cont": [..]} per latent: the reward and the probability that the episode goes on."""
        return _to_numpy(self._predict(self._variables["world_model"], latent))

    def dream(
        self, episode: Batch, row: int | Sequence[int] = -1, steps: int = 15, *, actions: Any = None,
        mode: Mode = "sample", seed: int = 0,
    ) -> Dreamed:  # fmt: skip
        """Dreams `steps` steps from each of N rows of an episode.

        row: the index of a row, or a list of N indices, from 0 to B * T - 1 over all sequences; -1: the last row.
        actions: the vectors [steps, A] or [N, steps, A] to take; None: the policy chooses actions in `mode`.
        seed: for sampling latents and actions.
        Raises UserError when there is no such row, or when `actions` has another shape.
        """
        rows = np.atleast_1d(np.asarray(row))
        count = episode.reward.size
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or not ((rows >= -count) & (rows < count)).all():
            raise UserError(f"dream: row {row!r} is not among the {count} rows of the episode")
        _, states = self._observed(episode, seed)
        start = jax.tree.map(lambda x: x[rows % count], states)
        given = None if actions is None else self._given(actions, len(rows), steps)
        out = self._dream(self._variables, jax.random.fold_in(jax.random.key(seed), 1), start, given, steps, mode)
        return Dreamed(*_to_numpy(out))

    def _observed(self, episode: Batch, seed: int) -> tuple[Latent, State]:
        missing = sorted(set(self.spec.obs) ^ set(episode.obs))
        if missing:
            raise UserError(f"the episode has the observations {sorted(episode.obs)}, the run {sorted(self.spec.obs)}")
        rows = episode._replace(obs=for_device(self.spec.obs, episode.obs), latent={})
        return self._states(self._variables, jax.random.key(seed), rows)

    def _given(self, actions: Any, dreams: int, steps: int) -> np.ndarray:
        """Returns the given actions as [N, steps, A] float32. Raises UserError when their shape is wrong."""
        given = np.asarray(actions, np.float32)
        given = np.broadcast_to(given, (dreams, *given.shape)) if given.ndim == 2 else given
        wanted = (dreams, steps, self.spec.action_width)
        if given.shape != wanted:
            raise UserError(f"dream: actions have shape {list(given.shape)}, not {list(wanted)} [N, steps, A]")
        return given


def states_of(
    agent: Agent, spec: Spec, variables: Mapping[str, Variables], key: Key, batch: Batch
) -> tuple[Latent, State]:
    """Returns the posterior latents [B, T, ..] of a batch, and the states [B * T, ..] in which dreams begin."""
    v = variables["world_model"]
    state, prev_action, rows = align(agent.world_model, spec, batch)
    _, latent = agent.world_model.observe(v, key, state, rows.obs, prev_action, rows.is_first)
    return latent, agent.world_model.starts(v, latent, prev_action, rows.is_first)


def dream_from(
    agent: Agent, variables: Mapping[str, Variables], key: Key, start: State, actions: Array | None, steps: int,
    mode: Mode,
) -> tuple[dict[str, Array], Array, dict[str, Array], Array]:  # fmt: skip
    """Dreams `steps` steps from `start` [N, ..]. Returns the fields of `Dreamed`.

    actions [N, steps, A]: the actions to take; None: the policy chooses actions in `mode`.
    """
    model = agent.world_model
    keys = jax.random.split(key, steps + 1)
    carry = start, agent.behavior.initial(jax.tree.leaves(start)[0].shape[0])
    carry, latents, taken = dream_rows(agent, variables, keys[:-1], carry, actions, mode)
    last, _ = choose(agent, variables, keys[-1], carry, mode)
    latents = jax.tree.map(lambda first, x: jnp.concatenate([first[:, None], x], 1), model.latent(start), latents)
    taken = jnp.concatenate([taken, last[:, None]], 1)
    feat = model.feat(latents)
    predicted = dict(model.predict(variables["world_model"], feat))
    return dict(model.decode(variables["world_model"], latents)), taken, predicted, feat


def dream_rows(
    agent: Agent, variables: Mapping[str, Variables], keys: Array, carry: tuple[State, Any], actions: Array | None,
    mode: Mode,
) -> tuple[tuple[State, Any], Latent, Array]:  # fmt: skip
    """Dreams T steps from a carry: the state [N, ..] of the world model, and the behavior's own carry.

    keys [T]: one for each step | actions [N, T, A]: the actions to take; None: the policy chooses actions in `mode`.
    Returns the next carry, the latents [N, T, ..] of the rows after the steps, and the actions taken [N, T, A].
    """
    model = agent.world_model
    dream = make_dream(model, variables["world_model"])

    def step(before: tuple[State, Any], inputs: tuple[Key, Array | None]) -> tuple[tuple[State, Any], Any]:
        (state, own), (key, given) = before, inputs
        act_key, imagine_key = jax.random.split(key)
        action, own = choose(agent, variables, act_key, before, mode) if given is None else (given, own)
        state = dream.imagine(imagine_key, state, action)
        return (state, own), (model.latent(state), action)

    given = None if actions is None else actions.swapaxes(0, 1)
    carry, rows = jax.lax.scan(step, carry, (keys, given))
    return carry, *jax.tree.map(lambda x: x.swapaxes(0, 1), rows)


def choose(
    agent: Agent, variables: Mapping[str, Variables], key: Key, carry: tuple[State, Any], mode: Mode
) -> tuple[Array, Any]:
    """Lets the behavior choose actions [N, A] in dreamed states. carry: as in `dream_rows`. Returns its next carry.

    The action masks are those that the world model predicts, if it has learned them.
    """
    state, own = carry
    dream = make_dream(agent.world_model, variables["world_model"])
    allowed = dream.predict(dream.feat(state)).get("allowed")
    ask = Ask(jnp.zeros(jax.tree.leaves(state)[0].shape[0], bool), allowed)
    return agent.behavior.act(variables["behavior"], key, dream, state, own, ask, mode)


def _to_numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)
