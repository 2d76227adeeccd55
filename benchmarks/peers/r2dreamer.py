"""Measures NM512/r2dreamer (tested at 546e4fa) in its own interpreter; imports nothing from dreamer.

    PEER_PYTHON benchmarks/peers/r2dreamer.py --checkout PATH --size size12m --obs image --dtype float32

With `rep_loss=dreamer` it has the network and the parameter count of the reference. Uses the peer's Dreamer and model
configs, and the reference's widths for size1m, which it lacks. Random data of the same spaces, batch 16 x 64 on the
device, replace its replay. A step is an eager `agent.update(replay)` and a wait for the device. The checkout is not
edited. Patched in memory:

- autocast, float16 in its source, is off for float32 and uses the requested dtype otherwise.
- torch uses one thread per core of the process.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = str(Path(__file__).parent)
sys.path[:] = [HERE] + [p for p in sys.path if p not in (HERE, "")]
import protocol  # noqa: E402

sys.path.remove(HERE)  # this file is called like the peer's package

SIZE1M = {"deter": 512, "hidden": 64, "discrete": 4, "depth": 4, "units": 64, "act": "SiLU", "norm": True}
ACTIONS = {"image": 18, "proprio": 6}


def main() -> None:
    """Builds, warms up, then answers requests by `protocol`."""
    parser = protocol.arguments()
    parser.add_argument("--platform", default="", help="cpu or cuda; cuda where there is one if left out")
    args = parser.parse_args()
    answers = protocol.own_stdout()
    sys.path.insert(0, args.checkout)
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = args.platform or ("cuda" if torch.cuda.is_available() else "cpu")
    agent = make_agent(args, device)
    replay = Fixed(agent, args.obs, tuple(args.batch), device)
    wait: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else lambda: None

    def step() -> None:
        agent.update(replay)
        wait()

    facts: dict[str, Any] = {
        "peer": "r2dreamer", "params": sum(p.numel() for p in agent._named_params.values()), "trace_s": 0.0,
        "flops": count(step), "temp_mb": 0, "torch": torch.__version__, "platform": device,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }  # fmt: skip
    start = time.perf_counter()
    protocol.time_steps(step, 1)
    facts["compile_s"] = round(time.perf_counter() - start, 2)  # the time of the first step, as it is eager
    protocol.time_steps(step, args.warmup)
    if args.policy:
        for envs in (1, 16):
            facts |= policy_times(agent, args.obs, envs, wait)
    protocol.serve(answers, facts, step, lambda: device_peak(device))


def make_agent(args: argparse.Namespace, device: str) -> Any:
    """The peer's agent for our spaces, made like in its train.py."""
    import torch
    from omegaconf import OmegaConf

    dreamer = importlib.import_module("dreamer")  # the peer's, not ours
    models = Path(args.checkout, "configs", "model")
    own = models / f"{args.size[:-1]}{args.size[-1].upper()}.yaml"
    if not own.exists() and args.size != "size1m":
        raise SystemExit(f"r2dreamer has no --size {args.size}: {own} is not there")
    size = OmegaConf.load(own) if own.exists() else OmegaConf.create(SIZE1M)
    size.pop("defaults", None)
    vector, image = ("vector", "$^") if args.obs == "proprio" else ("$^", "image")
    seen = {"mlp_keys": vector, "cnn_keys": image}
    config = OmegaConf.create({"device": device, "env": {"encoder": seen, "decoder": seen}})
    eager = {"compile": False, "rep_loss": "dreamer"}
    config.model = OmegaConf.merge(OmegaConf.load(models / "_base_.yaml"), size, eager)
    OmegaConf.resolve(config)
    shape = (64, 64, 3) if args.obs == "image" else (24,)
    obs = SimpleNamespace(spaces={"image" if args.obs == "image" else "vector": SimpleNamespace(shape=shape)})
    count = ACTIONS[args.obs]
    action = SimpleNamespace(n=count, discrete=True) if args.obs == "image" else SimpleNamespace(shape=(count,))
    autocast, dtype = dreamer.autocast, getattr(torch, args.dtype)
    dreamer.autocast = lambda device_type, **_: autocast(device_type, dtype=dtype, enabled=dtype != torch.float32)
    return dreamer.Dreamer(config.model, obs, action).to(device)


class Fixed:
    """Replaces its replay: returns the same batch each time and discards what is written back."""

    def __init__(self, agent: Any, obs: str, batch: tuple[int, int], device: str):
        self.data = make_data(obs, batch, device)
        self.initial = tuple(x.to(device) for x in agent.rssm.initial(batch[0]))

    def sample(self) -> tuple[Any, None, Any]:
        """A batch [B, T, ..] in a new dictionary, and the latents before it."""
        return self.data.copy(), None, self.initial

    def update(self, *_: Any) -> None:
        """Does nothing."""


def make_data(obs: str, batch: tuple[int, ...], device: str) -> Any:
    """Random rows [*batch, ..]: observations, previous actions, rewards, flags."""
    import torch
    from tensordict import TensorDict

    torch.manual_seed(0)
    count = ACTIONS[obs]
    if obs == "image":
        seen = {"image": torch.randint(0, 256, (*batch, 64, 64, 3), dtype=torch.uint8)}
        action = torch.nn.functional.one_hot(torch.randint(0, count, batch), count).float()
    else:
        seen, action = {"vector": torch.randn(*batch, 24)}, torch.rand(*batch, count) * 2 - 1
    flags = {name: torch.zeros(*batch, 1, dtype=torch.bool) for name in ("is_last", "is_terminal")}
    first = torch.zeros(batch, dtype=torch.bool)
    data = {**seen, "action": action, "reward": torch.randn(*batch, 1), "is_first": first, **flags}
    return TensorDict(data, batch_size=batch).to(device)


def policy_times(agent: Any, obs: str, envs: int, wait: Callable[[], Any], steps: int = 50) -> dict[str, float]:
    """Milliseconds of a policy step, median of `steps`."""
    data, state = make_data(obs, (envs,), str(agent.device)), agent.get_initial_state(envs)

    def step() -> None:
        agent.act(data.copy(), state)
        wait()

    protocol.time_steps(step, 5)
    times = sorted(protocol.time_steps(step, steps))
    return {f"policy{envs}_ms_median": round(times[steps // 2], 3), f"policy{envs}_ms_min": round(times[0], 3)}


def device_peak(device: str) -> dict[str, Any]:
    """Peak device memory allocated by torch."""
    import torch

    return {"device_peak_mb": torch.cuda.max_memory_allocated() // 2**20} if device == "cuda" else {}


def count(step: Callable[[], None]) -> int:
    """Operations of one step: matrix products and convolutions, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
