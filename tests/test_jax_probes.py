"""The probes in JAX are those of the host."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from dreamer.runtime.env.actions import action_reader, random_actions
from dreamer.runtime.env.parallel import any_spec
from envs import jax_probes, probes

KEY = jax.random.key(0)


@functools.cache
def compiled(task: str):
    env = jax_probes.make(task)
    return env, jax.jit(env.reset), jax.jit(env.step)


@pytest.mark.parametrize("task", jax_probes.TASKS)
def test_a_probe_is_that_of_the_host(task):
    host, rng = probes.make(task), np.random.default_rng(0)
    env, reset, step = compiled(task)
    key = KEY
    for _ in range(3):
        key, own = jax.random.split(key)
        (state, row), _ = reset(own), host.reset(seed=0)
        over = False
        while not over:
            host.cue = int(state.cue)  # the cues are drawn at random, all else is compared
            assert np.array_equal(host.observe(), row.obs["image" if task == "pixel" else "vector"])
            vector = random_actions(env.spec.action, rng, 1)[0]
            native = action_reader(host).to_env(vector)
            _, reward, over, _, _ = host.step(native)
            key, own = jax.random.split(key)
            state, row = step(own, state, vector)
            np.testing.assert_allclose(row.reward, reward, rtol=1e-6)
            assert (bool(row.is_last), bool(row.is_terminal)) == (over, over)


def test_the_probes_have_the_names_and_the_spec_of_the_hosts():
    assert jax_probes.TASKS.keys() == probes.ENVS.keys()
    for task in jax_probes.TASKS:
        spec, ours = any_spec(probes.make(task)), jax_probes.make(task).spec
        assert ours == spec


def test_a_cue_is_1_in_half_of_the_steps():
    env = jax_probes.make("both")
    states, _ = jax.vmap(env.reset)(jax.random.split(KEY, 400))
    assert abs(float(states.cue.mean())) < 0.2
