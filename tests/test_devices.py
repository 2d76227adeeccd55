"""Meshes and the jitted functions: split batches, donated states, the same numbers on one device and on eight."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dreamer.errors import UserError
from dreamer.runtime import devices

ROOT = pathlib.Path(__file__).parent.parent
EIGHT_DEVICES = """
import sys
import jax, numpy as np
import tiny
from dreamer.errors import UserError
from dreamer.runtime import devices

assert jax.device_count() == 8
agent, batch = tiny.make_agent("vector"), tiny.make_batch(tiny.SPECS["vector"])
start = jax.jit(agent.init)(jax.random.key(0))
for count in (1, 8):
    mesh = devices.make_mesh(jax.devices()[:count])
    assert mesh.size == count
    update = devices.jit_update(agent, mesh)
    state = jax.device_put(devices.first_copy(start), devices.replicated(mesh))
    for _ in range(3):
        state, latent, metrics = update(state, jax.device_put(batch, devices.split(mesh)))
    kernel = jax.tree.leaves(state.params)[0]
    assert kernel.sharding.is_fully_replicated and len(kernel.sharding.device_set) == count
    assert latent["deter"].addressable_shards[0].data.shape[0] == tiny.BATCH // count
    out = {"params": state.params, "extra": state.extra, "latent": latent, "metrics": metrics}
    flat = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(out)}
    np.savez(f"{sys.argv[1]}/{count}.npz", **flat)
try:
    devices.check_batch_size(mesh, 12)
except UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What three updates give on one and on eight virtual devices of one process, and what the process said."""
    folder = tmp_path_factory.mktemp("eight")
    quick = [f"--{name}={str(value).lower()}" for name, value in tiny.QUICK.items()]
    env = os.environ | {
        "XLA_FLAGS": " ".join(["--xla_force_host_platform_device_count=8", *quick]),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, str(folder)], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    outs = []
    for count in (1, 8):
        with np.load(folder / f"{count}.npz") as data:
            outs.append({name: data[name] for name in data.files})
    return *outs, done.stdout


def test_eight_devices_make_the_update_of_one(eight):
    one, many, _ = eight
    assert set(one) == set(many) and len(one) > 50
    for name, expected in one.items():
        scale = max(1.0, np.abs(expected.astype(np.float64)).max())
        np.testing.assert_allclose(many[name], expected, rtol=1e-3, atol=1e-5 * scale, err_msg=name)


def test_uneven_split_is_a_user_error(eight):
    assert "batch_size 12 cannot be split evenly over 8 devices" in eight[2]


def test_even_split_is_taken():
    devices.check_batch_size(types.SimpleNamespace(size=4), 8)
    with pytest.raises(UserError, match="batch_size 6"):
        devices.check_batch_size(types.SimpleNamespace(size=4), 6)


def test_mesh_holds_all_devices_on_one_axis():
    mesh = devices.make_mesh()
    assert mesh.axis_names == ("data",) and mesh.size == jax.device_count()


def toy_agent():
    """An agent whose state is a sum of batches."""

    def update(state, batch):
        return state + batch.sum(0), {"deter": batch}, {"mean": batch.mean()}

    return tiny.make_agent("vector")._replace(update=update)


def test_update_donates_its_state():
    mesh = devices.make_mesh()
    update = devices.jit_update(toy_agent(), mesh)
    state = jax.device_put(jnp.zeros(3), devices.replicated(mesh))
    batch = jax.device_put(np.ones((jax.device_count(), 3), np.float32), devices.split(mesh))
    after, _, _ = update(state, batch)
    assert state.is_deleted() and not batch.is_deleted()
    np.testing.assert_array_equal(after, jax.device_count())


def test_first_copy_outlives_the_donated_state():
    mesh = devices.make_mesh()
    state = jax.device_put(jnp.ones(3), devices.replicated(mesh))
    copy = devices.first_copy(state)
    devices.jit_update(toy_agent(), mesh)(state, jnp.ones((jax.device_count(), 3)))
    np.testing.assert_array_equal(copy, 1)
    assert copy.devices() == {jax.devices()[0]}


def test_policy_gives_the_packed_latent_and_a_stream_of_its_own_at_each_count(key):
    agent, params = tiny.make_agent("vector"), tiny.state("vector").params
    policy = devices.jit_policy(agent)
    obs = tiny.make_batch(tiny.SPECS["vector"], batch_size=2, length=1, context=0).obs
    obs = {name: x[:, 0] for name, x in obs.items()}

    def act(count):
        return policy(params, key, count, agent.initial_carry(2), obs, np.ones(2, bool), mode="sample")

    (carry, action, latent), (_, same, _), (_, other, _) = act(0), act(0), act(1)
    np.testing.assert_array_equal(action, same)
    assert not np.array_equal(action, other)
    np.testing.assert_array_equal(carry.prev_action, action)
    assert {k: (x.shape[1:], x.dtype.name) for k, x in latent.items()} == {
        k: (space.shape, space.dtype) for k, space in agent.storage.items()
    }


def test_to_host_gives_numpy():
    out = devices.to_host({"a": jnp.ones(2), "b": (jnp.zeros(()),)})
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(out))
