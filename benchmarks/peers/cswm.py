"""Measures tkipf/c-swm (tested at e944b24) in its own interpreter; imports nothing from dreamer.

    PEER_PYTHON benchmarks/peers/cswm.py --checkout PATH --obs shapes --batch 1024 1

The model and the optimizer are those of its command for the 2D shapes: 512 hidden units, the small extractor, Adam. A
step is one batch of its train.py: the contrastive loss, its gradients, the optimizer and the loss on the host. Random
data on the device, --batch SEQUENCES 1, replace its loader. The checkout is not edited; torch uses one thread per core.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parent)
sys.path[:] = [HERE] + [p for p in sys.path if p not in (HERE, "")]
import protocol  # noqa: E402

OBJECTS, ACTIONS, PIXELS = 5, 4, 50


def main() -> None:
    """Builds, warms up, then answers requests by `protocol`."""
    args = protocol.arguments(obs=("shapes",)).parse_args()
    if args.dtype != "float32":
        raise SystemExit("c-swm is measured with --dtype float32 only")
    answers = protocol.own_stdout()
    sys.path.insert(0, args.checkout)
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model, step = make(args.batch[0])
    facts: dict[str, Any] = {
        "peer": "c-swm", "params": sum(p.numel() for p in model.parameters()), "trace_s": 0.0,
        "torch": torch.__version__, "platform": "cpu", "device": "cpu",
    }  # fmt: skip
    start = time.perf_counter()
    protocol.time_steps(step, 1)
    facts["compile_s"] = round(time.perf_counter() - start, 2)  # the time of the first step, as it is eager
    protocol.time_steps(step, args.warmup)
    protocol.serve(answers, facts, step, lambda: {})


def make(transitions: int) -> tuple[Any, Any]:
    """Returns the peer's model, and a function that makes one update with `transitions` transitions."""
    import torch

    torch.manual_seed(0)
    model = importlib.import_module("modules").ContrastiveSWM(
        embedding_dim=2, hidden_dim=512, action_dim=ACTIONS, input_dims=(3, PIXELS, PIXELS), num_objects=OBJECTS,
        sigma=0.5, hinge=1.0, ignore_action=False, copy_action=False, encoder="small",
    )  # fmt: skip
    model.apply(importlib.import_module("utils").weights_init)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    image, after = torch.rand(2, transitions, 3, PIXELS, PIXELS)
    action = torch.randint(0, OBJECTS * ACTIONS, (transitions,))

    def step() -> None:
        optimizer.zero_grad()
        loss = model.contrastive_loss(image, action, after)
        loss.backward()
        optimizer.step()
        loss.item()

    return model, step


if __name__ == "__main__":
    main()
