"""Meshes and the jitted functions: split batches, donated states, the same numbers on one device and on eight."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dreamer.errors import UserError
from dreamer.interfaces import Update
from dreamer.runtime.devices import distributed, placement, programs
from dreamer.runtime.devices import mesh as meshes

ROOT = pathlib.Path(__file__).parent.parent
LAYOUTS = ((1, 1), (2, 1), (8, 1), (8, 4))  # (devices, devices over which large leaves are split)
EIGHT_DEVICES = """
import sys
import jax, numpy as np
import test_replay
import tiny
from dreamer.errors import UserError
from dreamer.runtime.devices import mesh as meshes, placement
from dreamer.runtime.learning.device_rows import DeviceRows
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.learning.learner import Learner
from benchmarks.scaling import collectives
from test_devices import LAYOUTS

assert jax.device_count() == 8
placement.SMALLEST_SPLIT = 64  # the tiny agent has no large leaf
folder = sys.argv[1]
agent, spec = tiny.make_agent("vector"), tiny.SPECS["vector"]
batch = tiny.make_batch(spec)


def learner(count, fsdp):
    config = meshes.Config(count=count, fsdp=fsdp)
    return Learner(agent, spec, seed=0, batch_size=tiny.BATCH, lockstep=True, config=config)


def save(name, tree):
    flat = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    np.savez(f"{folder}/{name}.npz", **flat)


for count, fsdp in LAYOUTS:
    ours = learner(count, fsdp)
    assert ours.mesh.size == count
    ours.compile(batch)
    found = collectives(ours._update.as_text())
    assert (count == 1) != any(one.kind == "all-reduce" for one in found)
    assert not [one for one in found if one.depth]  # gradients are reduced once, not in every step of a scan
    gathered = [one.source for one in found if one.kind == "all-gather"]
    assert fsdp > 1 or all("percentile" in source for source in gathered), gathered  # no activations are sent
    for _ in range(3):
        out = ours.step(ours.place(batch), None)
    ours.sync()  # no snapshot shares a buffer with a state that was donated
    state = ours.state
    is_split = [not x.sharding.is_fully_replicated for x in jax.tree.leaves(state)]
    assert any(is_split) == (fsdp > 1) and not all(is_split)
    for part in (state.params, state.opt_state, state.extra["behavior"]["slow"]):
        assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(part)) == (fsdp > 1)
    assert all(len(x.sharding.device_set) == count for x in jax.tree.leaves(state.params))
    assert out.out.latent["deter"].addressable_shards[0].data.shape[0] == tiny.BATCH // count
    save(f"{count}-{fsdp}", (state.params, state.extra, out.out.latent, out.out.metrics))

# Acting, reports and checkpoints are the same with a split state as with a whole one.
acting = ours.snapshot().leaves
assert all(leaf.devices() == {jax.devices()[0]} for leaf in acting)
for leaf, source in zip(acting, ours.part.take(agent.variables(state)), strict=True):
    np.testing.assert_array_equal(leaf, source)
with Checkpoints(folder) as checkpoints:
    checkpoints.save(1, state)
    checkpoints.wait()
    for count, fsdp in ((1, 1), (8, 2)):
        other = learner(count, fsdp)
        placed = jax.tree.map(lambda x: x.sharding, other.state)
        other.load(checkpoints.restore(other.state)[0], 3)
        save(f"restored-{count}-{fsdp}", other.state.params)
        assert jax.tree.map(lambda x: x.sharding, other.state) == placed
        if count == 1:
            save("report-1-1", other.report(batch))
save("saved", state.params)
save("report", ours.report(batch))

# Observations on the devices: each device gathers its part of the batch by itself.
ours_rows, theirs_rows = (test_replay.build(envs=2, rows=10, length=3) for _ in range(2))
test_replay.fill(ours_rows, 13), test_replay.fill(theirs_rows, 13)
mesh = meshes.make_mesh()
source = DeviceRows(mesh, test_replay.SPEC, ours_rows)
found, expected = source.sample(8)[0].obs, theirs_rows.sample(8)[0].obs
for name, x in found.items():
    np.testing.assert_array_equal(x, expected[name])
    assert x.sharding.is_equivalent_to(placement.split(mesh), x.ndim)
gathering = source._gather.lower(source._rings, np.zeros((8, 3), np.int32)).compile().as_text()
assert not collectives(gathering)

for count, fsdp, size in ((8, 1, 12), (16, 1, 16), (8, 3, 8), (0, 5, 8)):
    try:
        meshes.configured_mesh(meshes.Config(count=count, fsdp=fsdp), size)
    except UserError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """Returns the files that a process with eight virtual devices saved, by name, and its output."""
    folder = tmp_path_factory.mktemp("eight")
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, str(folder)], env=environment(8), capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {file.stem: loaded(file) for file in folder.glob("*.npz")}, done.stdout.splitlines()


