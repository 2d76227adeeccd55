"""What must hold for every agent, whatever its world model and behavior. The tests of each family call these checks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from dreamer.interfaces import Agent, Batch, TrainState, Update

FOLDER = Path(__file__).parent
ON_DEVICES = """
import jax, numpy as np
import {module} as subject
from dreamer.runtime.devices import mesh as meshes
from dreamer.runtime.learning.learner import Learner

agent, spec, batch = subject.for_devices({arguments})
found = []
for count in (1, 8):
    config = meshes.Config(count=count)
    learner = Learner(agent, spec, seed=0, batch_size=len(batch.reward), lockstep=True, config=config)
    learner.compile(batch)
    for _ in range({updates}):
        learner.step(learner.place(batch), None)
    learner.sync()
    found.append([np.asarray(x) for x in jax.tree.leaves((learner.state.params, learner.state.extra))])
for one, eight in zip(*found, strict=True):
    np.testing.assert_allclose(eight, one, rtol={rtol}, atol={atol})
"""


def bits(tree: Any) -> list[bytes]:
    """Returns the bits of every leaf."""

    def plain(leaf: Any) -> Any:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return [np.asarray(plain(leaf)).tobytes() for leaf in jax.tree.leaves(tree)]


def form(tree: Any) -> Any:
    """Returns the shape and the dtype of every leaf."""
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def check_pure(update: Any, state: TrainState, batch: Batch) -> Update:
    """Checks that an update gives the same bits again, leaves its inputs alone, keeps the state's form, is traced once.

    update: compiled, and not used before with other shapes. Returns what the update gives besides the state.
    """
    before = bits((state, batch))
    first, out = update(state, batch)
    assert bits(update(state, batch)[0]) == bits(first) and bits((state, batch)) == before
    assert form(first) == form(state)
    update(first, batch)
    assert update._cache_size() == 1
    assert all(np.isfinite(value) for value in out.metrics.values())
    return out


def check_scan_and_vmap(agent: Agent, update: Any, batches: Sequence[Batch], *, rtol: float, atol: float) -> None:
    """Checks that updates scanned over batches, under `vmap` over two seeds, are those of a loop over each seed.

    The whole is traced once. update: compiled
    """
    states = [tiny.jit(agent.init)(jax.random.key(seed)) for seed in (1, 2)]
    together, rows = (jax.tree.map(lambda *x: jnp.stack(x), *parts) for parts in (states, batches))
    traces = []

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, tuple]:
        traces.append(batch)
        return agent.update(state, batch)[0], ()

    scanned = tiny.jit(jax.vmap(lambda state: jax.lax.scan(step, state, rows)[0]))(together)
    assert len(traces) == 1
    for i, state in enumerate(states):
        for one in batches:
            state, _ = update(state, one)
        for ours, theirs in zip(jax.tree.leaves(scanned.params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(ours[i], theirs, rtol=rtol, atol=atol)


def check_devices(module: str, arguments: str = "", *, updates: int = 2, rtol: float, atol: float) -> None:
    """Checks that eight devices make the updates of one, in a process of its own.

    module: of tests, with a function for_devices(arguments) -> agent, spec, batch of a multiple of 8 sequences
    """
    flags = {"xla_force_host_platform_device_count": 8, **tiny.QUICK}
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), str(FOLDER)]),
        "XLA_FLAGS": " ".join(f"--{name}={str(value).lower()}" for name, value in flags.items()),
    }  # fmt: skip
    code = ON_DEVICES.format(module=module, arguments=arguments, updates=updates, rtol=rtol, atol=atol)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=FOLDER.parent, env=environment)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
