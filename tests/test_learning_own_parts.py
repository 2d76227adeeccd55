"""The complete files of the documentation: a world model, a behavior and an encoder of one's own learn a probe."""

from __future__ import annotations

import pytest
from probe_runs import check_solved


@pytest.mark.parametrize(
    ("key", "name", "probe"),
    [
        ("agent.world_model.name", "docs.own_world_model", "both"),
        pytest.param("agent.behavior.name", "docs.own_behavior", "action", marks=pytest.mark.slow),
        pytest.param("agent.world_model.encoder", "docs.own_network:make", "both", marks=pytest.mark.slow),
    ],
)
def test_a_part_of_the_documentation_solves_a_probe(key: str, name: str, probe: str):
    check_solved(probe, (key, name))
