"""The updates of all members of a population in one program."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runs

from dreamer.interfaces import TrainState
from dreamer.runtime.devices import programs
from dreamer.runtime.devices.mesh import make_mesh
from dreamer.runtime.population.updates import States


@functools.cache
def updated_alone(member: int, updates: int = 2):
    """Returns the train state of a member after updates by the program of a run."""
    agent, batch = tiny.make_agent("vector"), batch_of(member)
    update = programs.jit_update(agent, make_mesh(jax.devices()[:1]))
    state = begun(member)
    for _ in range(updates):
        state, _ = update(state, batch)
    return state


def begun(member: int):
    return jax.tree.map(jnp.copy, tiny.state("vector", member))


def batch_of(member: int):
    batch = tiny.make_batch(tiny.SPECS["vector"])
    return batch._replace(reward=batch.reward + member)


@pytest.mark.parametrize(("together", "atol"), [(1, 0.0), (2, 1e-5)])
def test_the_program_of_all_makes_the_updates_of_each(together, atol, monkeypatch):
    """One member at a time to the last bit; several by vmap within rounding."""
    monkeypatch.setattr(jax, "jit", tiny.jit)
    agent = tiny.make_agent("vector")
    part = programs.policy_part(agent, tiny.SPECS["vector"])
    states = States([begun(n) for n in range(4)], agent, part, together, make_mesh(jax.devices()[:1]))
    batches = [batch_of(n) for n in range(4)]
    states.compile(batches[0])
    for _ in range(2):
        results = states.update([*batches[:3], None])
    assert [result and result[1] for result in results] == [True, True, True, None]
    for number in range(3):
        own, alone = states.state(number), updated_alone(number)
        for one, other in zip(jax.tree.leaves(own.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=atol)
        taken = part.take(agent.variables(own))
        jax.tree.map(np.testing.assert_array_equal, states.leaves(number), taken)


@pytest.mark.slow
@pytest.mark.parametrize(("together", "atol"), [(1, 0.0), (4, 1e-5)])
def test_members_of_different_hyper_stay_near_each_alone_over_a_hundred_updates(together, atol, monkeypatch):
    """Within a share of the largest parameter. The test prints how the difference grows."""
    monkeypatch.setattr(jax, "jit", tiny.jit)
    agent, mesh, batch = tiny.make_agent("vector"), make_mesh(jax.devices()[:1]), batch_of(0)
    update = programs.jit_update(agent, mesh)
    alone = [with_rate(begun(n), 1e-3 * (n + 1)) for n in range(4)]
    copies = jax.tree.map(jnp.copy, alone)
    states = States(copies, agent, programs.policy_part(agent, tiny.SPECS["vector"]), together, mesh)
    states.compile(batch)
    differences = {}
    for number in range(1, 101):
        batch = tiny.make_batch(tiny.SPECS["vector"], seed=number)
        alone = [update(state, batch)[0] for state in alone]
        states.update([batch] * 4)
        if number in (1, 10, 30, 100):
            differences[number] = max(apart(states.state(n), alone[n]) for n in range(4))
    moved = min(apart(state, begun(n)) for n, state in enumerate(alone))
    print(f"{together} at a time, difference / largest parameter after updates: {differences}; moved by {moved:.2g}")
    assert max(differences.values()) <= atol and moved > 1e-2


def with_rate(state: TrainState, rate: float) -> TrainState:
    return state._replace(hyper={**state.hyper, "learning_rate": {"": jnp.float32(rate)}})


def apart(one: TrainState, other: TrainState) -> float:
    """Returns the largest difference of a parameter, as a share of the largest parameter."""
    pairs = [*zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)]
    return max(np.abs(x - y).max() for x, y in pairs) / max(np.abs(y).max() for _, y in pairs)


@pytest.mark.parametrize("together", [1, 2])
def test_a_member_inherits_what_another_has_learned_and_keeps_its_key(together):
    def state(number):
        numbers = (jnp.full(2, number + at, jnp.float32) for at in (0.0, 0.1, 0.2, 0.3))
        params, extra, hyper, opt_state = numbers
        return TrainState(jnp.int32(5), jax.random.key(number), params, extra, hyper, opt_state)

    agent = tiny_runs.plain_agent(tiny.SPECS["vector"])
    part = programs.PolicyPart(None, [], [])
    states = States([*map(state, range(4))], agent, part, together, make_mesh(jax.devices()[:1]))
    states.inherit(3, 1, jnp.full(2, 9.0))
    heir, parent, own = states.state(3), state(1), state(3)
    for name in ("params", "extra", "opt_state"):
        np.testing.assert_array_equal(getattr(heir, name), getattr(parent, name))
    assert heir.hyper.tolist() == [9, 9] and heir.key == own.key
    np.testing.assert_array_equal(states.state(2).params, state(2).params)