def environment(count: int) -> dict[str, str]:
    """Returns the environment variables of a process with `count` virtual devices and without XLA optimization."""
    quick = [f"--{name}={str(value).lower()}" for name, value in tiny.QUICK.items()]
    return os.environ | {
        "XLA_FLAGS": " ".join([f"--xla_force_host_platform_device_count={count}", *quick]),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]),
    }


def loaded(file: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(file) as data:
        return {name: data[name] for name in data.files}


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Fails unless equal up to the order of summation."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        scale = max(1.0, np.abs(value.astype(np.float64)).max())
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_many_devices_make_the_update_of_one(eight, layout):
    saved, _ = eight
    assert len(saved["1-1"]) > 50
    assert_close(saved["{}-{}".format(*layout)], saved["1-1"])


@pytest.mark.parametrize("layout", ["1-1", "8-2"])
def test_a_checkpoint_restores_on_another_layout(eight, layout):
    saved, _ = eight
    for name, value in saved["saved"].items():
        np.testing.assert_array_equal(saved[f"restored-{layout}"][name], value)


def test_a_report_of_a_split_state_equals_that_of_a_whole_state(eight):
    assert_close(eight[0]["report"], eight[0]["report-1-1"])


def test_devices_that_cannot_share_the_work_are_a_user_error(eight):
    batch, count, fsdp, of_all = eight[1]
    assert batch == (
        "replay.batch_size 12 cannot be split evenly over 8 devices; give a batch of 8 or 16, or devices.count 6"
    )
    assert count == "devices.count is 16, there are 8 (cpu); give 1 to 8, or 0 for all"
    assert fsdp == "devices.fsdp is 3, which does not divide 8 devices; give 2 or 4"
    assert of_all == "devices.fsdp is 5, which does not divide 8 devices; give 4 or 8"


@pytest.mark.parametrize(
    "shape, parts, expected",
    [((512, 1024), 4, (None, "fsdp")), ((1024, 512), 4, ("fsdp",)), ((1024, 1022), 4, ("fsdp",)), ((70, 2), 2, ()),
     ((1023, 1021), 2, ()), ((), 2, ()), ((8, 64, 192), 2, (None, None, "fsdp"))],
)  # fmt: skip
def test_a_large_leaf_is_split_along_its_longest_axis_that_can_be(shape, parts, expected):
    assert tuple(placement._leaf_spec(shape, parts)) == expected


def test_even_split_is_taken():
    meshes.check_batch_size(types.SimpleNamespace(size=4), 8)
    with pytest.raises(UserError, match="batch_size 6"):
        meshes.check_batch_size(types.SimpleNamespace(size=4), 6)


def test_mesh_holds_all_devices():
    mesh = meshes.make_mesh()
    assert mesh.axis_names == meshes.AXES and mesh.size == jax.device_count() and mesh.shape["fsdp"] == 1


def toy_agent():
    """Makes an agent whose state is a sum of batches."""

    def update(state, batch):
        return state + batch.sum(0), Update({"deter": batch}, {"mean": batch.mean()})

    return tiny.make_agent("vector")._replace(update=update)


def test_update_donates_its_state():
    mesh = meshes.make_mesh()
    update = programs.jit_update(toy_agent(), mesh)
    state = jax.device_put(jnp.zeros(3), placement.replicated(mesh))
    batch = jax.device_put(np.ones((jax.device_count(), 3), np.float32), placement.split(mesh))
    after, _ = update(state, batch)
    assert state.is_deleted() and not batch.is_deleted()
    np.testing.assert_array_equal(after, jax.device_count())


def test_first_copy_outlives_the_donated_state():
    mesh = meshes.make_mesh()
    state = jax.device_put(jnp.ones(3), placement.replicated(mesh))
    copy = placement.first_copy(state)
    programs.jit_update(toy_agent(), mesh)(state, jnp.ones((jax.device_count(), 3)))
    np.testing.assert_array_equal(copy, 1)
    assert copy.devices() == {jax.devices()[0]}


def test_policy_gives_the_packed_latent_and_a_stream_of_its_own_at_each_count(key):
    agent = tiny.make_agent("vector")
    variables = agent.variables(tiny.state("vector"))
    policy = programs.jit_act(agent)
    obs = tiny.make_batch(tiny.SPECS["vector"], batch_size=2, length=1, context=0).obs
    obs = {name: x[:, 0] for name, x in obs.items()}

    def act(count):
        return policy(variables, key, count, agent.initial_carry(2), obs, np.ones(2, bool), mode="sample")

    (carry, action, latent), (_, same, _), (_, other, _) = act(0), act(0), act(1)
    np.testing.assert_array_equal(action, same)
    assert not np.array_equal(action, other)
    np.testing.assert_array_equal(carry.prev_action, action)
    assert {k: (x.shape[1:], x.dtype.name) for k, x in latent.items()} == {
        k: (space.shape, space.dtype) for k, space in agent.storage.items()
    }


def test_to_host_gives_numpy():
    out = placement.to_host({"a": jnp.ones(2), "b": (jnp.zeros(()),)})
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(out))


