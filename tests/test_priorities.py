"""Priorities of the replay from the world model's losses, and batches drawn in advance."""

from __future__ import annotations

import contextlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runs
from rigs import turn
from test_learner import ROWS, SPEC, batch
from tiny_runs import recording_agent

from dreamer import agent as agents
from dreamer import train
from dreamer.interfaces import Update
from dreamer.losses import row_losses
from dreamer.runtime.learning.learner import Learner
from dreamer.runtime.run import start
from dreamer.runtime.run.build import open_run, open_session
from dreamer.runtime.run.loop import Run


def rating_agent(spec, *, priorities=True):
    """Returns `recording_agent`, with the number of previous updates as the priority of every row."""
    agent = recording_agent(spec)

    def update(state, batch):
        after, out = agent.update(state, batch)
        latent = {name: jnp.zeros((*batch.reward[:, 1:].shape, *s.shape)) for name, s in agent.storage.items()}
        surprise = jnp.full(batch.reward[:, 1:].shape, state.step, jnp.float32) if priorities else None
        return after, Update(latent, out.metrics, surprise)

    return agent._replace(update=update)


@pytest.fixture(scope="module")
def updated():
    """Returns (state, Update) of one update on the same batch, without and with priorities."""
    agent = agents.make(tiny.CONFIG, tiny.SPECS["vector"], priorities=True)
    state, batch = tiny.state("vector"), tiny.make_batch(tiny.SPECS["vector"])
    return tiny.update("vector")(state, batch), tiny.jit(agent.update)(state, batch)


def test_the_priority_of_a_row_is_the_world_models_loss_on_it(updated):
    _, (_, out) = updated
    scales = tiny.parts("vector")[0].scales
    assert out.surprise.shape == (tiny.BATCH, tiny.LENGTH) and out.surprise.dtype == np.float32
    total = sum(scale * out.metrics[f"loss/{name}"] for name, scale in scales.items())
    np.testing.assert_allclose(out.surprise.mean(), total, rtol=1e-5)
    assert np.ptp(out.surprise) > 0


def test_priorities_change_nothing_else_of_an_update(updated):
    (state, out), (other, same) = updated
    assert out.surprise is None
    for ours, theirs in zip(
        jax.tree.leaves((state.params, out.latent, out.metrics)),
        jax.tree.leaves((other.params, same.latent, same.metrics)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_every_loss_counts_by_its_scale_row_by_row():
    world_model = tiny.echo_world(tiny.SPECS["vector"])._replace(scales={"a": 2.0, "b": 0.5})
    losses = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[4.0, 0.0]]), "of the behavior": jnp.array([[9.0, 9.0]])}
    np.testing.assert_array_equal(row_losses(world_model, world_model.scales, losses, (1, 2)), [[4, 4]])


@pytest.mark.parametrize("priorities", [False, True])
def test_the_learner_hands_priorities_out_apart_from_the_latents(priorities):
    learner = Learner(rating_agent(SPEC, priorities=priorities), SPEC, seed=0, batch_size=2, lockstep=True)
    for _ in range(2):
        update = learner.step(learner.place(batch()), ROWS)
    assert set(update.out.latent) == {"count", "previous", "seen"}
    if priorities:
        np.testing.assert_array_equal(update.out.surprise, np.ones((2, 4)))
    else:
        assert update.out.surprise is None


def test_a_placed_batch_is_on_the_devices_and_trains_as_it_did():
    learner = Learner(recording_agent(SPEC), SPEC, seed=0, batch_size=2, lockstep=True)
    placed = learner.place(batch(reward=2.5))
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(placed))
    assert float(learner.step(placed, ROWS).out.metrics["loss/reward"]) == 2.5


def make_run(stack, folder, monkeypatch, **overrides):
    monkeypatch.setattr(agents, "make", lambda config, spec, priorities: rating_agent(spec, priorities=priorities))
    settings = {"eval__episodes": 0, "eval__video": "off", "log__every": 1000, "replay__online": False}
    config = tiny_runs.tiny(folder / "run", **settings, **overrides)
    return Run(open_run(start.decide(config), open_session(config, stack)))


def test_priorities_reach_the_rows_of_their_batch(tmp_path, monkeypatch):
    with contextlib.ExitStack() as stack:
        run = make_run(stack, tmp_path, monkeypatch, replay__uniform=0, replay__priority=1)
        seen = []
        replay, sample = run.parts.replay, run.parts.replay.sample
        monkeypatch.setattr(replay, "sample", lambda *args, **kw: seen.append(sample(*args, **kw)) or seen[-1])
        while run.parts.learner.updates < 3:
            turn(run)
        _, rows = seen[-1]
        priority = replay.sampler.state()["priority/rows"][rows.stream[:, None], rows.number]
        np.testing.assert_allclose(priority, np.full(rows.number.shape, 2**0.8), rtol=1e-6)


def test_without_a_use_no_priorities_are_asked_for(tmp_path, monkeypatch):
    with contextlib.ExitStack() as stack:
        run = make_run(stack, tmp_path, monkeypatch)
        shapes = jax.eval_shape(run.parts.agent.update, run.parts.learner.state, batch_like(run))
        assert shapes[1].surprise is None


def batch_like(run):
    while not run.parts.replay.ready(2):
        run.collect()
    return run.parts.replay.sample(2, online=False)[0]


@pytest.mark.parametrize(("settings", "ahead"), [({"lockstep": True}, 0), ({"lockstep": False}, 1)])
def test_batches_drawn_are_the_updates_and_those_ahead(tmp_path, monkeypatch, settings, ahead):
    drawn = []
    with contextlib.ExitStack() as stack:
        run = make_run(stack, tmp_path, monkeypatch, **settings)
        sample = run.parts.replay.sample
        monkeypatch.setattr(
            run.parts.replay, "sample", lambda *args: drawn.append(threading.current_thread().name) or sample(*args)
        )
        while not run.parts.replay.ready(2):
            assert not drawn
            turn(run)
        while run.parts.learner.updates < 5:
            turn(run)
        run.settle()
    assert run.parts.learner.updates <= len(drawn) <= run.parts.learner.updates + ahead
    assert set(drawn) == {"prefetch" if ahead else threading.main_thread().name}


def test_an_error_while_drawing_reaches_the_loop(tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("no batch")

    with contextlib.ExitStack() as stack:
        run = make_run(stack, tmp_path, monkeypatch, lockstep=False)
        monkeypatch.setattr(run.parts.replay, "sample", fail)
        with pytest.raises(ValueError, match="no batch"):
            while True:
                turn(run)


def test_a_run_with_all_samplers_and_the_disk_tier_trains_and_leaves_no_files(tmp_path):
    shares = {"replay__uniform": 0.4, "replay__priority": 0.3, "replay__recency": 0.3}
    config = tiny_runs.tiny(tmp_path / "run", lockstep=False, eval__episodes=0, replay__tier="disk", **shares)
    run_dir = train(config)
    assert tiny_runs.lines(run_dir)[-1]["updates"] > 1
    assert not (run_dir / "replay-tier").exists()


def test_in_lockstep_a_prioritised_run_draws_the_same_again(tmp_path, monkeypatch):
    def collected(name):
        with contextlib.ExitStack() as stack:
            run = make_run(stack, tmp_path / name, monkeypatch, replay__uniform=0.5, replay__priority=0.5)
            while run.parts.learner.updates < 5:
                turn(run)
            return run.parts.replay.sampler.state(), run.parts.replay.rng.bit_generator.state

    (first, numbers), (second, again) = collected("one"), collected("two")
    assert numbers == again
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
