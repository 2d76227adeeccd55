"""Fixtures of test_silent_bugs.py: for each part the smallest setup in which a bug of it shows."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from dreamer import agent as agents
from dreamer.behaviors import actor_critic
from dreamer.config import Config
from dreamer.dreaming import actor_critic as ac
from dreamer.interfaces import Agent, TrainState
from dreamer.losses import align
from dreamer.ops import distributions, normalize
from dreamer.runtime.devices import programs
from dreamer.runtime.learning.collector import Collector
from dreamer.runtime.learning.learner import PolicyParams
from dreamer.runtime.log import logger as metrics
from dreamer.runtime.replay.config import Config as ReplayConfig
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.run import evaluation, start
from dreamer.runtime.run.build import open_run, open_session
from dreamer.runtime.run.loop import Run
from dreamer.runtime.workers import Config as WorkersConfig
from dreamer.runtime.workers import make_workers
from dreamer.spaces import Spec
from dreamer.steps import Batch

KIND = "vector"
SPEC = tiny.SPECS[KIND]
BINS = distributions.twohot_bins(255)
LABEL = 1 - 1 / tiny.HORIZON


# --- collecting and learning with the agent that only remembers -------------------------------------


class Learning(NamedTuple):
    """`tiny.echo_world` under the real actor-critic and optimizer: compiles four times as fast as the real agent."""

    agent: Agent
    batch: Batch
    init: Callable[[jax.Array], TrainState]
    update: Callable[..., Any]

    def state(self, seed: int = 0) -> TrainState:
        """Returns a new state, committed to a device like a restored one, so that both use the same compiled update."""
        return jax.device_put(self.init(jax.random.key(seed)), jax.devices()[0])


@functools.cache
def learning() -> Learning:
    behavior = actor_critic.make(tiny.BEHAVIOR, SPEC, feat_width=SPEC.action_width)
    agent = agents.assemble(tiny.echo_world(SPEC), behavior, tiny.OPTIMIZER, SPEC)
    batch = tiny.make_batch(SPEC)
    batch = batch._replace(latent={"prev": np.zeros_like(batch.action[:, :1])})
    return Learning(agent, batch, tiny.jit(agent.init), tiny.jit(agent.update))


@functools.cache
def learned() -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after three updates, and the metrics of the last."""
    state = learning().state()
    for _ in range(3):
        state, out = learning().update(state, learning().batch)
    return state, out.metrics


@functools.cache
def collected(env: str, turns: int = 25) -> tuple[Spec, Replay]:
    """Returns a replay of two environments, filled by the real workers and collector."""
    with make_workers(WorkersConfig("inline", envs=2), f"tiny:{env}", {}, seed=0) as workers:
        agent = tiny.echo_agent(workers.spec)
        config = ReplayConfig(batch_length=5, capacity_steps=1000, online=False)
        replay = Replay(workers.spec, agent.storage, config, streams=2, seed=0, env_steps=1000)
        part = programs.policy_part(agent, workers.spec)
        collector = Collector(agent, part, workers, replay, seed=0)
        snapshot = PolicyParams(0, part.take(agent.variables(agent.init(jax.random.key(0)))))
        for _ in range(turns):
            collector.collect(snapshot)
    return workers.spec, replay


def column(replay: Replay, name: str) -> np.ndarray:
    """Returns all rows that were added [E, rows, ..]."""
    return replay.columns[name][:, : replay.counts[0]]


def make_run(stack: contextlib.ExitStack, folder: pathlib.Path, monkeypatch, **settings) -> Run:
    """Makes the real loop with `tiny.echo_agent` and two Diary environments."""
    monkeypatch.setattr(agents, "make", lambda config, spec, **_: tiny.echo_agent(spec))
    config = Config(
        env="tiny:Diary", env_options={"steps": 40}, env_steps=1000, run_dir=str(folder / "run"),
        workers=WorkersConfig("inline", envs=2), replay=ReplayConfig(batch_size=2, batch_length=4, capacity_steps=1000),
        log=metrics.Config(tensorboard=False), eval=evaluation.Config(episodes=0, video="off"), **settings,
    )  # fmt: skip
    return Run(open_run(start.decide(config), open_session(config, stack)))


def turn(run: Run) -> None:
    """Makes one turn of the lockstep loop without `tend`."""
    run.collect()
    while run.parts.limiter.due():
        run.learn()


