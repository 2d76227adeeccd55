"""Measures danijar/dreamerv3 (tested at e3f0224) in its own interpreter; imports nothing from dreamer.

    PEER_PYTHON benchmarks/peers/dreamerv3.py --checkout PATH --size size12m --obs image --dtype bfloat16

Uses the peer's Agent, configs.yaml and size preset with random data of the same spaces on the device: batch 16 x 64 and
one context row. A step is `agent.train(carry, batch)` and a wait for parameters and carry; it includes the peer's jit,
donation, replay entries, metrics and policy sync. The checkout is not edited. These patches in memory are not part of a
step:

- jax.jit accepts shardings, static and donated arguments by position, as it did when the peer was written.
- portal, cloudpickle and colored_traceback are stubs if they are not installed: only processes and tracebacks use them.
- Its transfer guard and its profiler (updates 100 to 120) are off, its report is not compiled, and the environment
  decides how memory is reserved (the peer sets XLA_PYTHON_CLIENT_PREALLOCATE itself).
- Its XLA flags are kept (autotune level 1, deterministic operations), except those that are unknown to this jaxlib and
  would end the process. --xla-flags none drops them all, --xla-flags own keeps those of the caller.
"""

from __future__ import annotations

import argparse
import glob
import importlib
import importlib.util
import mmap
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parent)
sys.path[:] = [HERE] + [p for p in sys.path if p not in (HERE, "")]
import protocol  # noqa: E402

sys.path.remove(HERE)  # this file is called like the peer's package

import numpy as np  # noqa: E402

STUBS = ("portal", "cloudpickle", "colored_traceback")
TRAINED = ("enc", "dyn", "dec", "rew", "con", "pol", "val")
ACTIONS = {"image": ("int32", (), 0, 18), "proprio": ("float32", (6,), -1, 1)}


def main() -> None:
    """Builds, compiles, then answers requests by `protocol`."""
    parser = protocol.arguments()
    parser.add_argument("--platform", default="", help="the jax platform; jax's own choice if left out")
    parser.add_argument("--xla-flags", choices=("peer", "own", "none"), default="peer")
    args = parser.parse_args()
    answers = protocol.own_stdout()
    prepare(args.checkout)
    agent = make_agent(args)
    facts = compile_train(agent, tuple(args.batch))
    step = make_step(agent, tuple(args.batch))
    protocol.time_steps(step, args.warmup)
    if args.policy:
        for envs in (1, 16):
            facts |= policy_times(agent, envs)
    protocol.serve(answers, facts, step, device_peak)


def prepare(checkout: str) -> None:
    """Makes the checkout importable on a newer jax. Must run before jax is initialised."""
    import jax

    sys.path.insert(0, checkout)
    for name in STUBS:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name])["add_hook"] = lambda **_: None
    jit, names = jax.jit, ("in_shardings", "out_shardings", "static_argnums", "static_argnames", "donate_argnums")

    def positional(fun: Any, *args: Any, **kwargs: Any) -> Any:
        named = dict(zip(names, args, strict=False))
        return jit(fun, **{k: v for k, v in named.items() if v is not None}, **kwargs)

    jax.jit = positional


def make_agent(args: argparse.Namespace) -> Any:
    """The peer's agent for our spaces, made like in its main.py."""
    before = {k: os.environ.get(k) for k in ("XLA_FLAGS", "XLA_PYTHON_CLIENT_PREALLOCATE")}
    import elements
    from embodied.jax import internal

    setup = internal.setup

    def restrained(**kwargs: Any) -> None:
        setup(**kwargs)
        flags = {"peer": os.environ.get("XLA_FLAGS", ""), "own": before["XLA_FLAGS"] or "", "none": ""}
        after = {"XLA_FLAGS": " ".join(known_flags(flags[args.xla_flags].split()))}
        after["XLA_PYTHON_CLIENT_PREALLOCATE"] = before["XLA_PYTHON_CLIENT_PREALLOCATE"]
        for key, value in after.items():
            os.environ.pop(key, None)
            if value:
                os.environ[key] = value

    internal.setup = restrained
    config = elements.Config(configs(args.checkout)["defaults"])
    config = config.update(configs(args.checkout)[args.size])
    options = {**config.jax, "platform": args.platform, "compute_dtype": args.dtype}
    options |= {"transfer_guard": False, "profiler": False, "precompile": False}
    space = elements.Space
    obs = {"image": space(np.uint8, (64, 64, 3)), "proprio": space(np.float32, (24,))}[args.obs]
    flags = {name: space(bool) for name in ("is_first", "is_last", "is_terminal")}
    obs_space = {"image" if args.obs == "image" else "vector": obs, "reward": space(np.float32), **flags}
    dtype, *bounds = ACTIONS[args.obs]
    shared = {k: config[k] for k in ("seed", "replay_context", "report_length", "replica", "replicas")}
    return importlib.import_module("dreamerv3.agent").Agent(
        obs_space, {"action": space(np.dtype(dtype), *bounds)},
        elements.Config(
            **config.agent, **shared, logdir="/nowhere", jax=options,
            batch_size=args.batch[0], batch_length=args.batch[1],
        ),
    )  # fmt: skip