# --- several processes ------------------------------------------------------------------------------

PAIR = """
import sys
import jax, numpy as np
from dreamer.errors import UserError
from dreamer.runtime.devices import distributed, mesh as meshes, placement
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.learning.learner import Learner
from dreamer.steps import Batch

folder, port, count, number = sys.argv[1], *map(int, sys.argv[2:])
if count > 1:
    config = meshes.Config(coordinator=f"localhost:{port}", processes=count, process_id=number, fsdp=2)
    distributed.start(config)
else:
    config = meshes.Config(count=4)
import tiny  # after start, because it starts the XLA backend

placement.SMALLEST_SPLIT = 64
assert jax.process_count() == distributed.count() == count and jax.device_count() == 4
agent, spec = tiny.make_agent("vector"), tiny.SPECS["vector"]
ours = Learner(agent, spec, seed=0, batch_size=tiny.BATCH, lockstep=True, config=config)
each = distributed.share("replay.batch_size", tiny.BATCH)
mine = jax.tree.map(lambda x: x[number * each : (number + 1) * each], tiny.make_batch(spec))
for _ in range(2):
    out = ours.step(ours.place(mine), None)
state, (latent, metrics, _) = placement.local_copy(ours.state), placement.to_host(out.out)
assert latent["deter"].shape[0] == each
flat = jax.tree_util.tree_leaves_with_path((state.params, state.extra, latent, metrics, ours.snapshot().leaves))
np.savez(f"{folder}/{count}-{number}.npz", **{jax.tree_util.keystr(path): np.asarray(x) for path, x in flat})
report = ours.report(mine)
assert all(np.isfinite(x).all() for x in report.values())
with Checkpoints(f"{folder}/{count}") as checkpoints:
    if number == 0:
        checkpoints.save(1, state)
        checkpoints.wait()
    distributed.gather([0])  # it is written
    ours.load(checkpoints.restore(placement.local_copy(ours.state))[0], 2)
ours.step(ours.place(mine), None)
gathered = distributed.gather([number, 2**40 + number])
assert gathered.tolist() == [[i, 2**40 + i] for i in range(count)]
try:
    distributed.share("replay.batch_size", 7)
except UserError as error:
    print(error)
"""


@pytest.mark.slow  # test_several_hosts has whole runs of two processes
def test_two_processes_make_the_update_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    for count in (2, 1):
        started = [
            subprocess.Popen(
                [sys.executable, "-c", PAIR, str(tmp_path), port, str(count), str(number)],
                env=environment(4 // count), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for number in range(count)
        ]  # fmt: skip
        try:
            for one in started:
                output, errors = one.communicate(timeout=600)
                assert one.returncode == 0, errors
                assert count == 1 or "7 cannot be shared evenly by 2 processes; give 6 or 8" in output
        finally:
            for one in started:
                one.kill()
                one.communicate()
    first, second, alone = (loaded(tmp_path / f"{name}.npz") for name in ("2-0", "2-1", "1-0"))
    latents = [name for name in alone if name.startswith("[2]")]
    assert latents
    joined = {name: np.concatenate([first[name], second[name]]) if name in latents else first[name] for name in alone}
    assert_close(joined, alone)
    for name in set(alone) - set(latents):
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"processes": 2}, "devices.processes is set, but devices.coordinator is ''"),
        ({"coordinator": "auto", "process_id": 1}, "devices.process_id is set, but devices.coordinator is 'auto'"),
        ({"coordinator": "here"}, "devices.coordinator must be host:port of process 0, or auto, not 'here'"),
        ({"coordinator": "here:1"}, "devices.processes must be given"),
        ({"coordinator": "here:1", "processes": 2}, "devices.process_id must be from 0 to 1 .* not -1"),
        ({"coordinator": "here:1", "processes": 2, "process_id": 2}, "from 0 to 1 .* not 2"),
    ],
)
def test_incomplete_settings_of_processes_are_a_user_error(given, expected):
    with pytest.raises(UserError, match=expected):
        distributed.start(meshes.Config(**given))


def test_one_process_connects_to_no_others():
    distributed.start(meshes.Config())
    assert not jax.distributed.is_initialized()
    assert (distributed.count(), distributed.share("x", 7)) == (1, 7)
    assert distributed.gather([3, 4]).tolist() == [[3, 4]]


def test_the_config_touches_no_device():
    program = "import dreamer; dreamer.load_config(); from jax._src import xla_bridge as b; assert not b._backends"
    subprocess.run([sys.executable, "-c", program], env=environment(1), check=True)