# --- the tiny real agent, compiled once -------------------------------------------------------------


@functools.cache
def posterior():
    """Returns a function (batch, free nats) -> losses of the world model {name: [B, T]}, latents [B, T, ..]."""
    world_model, _ = tiny.parts(KIND)
    state = tiny.state(KIND)

    @tiny.jit
    def run(batch, free_nats=1.0):
        v = agents.variables(state)["world_model"]
        v = v._replace(hyper={**v.hyper, "free_nats": free_nats})
        latent, prev_action, rows = align(world_model, SPEC, batch)
        losses, out = world_model.loss(v, jax.random.key(0), latent, prev_action, rows)
        return losses, out.latent

    return run


def sequences(first=(), last=(), terminal=()) -> Batch:
    """Makes a random batch whose flags are true only at the given (sequence, trained row)."""
    batch = tiny.make_batch(SPEC)
    flags = {}
    for name, places in (("is_first", first), ("is_last", last), ("is_terminal", terminal)):
        flags[name] = np.zeros_like(batch.is_first)
        for b, t in places:
            flags[name][b, t + 1] = True
    return batch._replace(**flags)


def changed(batch: Batch, b: int, rows: slice, latent: bool = False) -> Batch:
    """Returns the batch with other observations and actions in these rows; row -1 is the context row."""
    rows = slice(rows.start + 1, rows.stop + 1)
    obs, action = {k: x.copy() for k, x in batch.obs.items()}, batch.action.copy()
    for array in (*obs.values(), action):
        array[b, rows] += 1
    stored = dict(batch.latent)
    if latent:
        stored["deter"] = stored["deter"].copy()
        stored["deter"][b] *= -1
    return batch._replace(obs=obs, action=action, latent=stored)


def same_latents(before: Batch, after: Batch) -> np.ndarray:
    """Returns [B, T]: whether the posterior of each row is bitwise equal."""
    a, b = (posterior()(batch)[1] for batch in (before, after))
    return np.asarray((a.deter == b.deter).all(-1) & (a.stoch == b.stoch).all((-2, -1)))


# --- hand-made dreams -------------------------------------------------------------------------------

COUNT, STATES = 2, 4  # every hand-made dream is [COUNT, STATES]
NORMS = ac.Norms(normalize.percentiles(), normalize.identity(), normalize.identity())


def rows_of(*values: float) -> np.ndarray:
    return np.tile(np.float32(values), (COUNT, 1))


def dreamed(reward=(0,) * 4, cont=(1,) * 4, value=(0,) * 4, log_prob=(-1,) * 4, entropy=(0,) * 4):
    """Makes a dream in which the critic predicts exactly `value`."""
    reward, cont, value, log_prob, entropy = map(lambda x: rows_of(*x), (reward, cont, value, log_prob, entropy))
    logits = jnp.log(distributions.twohot_encode(value, BINS) + 1e-30)
    return ac.Imagined(reward, cont, logits, value, log_prob, entropy)


@functools.cache
def imagined():
    """Returns a function (dream, lam, entropy, lo, hi) -> losses, returns, next return normaliser, metrics."""

    @tiny.jit
    def run(dream, lam=0.95, entropy=0.0, lo=0.0, hi=0.0):
        settings = ac.Settings(BINS, lam, entropy, 1.0, False, 1.0)
        states = ac.Norms(normalize.Percentiles(jnp.float32(lo), jnp.float32(hi)), (), ())
        losses, returns, states, out = ac.imagined_losses(settings, NORMS, states, dream)
        return losses, returns, states.ret, out

    return run


@functools.cache
def replayed():
    """Returns a function (reward, is_last, is_terminal, boot [COUNT, STATES], lam) -> loss, returns."""

    @tiny.jit
    def run(reward, is_last, is_terminal, boot, lam):
        settings = ac.Settings(BINS, lam, 0.0, 1.0, False, 1.0)
        rows = Batch({}, None, reward, None, is_last, is_terminal, {})
        logits = jnp.zeros((*reward.shape, len(BINS)))
        return ac.replayed_loss(settings, 0.5, rows, boot, logits, jnp.zeros(reward.shape))

    return run


NOWHERE = rows_of(0, 0, 0, 0) > 0