def configs(checkout: str) -> dict:
    """The peer's configs.yaml, read as YAML 1.2, where 4e-5 is a number."""
    text = Path(checkout, "dreamerv3", "configs.yaml").read_text()
    try:
        from ruamel.yaml import YAML
    except ImportError:
        import re

        import yaml

        class Loader(yaml.SafeLoader):
            pass

        number = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)$")
        Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
        return yaml.load(text, Loader)
    return YAML(typ="safe").load(text)


def known_flags(flags: list[str]) -> list[str]:
    """The `flags` whose names occur in all libraries that will parse them."""
    roots = [Path(spec.origin).parent for name in ("jaxlib",) if (spec := importlib.util.find_spec(name))]
    files = [max(glob.glob(f"{roots[0]}/*.so"), key=os.path.getsize)]
    for folder in {Path(path) for path in sys.path}:
        files += glob.glob(f"{folder}/jax_plugins/*/*plugin*.so")
    known = []
    for flag in flags:
        name = flag.lstrip("-").partition("=")[0].encode() + b"\0"
        if all(holds(file, name) for file in files):
            known.append(flag)
    return known


def holds(path: str, text: bytes) -> bool:
    """Whether a file holds these bytes."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def compile_train(agent: Any, batch: tuple[int, int]) -> dict[str, Any]:
    """Traces and compiles the train step like its _compile_train, timing both, and counts its operations."""
    import jax

    data = make_data(agent, batch)
    seed, carry = agent._seeds(0, agent.train_mirrored), agent.init_train(batch[0])
    shared = {k: v for k, v in agent.params.items() if k in agent.policy_keys}
    donated = {k: v for k, v in agent.params.items() if k not in agent.policy_keys}
    with agent.train_mesh:
        clock = [time.perf_counter()]
        traced = agent._train.trace(donated, shared, seed, carry, data)
        lowered = traced.lower()
        clock.append(time.perf_counter())
        agent._train = lowered.compile()
        clock.append(time.perf_counter())
    sizes = {k: x.size for k, x in agent.params.items() if k.split("/")[0] in TRAINED}
    device = jax.devices()[0]
    return {
        "peer": "dreamerv3", "params": sum(sizes.values()), "trace_s": round(clock[1] - clock[0], 2),
        "compile_s": round(clock[2] - clock[1], 2), "flops": count(traced.jaxpr),
        "temp_mb": getattr(agent._train.memory_analysis(), "temp_size_in_bytes", 0) // 2**20,
        "jax": jax.__version__, "platform": device.platform, "device": device.device_kind,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }  # fmt: skip


def count(jaxpr: Any) -> int:
    """Counts operations with benchmarks/operations.py."""
    path = Path(HERE).parent / "operations.py"
    spec = importlib.util.spec_from_file_location("operations", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["operations"] = module
    spec.loader.exec_module(module)
    return module.of_closed(jaxpr).total


def make_data(agent: Any, batch: tuple[int, int]) -> dict[str, Any]:
    """A random batch with one context row on the device."""
    from embodied.jax import internal

    rng, shape = np.random.default_rng(0), (batch[0], batch[1] + agent.config.replay_context)
    data = agent._zeros(agent.spaces, shape)
    for name, space in agent.obs_space.items():
        if name not in ("is_first", "is_last", "is_terminal"):
            discrete = space.dtype == np.uint8
            value = rng.integers(0, 256, data[name].shape) if discrete else rng.normal(size=data[name].shape)
            data[name] = value.astype(space.dtype)
    for name, space in agent.act_space.items():
        draw = rng.integers(0, 18, data[name].shape) if space.discrete else rng.uniform(-1, 1, data[name].shape)
        data[name] = draw.astype(space.dtype)
    data["is_first"][:, 0] = True
    return internal.device_put(data, agent.train_sharded)


def make_step(agent: Any, batch: tuple[int, int]) -> Any:
    """Runs one train step and waits for parameters and carry."""
    import jax

    data = {**make_data(agent, batch), "seed": agent._seeds(0, agent.train_mirrored)}
    carry = agent.init_train(batch[0])

    def step() -> None:
        nonlocal carry
        carry, *_ = agent.train(carry, dict(data))
        jax.block_until_ready((agent.params, carry))

    return step


def policy_times(agent: Any, envs: int) -> dict[str, float]:
    """Milliseconds of one policy step with numpy in and out."""
    obs = {k: np.zeros((envs, *s.shape), s.dtype) for k, s in agent.obs_space.items()}
    carry = agent.init_policy(envs)

    def step() -> None:
        nonlocal carry
        carry, *_ = agent.policy(carry, obs)

    protocol.time_steps(step, 10)
    times = sorted(protocol.time_steps(step, 50))
    return {f"policy{envs}_ms_median": round(times[25], 3), f"policy{envs}_ms_min": round(times[0], 3)}


def device_peak() -> dict[str, Any]:
    """Peak memory in use on the device, if the device reports it."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    return {"device_peak_mb": stats["peak_bytes_in_use"] // 2**20} if "peak_bytes_in_use" in stats else {}


if __name__ == "__main__":
    main()
