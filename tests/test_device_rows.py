"""Observations on the devices: batches equal those of the replay bit for bit, in every state of its rings."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_replay import SPEC, build, collected, fill
from tiny_runs import saved, trained

from dreamer.errors import UserError
from dreamer.runtime.devices import mesh as meshes
from dreamer.runtime.learning import device_rows
from dreamer.runtime.learning.device_rows import DeviceRows
from dreamer.spaces import Space, for_device


def on_devices(replay) -> DeviceRows:
    return DeviceRows(meshes.make_mesh(jax.devices()[:1]), SPEC, replay)


def watched(monkeypatch, source) -> list[list[tuple[int, int]]]:
    """Records the rows (stream, number) of each piece that is sent from now on."""
    sent, send = [], source._send

    def recorded(env, number, obs):
        sent.append(list(zip(env.tolist(), number.tolist(), strict=True)))
        send(env, number, obs)

    monkeypatch.setattr(source, "_send", recorded)
    return sent


def equal(ours, theirs) -> bool:
    """Whether two (batch, rows) are bitwise equal with equal dtypes; `ours` has observations on the devices."""
    batch = theirs[0]._replace(obs=for_device(SPEC.obs, theirs[0].obs))
    assert all(isinstance(x, jax.Array) for x in ours[0].obs.values())
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves((batch, theirs[1])), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@given(turns=st.lists(st.tuples(st.integers(0, 25), st.integers(1, 4)), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_batches_equal_those_of_the_replay_after_any_number_of_rows(turns):
    ours, theirs = (build(envs=2, rows=10, length=3, online=True) for _ in range(2))
    source = on_devices(ours)
    for rows, batch_size in turns:
        fill(ours, rows), fill(theirs, rows)
        if len(theirs):
            assert equal(source.sample(batch_size), theirs.sample(batch_size))


def test_rings_of_unequal_length_are_sent_each_from_where_it_was():
    ours, theirs = (build(envs=3, rows=10, length=3) for _ in range(2))
    source = on_devices(ours)
    for turn in range(30):
        env = turn % 3 if turn < 15 else 2
        for replay in (ours, theirs):
            replay.add(*collected([env], [int(replay.counts[env])]), np.array([env]))
        if len(theirs):
            assert equal(source.sample(4), theirs.sample(4))


def test_a_replay_that_was_full_before_is_sent_in_pieces(monkeypatch):
    monkeypatch.setattr(device_rows, "MOST_BYTES", 7 * (2 * 4 + 4 * 4 * 3))
    ours, theirs = (build(envs=2, rows=10, length=3) for _ in range(2))
    fill(ours, 23), fill(theirs, 23)
    source = on_devices(ours)
    sent = watched(monkeypatch, source)
    assert equal(source.sample(4), theirs.sample(4))
    assert [len(rows) for rows in sent] == [4, 4, 4, 4, 4]


def test_no_row_is_sent_twice(monkeypatch):
    replay = build(envs=2, rows=10, length=3)
    source = on_devices(replay)
    sent = watched(monkeypatch, source)
    for _ in range(8):
        fill(replay, 4)
        source.sample(2)
    rows = [row for piece in sent for row in piece]
    assert len(rows) == len(set(rows)) == replay.steps


def test_the_line_before_the_allocation_names_the_memory():
    line = device_rows.describe_observations(SPEC, 20_000_000)
    assert line == "observations on each device that learns: 20,000,000 steps x 56 B = 1.12 GB"


def test_a_device_without_enough_memory_is_reported_with_the_setting_to_lower(monkeypatch):
    def no_memory(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1120 bytes.")

    replay = build(envs=2, rows=10)
    monkeypatch.setattr(device_rows.jnp, "zeros", no_memory)
    with pytest.raises(UserError, match=r"of 20 steps \(1.12e-06 GB on each device\): lower replay.capacity_steps"):
        on_devices(replay)


def test_memory_that_a_cpu_does_not_have_is_not_requested(monkeypatch):
    replay = build(envs=2, rows=10)
    monkeypatch.setattr(device_rows.memory, "free_memory", lambda: replay.size.nbytes + 20 * 56 - 1)
    with pytest.raises(UserError, match=r"replay.on_device: no device memory left"):
        on_devices(replay)


def test_an_observation_wider_than_the_device_takes_is_cast_on_its_way():
    space = Space((2,), "float64")
    x = np.array([[1.5, 2.5]])
    assert for_device({"x": space}, {"x": x})["x"].dtype == space.device_dtype != x.dtype


def test_a_run_is_the_same_to_the_last_bit_with_observations_on_the_device(tmp_path_factory):
    without, beside = trained(tmp_path_factory), trained(tmp_path_factory, replay__on_device=True)
    assert saved(beside) == saved(without)


def test_a_run_side_by_side_trains_with_observations_on_the_device(tmp_path_factory):
    run = trained(tmp_path_factory, replay__on_device=True, lockstep=False)
    assert saved(run)[1]["updates"] > 0
