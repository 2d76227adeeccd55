"""What a run needs, computed before it starts: its memory, and which runs can share a program."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer import agent as agents
from dreamer import plugins
from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.interfaces import Agent, Batch
from dreamer.runtime.devices.memory import free_memory
from dreamer.runtime.devices.mesh import make_mesh
from dreamer.runtime.devices.programs import jit_update
from dreamer.runtime.population.hyper import hyper_of, numbers_read, program_of
from dreamer.runtime.replay import memory, replay
from dreamer.runtime.run.environments import make_workers
from dreamer.spaces import Spec

SPARE = 0.9  # the share of the free memory that programs may take


class Plan(NamedTuple):
    """What one run needs.

    program: equal for runs that can be members of one population, if their `numbers` differ
    numbers: equal for runs of one program that differ in nothing but their seeds
    on_device: whether its loop runs on the device
    state, temporary: bytes on the device, of the train state and of the temporary arrays of an update
    replay: bytes of the replay in the memory of the host; with `on_device`, the device holds as many
    parameters: their number
    """

    program: str
    numbers: str
    on_device: bool
    state: int
    temporary: int
    replay: int
    parameters: int


class Machine(NamedTuple):
    """The devices of this machine, and the bytes that are free.

    platform: "cpu", "gpu" or "tpu" | devices: their number | device_free: on the first device | host_free: of the host
    """

    platform: str
    devices: int
    device_free: int
    host_free: int


def machine() -> Machine:
    """Returns what this machine has."""
    return Machine(jax.default_backend(), jax.local_device_count(), free_memory(), memory.free_memory())


def plan(config: Config, measured: Mapping[str, int] | None = None) -> Plan:
    """Returns what the run of `config` needs. Makes one environment and compiles an update, but trains nothing.

    measured {program: temporary}: from earlier plans; their programs are not compiled again
    Raises UserError if the environment or the agent cannot be made, or if the replay does not fit the host.
    """
    if config.data:
        raise UserError("a run with data learns alone, not in a population")
    spec, in_jax = spec_of(config)
    agent = agents.make(config.agent, spec, priorities=config.replay.priority > 0)
    streams = config.workers.envs * spec.agents
    size = replay.size_replay(
        spec, agent.storage, config.replay, streams=streams, env_steps=config.env_steps * spec.agents
    )
    state = jax.eval_shape(agent.init, jax.random.key(0))
    functions = program_of(agent, spec)
    program = digest(f"{functions} {shared(config)}")
    numbers = digest(f"{numbers_read(hyper_of(agent), functions.read)}")
    temporary = (measured or {}).get(program)
    if temporary is None:
        temporary = compiled(agent, spec, config).memory_analysis().temp_size_in_bytes
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    on_device = in_jax and config.loop != "host"
    return Plan(program, numbers, on_device, nbytes(state), temporary, size.nbytes, parameters)


def digest(text: str) -> str:
    """Returns a short text that differs for different texts."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def spec_of(config: Config) -> tuple[Spec, bool]:
    """Returns the spec of the environment, and whether it is written in JAX. Raises UserError."""
    written = plugins.make_jax_env(config.env, config.env_options)
    if written is not None and config.workers.backend in ("auto", "inline"):
        return written.spec, True
    one = dataclasses.replace(config.workers, backend="inline", envs=1, processes=0)
    with make_workers(one, config.env, config.env_options, action_repeat=config.action_repeat) as workers:
        return workers.spec, False


def shared(config: Config) -> str:
    """Returns what the members of a population have in common besides the program, as text."""
    left = dataclasses.replace(config, seed=0, run_dir="", agent=Config().agent)
    return repr(left)


def compiled(agent: Agent, spec: Spec, config: Config) -> Any:
    """Returns the compiled update of one run, on the first device. Raises UserError if the device has no memory."""
    rows = config.replay.batch_size, config.replay.batch_length + config.replay.context
    obs = {k: jax.ShapeDtypeStruct((*rows, *x.shape), x.device_dtype) for k, x in spec.obs.items()}
    lengths = {k: rows[1] if k in agent.reads else config.replay.context for k in agent.storage}
    latent = {k: jax.ShapeDtypeStruct((rows[0], lengths[k], *x.shape), x.dtype) for k, x in agent.storage.items()}
    numbers, flags = (jax.ShapeDtypeStruct(rows, dtype) for dtype in (jnp.float32, jnp.bool_))
    action = jax.ShapeDtypeStruct((*rows, spec.action_width), jnp.float32)
    batch: Any = Batch(obs, action, numbers, flags, flags, flags, latent if config.replay.context else {})
    state = jax.eval_shape(agent.init, jax.random.key(0))
    update: Any = jit_update(agent, make_mesh(jax.local_devices()[:1]))
    try:
        return update.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"an update cannot be compiled here: {str(error).splitlines()[0]}") from error


def nbytes(form: Any) -> int:
    """Returns the bytes of a tree of arrays or of their shapes."""
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(form) if not _is_key(x))


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def most_members(needs: Sequence[Plan], there: Machine) -> int:
    """Returns how many runs like these fit into one population here; 0: not even one."""
    most = max(needs, key=lambda one: one.state + one.replay)
    on_cpu = there.platform == "cpu"
    # While a population starts, the arrays of each member are held twice: apart, and joined. A member whose loop runs
    # on the device also keeps the train state that it was made with, see `room.member_bytes`.
    device = 3 * most.state + 2 * most.replay if most.on_device else 2 * most.state
    host = most.replay + (device if on_cpu else 0)
    left = SPARE * there.host_free - (most.temporary if on_cpu else 0)
    fitting = int(left // max(1, host))
    if not on_cpu:
        fitting = min(fitting, int((SPARE * there.device_free) // max(1, device + most.temporary)))
    return max(0, fitting)
