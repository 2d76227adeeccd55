"""The complete files of the documentation: a world model, a behavior and an encoder of one's own learn a probe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dreamer
from envs.probes import PROBES


@pytest.mark.parametrize(
    ("key", "name", "probe"),
    [
        ("agent.world_model.name", "docs.own_world_model", "both"),
        ("agent.behavior.name", "docs.own_behavior", "action"),
        ("agent.world_model.encoder", "docs.own_network:make", "both"),
    ],
)
def test_a_part_of_the_documentation_solves_a_probe(key: str, name: str, probe: str, tmp_path: Path):
    overrides = {key: name, "env": f"probes:{probe}", "lockstep": True, "run_dir": str(tmp_path / "run")}
    run_dir = dreamer.train(dreamer.load_config("probe", overrides={**overrides, "log.tensorboard": False}))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    returned = next(line["eval/return"] for line in reversed(lines) if "eval/return" in line)
    assert returned >= PROBES[probe].solved_return
