"""Trains agents on the probes of envs/probes.py with the whole program, each once in a session.

`dreamer train experiments/probe.yaml --env probes:NAME` does the same.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Literal

import dreamer
from dreamer.runtime.run.listening import Line
from envs.probes import PROBES

PRESET = Path(__file__).parents[1] / "experiments" / "probe.yaml"
SETTINGS: dict[str, dict] = {
    "delayed": {"env_steps": 9000},
    "action_continuous": {"env_steps": 6000},
    "both": {"env_steps": 8000},
    # Images are expensive on a CPU, so batches are smaller and more frequent. Two latent groups learn faster than 8,
    # perhaps because the prior samples groups independently, and cannot dream a random side encoded in many groups.
    "pixel": {
        "env_options": {"side": 32},
        "env_steps": 2000,
        "replay_ratio": 32,
        "replay.batch_size": 8,
        "replay.batch_length": 8,
        "agent.world_model.stoch": 2,
        "agent.world_model.kernel": 3,
    },
}
# These runs do not stop when an evaluation is solved, because tests ask for what the model and the critic predict.
WHOLE = ("constant", "observation", "counter")


@functools.cache
def trained(name: str, part: tuple[str, str] | None = None) -> Path:
    """Returns the run directory of an agent trained on the probe. part: a config key and the value that replaces it."""
    run_dir = Path(tempfile.mkdtemp()) / name
    overrides = {"env": f"probes:{name}", "run_dir": str(run_dir), "log.tensorboard": False, "env_steps": 3000}
    overrides["lockstep"] = True  # so that a failure is reproducible
    overrides["eval.every"] = 500
    overrides |= SETTINGS.get(name, {}) | dict([part] if part else [])

    def solved(line: Line) -> Literal["stop"] | None:
        return "stop" if line.values.get("eval/return", -1) >= PROBES[name].solved_return else None

    callbacks = [] if name in WHOLE else [solved]
    return dreamer.train(dreamer.load_config(PRESET, overrides=overrides), callbacks=callbacks)


def fails(name: str) -> str:
    return f"probe {name} fails ({PROBES[name].description}): look at {PROBES[name].broken}"


def check_solved(name: str, part: tuple[str, str] | None = None) -> None:
    """Fails and names the broken part unless the agent solves the probe."""
    lines = [json.loads(line) for line in (trained(name, part) / "metrics.jsonl").read_text().splitlines()]
    returned = next(line["eval/return"] for line in reversed(lines) if "eval/return" in line)
    assert returned >= PROBES[name].solved_return, fails(name)
