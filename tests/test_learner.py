"""The learner: the parameters used for acting are the right ones, and outlive the donated state."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import recording_agent

from dreamer.errors import UserError
from dreamer.runtime.devices import errors as device_errors
from dreamer.runtime.devices import mesh as meshes
from dreamer.runtime.devices import placement
from dreamer.runtime.learning import learner as learners
from dreamer.runtime.learning.learner import Learner, PolicyParams
from dreamer.spaces import Action, Space, Spec
from dreamer.steps import Batch, Rows

SPEC = Spec({"vector": Space((3,), "float32")}, Action((2,)))
ROWS = Rows(np.zeros(2, int), np.zeros((2, 5), np.int64))


def batch(reward: float = 0.0) -> Batch:
    flags = np.zeros((3, 2, 5), bool)
    rewards = np.full((2, 5), reward, np.float32)
    return Batch({"vector": np.ones((2, 5, 3), np.float32)}, np.zeros((2, 5, 2), np.float32), rewards, *flags, {})


def learner(lockstep: bool) -> Learner:
    return Learner(recording_agent(SPEC), SPEC, seed=0, batch_size=2, lockstep=lockstep)


def acting(learner: Learner) -> float:
    (leaf,) = learner.snapshot().leaves
    return float(leaf[0])


def test_in_lockstep_the_newest_parameters_act():
    ours = learner(lockstep=True)
    assert acting(ours) == 0
    for update in range(1, 4):
        ours.step(batch(), ROWS)
        assert acting(ours) == update == ours.updates


def test_without_lockstep_the_parameters_that_act_are_one_update_old_at_most():
    ours = learner(lockstep=False)
    for update in range(1, 4):
        ours.step(batch(), ROWS)
        assert update - 1 <= acting(ours) <= update


def test_without_lockstep_acting_does_not_wait_for_the_update_under_way(monkeypatch):
    ours = learner(lockstep=False)
    ours.step(batch(), ROWS)
    late = PolicyParams(1, [types.SimpleNamespace(is_ready=bool)])
    monkeypatch.setattr(ours, "_snapshots", (ours._snapshots[0], late))
    assert ours.snapshot().updates == 0


def test_the_devices_idle_from_the_end_of_an_update_until_the_next_is_sent(monkeypatch):
    ours, seconds = learner(lockstep=False), iter([1.0, 2.0, 4.0, 5.0, 5.5, 6.0, 9.0, 10.0])
    monkeypatch.setattr(learners, "time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    for _ in range(2):
        ours.fetch(ours.step(batch(), ROWS))  # sent at 1, done at 2; sent at 4, done at 5
    assert ours.idle == 2
    first, second = ours.step(batch(), ROWS), ours.step(batch(), ROWS)  # sent at 5.5 and 6
    ours.fetch(first), ours.fetch(second)  # the second was sent before the first was done
    assert ours.idle == 2.5


def test_time_outside_training_does_not_count_as_idle():
    ours = learner(lockstep=False)
    ours.fetch(ours.step(batch(), ROWS))
    ours.sync()
    ours.fetch(ours.step(batch(), ROWS))
    assert ours.idle == 0


def test_only_what_acting_reads_is_copied():
    agent = recording_agent(SPEC)
    agent = agent._replace(init=lambda key: agent_state(key, more={"critic": jnp.zeros(3)}))
    ours = Learner(agent, SPEC, seed=0, batch_size=2, lockstep=True)
    assert [leaf.shape for leaf in ours.snapshot().leaves] == [(4,)]
    assert ours.part.whole(ours.snapshot().leaves)["behavior"].params["critic"].shape == (3,)


def agent_state(key, more):
    state = recording_agent(SPEC).init(key)
    return state._replace(params={**more, **state.params})


def test_a_loaded_state_is_used_for_acting_and_training():
    ours = learner(lockstep=True)
    saved = jax.tree.map(lambda x: x, ours.state)._replace(params={"w": jnp.full(4, 7.0)})
    ours.load(saved, 7)
    assert (acting(ours), ours.updates) == (7, 7)
    ours.step(batch(), ROWS)
    assert (acting(ours), ours.updates) == (8, 8)


@pytest.mark.parametrize("lockstep", [True, False])
def test_after_sync_the_newest_parameters_act(lockstep):
    ours = learner(lockstep)
    for _ in range(3):
        ours.step(batch(), ROWS)
    ours.sync()
    assert acting(ours) == float(ours.state.params["w"][0]) == 3


@pytest.mark.parametrize("lockstep", [True, False])
def test_the_state_is_donated_and_the_acting_copy_is_not(lockstep):
    ours = learner(lockstep)
    states, copies = [], []
    for _ in range(4):
        states.append(ours.state)
        copies.append(ours.snapshot())
        ours.step(batch(), ROWS)
    assert all(state.params["w"].is_deleted() for state in states)
    assert [float(copy.leaves[0][0]) for copy in copies] == [copy.updates for copy in copies]


def test_an_update_gives_its_own_latents_metrics_and_rows():
    update = learner(lockstep=True).step(batch(reward=2.5), ROWS)
    assert update.rows is ROWS
    assert np.array_equal(update.out.latent["reward"], np.full((2, 5), 2.5))
    assert float(update.out.metrics["loss/reward"]) == 2.5


def test_compiling_makes_no_update():
    ours = learner(lockstep=True)
    ours.compile(batch())
    assert ours.updates == 0 and int(ours.state.step) == 0 and acting(ours) == 0
    ours.step(batch(), ROWS)
    assert ours.updates == int(ours.state.step) == 1


def test_a_report_leaves_the_state_alone_and_comes_as_numpy():
    ours = learner(lockstep=True)
    ours.step(batch(), ROWS)
    report = ours.report(batch())
    assert all(isinstance(value, np.ndarray) for value in report.values())
    assert report["dream/vector"].mean() == 2
    assert int(ours.state.step) == 1


def test_the_seed_gives_the_state():
    first, again = (learner(lockstep=True).state.key for _ in range(2))
    other = Learner(recording_agent(SPEC), SPEC, seed=1, batch_size=2, lockstep=True).state.key
    assert first == again and first != other


def test_a_batch_that_cannot_be_split_evenly_is_refused():
    mesh = types.SimpleNamespace(size=3)
    meshes.check_batch_size(mesh, 6)
    with pytest.raises(UserError, match="replay.batch_size 16 .* 3 devices"):
        meshes.check_batch_size(mesh, 16)


def test_a_first_copy_shares_no_memory():
    tree = {"a": jax.device_put(np.arange(4.0, dtype=np.float32)), "b": jax.random.key(0)}
    copy = placement.first_copy(tree)
    assert copy["a"].unsafe_buffer_pointer() != tree["a"].unsafe_buffer_pointer()
    assert np.array_equal(copy["a"], tree["a"]) and copy["b"] == tree["b"]


def test_a_first_copy_has_the_same_type_whether_a_program_or_a_checkpoint_made_the_state():
    place = placement.replicated(meshes.make_mesh(jax.devices()[:1], 1))
    computed = jax.jit(lambda: jnp.arange(4.0), out_shardings=place)()
    restored = jax.device_put(np.arange(4.0, dtype=np.float32), place)
    types_of_copies = [jax.typeof(placement.first_copy(x)) for x in (computed, restored)]
    assert types_of_copies[0] == types_of_copies[1] and types_of_copies[0].sharding.mesh.empty


def test_a_state_is_lost_when_its_values_cannot_be_read():
    ours = learner(lockstep=True)
    assert not ours.lost()
    size = device_errors.state_bytes(ours.state)
    jax.tree.map(lambda x: x.delete(), ours.state)
    assert ours.lost()
    assert size == device_errors.state_bytes(ours.state) == 4 * 4 + 2 * 4 + 4 + ours.state.key.dtype.itemsize


def test_memory_reports_the_known_facts():
    program = types.SimpleNamespace(memory_analysis=lambda: types.SimpleNamespace(temp_size_in_bytes=2.5e9))
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 80e9})
    state = jax.device_put(np.zeros(250_000, np.float32))
    expected = ["the train state takes 1.0 MB", "the update 2.5 GB in addition", "the device has 80.0 GB"]
    assert device_errors.memory(state, program, [device]) == expected
    assert device_errors.memory(state, jax.jit(lambda x: x), jax.devices()) == expected[:1]


def test_a_program_larger_than_the_free_memory_is_refused_as_a_device_would():
    program = types.SimpleNamespace(memory_analysis=lambda: types.SimpleNamespace(temp_size_in_bytes=2.5e9))
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 3e9, "bytes_in_use": 1e9})
    with pytest.raises(jax.errors.JaxRuntimeError, match="needs 2.5 GB, and 2.0 GB are free") as caught:
        device_errors.check_fits(program, [device])
    assert device_errors.full(caught.value)
    device.memory_stats = lambda: {"bytes_limit": 3e9, "bytes_in_use": 5e8}
    device_errors.check_fits(program, [device])
