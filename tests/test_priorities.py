"""From the world model's losses to the priorities of the replay, and batches drawn ahead in the loop."""

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
from dreamer.interfaces import PRIORITY
from dreamer.runtime.run import loop, start
from dreamer.runtime.run.learner import Learner


def rating_agent(spec, *, priorities=True):
    """`recording_agent`; each update gives the number of updates before it as the priority of every row."""
    agent = recording_agent(spec)

    def update(state, batch):
        after, latent, metrics = agent.update(state, batch)
        latent = {name: jnp.zeros((*batch.reward[:, 1:].shape, *s.shape)) for name, s in agent.storage.items()}
        if priorities:
            latent[PRIORITY] = jnp.full(batch.reward[:, 1:].shape, state.step, jnp.float32)
        return after, latent, metrics

    return agent._replace(update=update)


@pytest.fixture(scope="module")
def updated():
    """(state, latent, metrics) of one update on the same batch, without priorities and with them."""
    agent = agents.make(tiny.CONFIG, tiny.SPECS["vector"], priorities=True)
    state, batch = tiny.state("vector"), tiny.make_batch(tiny.SPECS["vector"])
    return tiny.update("vector")(state, batch), tiny.jit(agent.update)(state, batch)


def test_the_priority_of_a_row_is_the_world_models_loss_on_it(updated):
    _, (_, latent, metrics) = updated
    scales = tiny.parts("vector")[0].scales
    priority = latent[PRIORITY]
    assert priority.shape == (tiny.BATCH, tiny.LENGTH) and priority.dtype == np.float32
    total = sum(scale * metrics[f"loss/{name}"] for name, scale in scales.items())
    np.testing.assert_allclose(priority.mean(), total, rtol=1e-5)
    assert np.ptp(priority) > 0


def test_priorities_change_nothing_else_of_an_update(updated):
    (state, latent, metrics), (other, with_priority, same) = updated
    assert set(with_priority) - set(latent) == {PRIORITY}
    for ours, theirs in zip(
        jax.tree.leaves((state.params, latent, metrics)),
        jax.tree.leaves((other.params, {name: with_priority[name] for name in latent}, same)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_every_loss_counts_by_its_scale_row_by_row():
    world_model = tiny.echo_world(tiny.SPECS["vector"])._replace(scales={"a": 2.0, "b": 0.5})
    losses = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[4.0, 0.0]]), "of the behavior": jnp.array([[9.0, 9.0]])}
    np.testing.assert_array_equal(agents.row_losses(world_model, losses), [[4, 4]])


@pytest.mark.parametrize("priorities", [False, True])
def test_the_learner_hands_priorities_out_apart_from_the_latents(priorities):
    learner = Learner(rating_agent(SPEC, priorities=priorities), SPEC, seed=0, batch_size=2, lockstep=True)
    for _ in range(2):
        update = learner.step(learner.place(batch()), ROWS)
    assert set(update.latent) == {"count", "previous", "seen"}
    if priorities:
        np.testing.assert_array_equal(update.priority, np.ones((2, 4)))
    else:
        assert update.priority is None


def test_a_placed_batch_is_on_the_devices_and_trains_as_it_did():
    learner = Learner(recording_agent(SPEC), SPEC, seed=0, batch_size=2, lockstep=True)
    placed = learner.place(batch(reward=2.5))
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(placed))
    assert float(learner.step(placed, ROWS).metrics["loss/reward"]) == 2.5


def make_run(stack, folder, monkeypatch, **overrides):
    monkeypatch.setattr(loop.agents, "make", lambda config, spec, priorities: rating_agent(spec, priorities=priorities))
    settings = {"eval__episodes": 0, "eval__video": "off", "log__every": 1000, "replay__online": False}
    return loop.Run(start.decide(tiny_runs.tiny(folder / "run", **settings, **overrides)), stack)


def test_priorities_reach_the_rows_of_their_batch(tmp_path, monkeypatch):
    with contextlib.ExitStack() as stack:
        run = make_run(stack, tmp_path, monkeypatch, replay__uniform=0, replay__priority=1)
        seen = []
        sample = run.replay.sample
        monkeypatch.setattr(run.replay, "sample", lambda *args, **kw: seen.append(sample(*args, **kw)) or seen[-1])
        while run.learner.updates < 3:
            turn(run)
        _, rows = seen[-1]
        priority = run.replay.sampler.state()["priority/rows"][rows.env[:, None], rows.number]
        np.testing.assert_allclose(priority, np.full(rows.number.shape, 2**0.8), rtol=1e-6)


def test_without_a_use_no_priorities_are_asked_for(tmp_path, monkeypatch):
    with contextlib.ExitStack() as stack:
        run = make_run(stack, tmp_path, monkeypatch)
        assert PRIORITY not in jax.eval_shape(run.agent.update, run.learner.state, batch_like(run))[1]


def batch_like(run):
    while not run.replay.ready(2):
        run.collect()
    return run.replay.sample(2, online=False)[0]


@pytest.mark.parametrize(("settings", "ahead"), [({"lockstep": True}, 0), ({"lockstep": False}, 1)])
def test_batches_drawn_are_the_updates_and_those_ahead(tmp_path, monkeypatch, settings, ahead):
    drawn = []
    with contextlib.ExitStack() as stack:
        run = make_run(stack, tmp_path, monkeypatch, **settings)
        sample = run.replay.sample
        monkeypatch.setattr(
            run.replay, "sample", lambda *args: drawn.append(threading.current_thread().name) or sample(*args)
        )
        while not run.replay.ready(2):
            assert not drawn
            turn(run)
        while run.learner.updates < 5:
            turn(run)
        run.settle()
    assert run.learner.updates <= len(drawn) <= run.learner.updates + ahead
    assert set(drawn) == {"prefetch" if ahead else threading.main_thread().name}


def test_what_drawing_raises_reaches_the_loop(tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("no batch")

    with contextlib.ExitStack() as stack:
        run = make_run(stack, tmp_path, monkeypatch, lockstep=False)
        monkeypatch.setattr(run.replay, "sample", fail)
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
            while run.learner.updates < 5:
                turn(run)
            return run.replay.sampler.state(), run.replay.rng.bit_generator.state

    (first, numbers), (second, again) = collected("one"), collected("two")
    assert numbers == again
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
