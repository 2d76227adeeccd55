"""The manifest of a checkpoint: JSON in, JSON out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dreamer.errors import UserError
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.files.manifest import FORMAT, Files, Manifest
from dreamer.runtime.files.sealed import Seal

WHERE = Path("run/checkpoints/96/meta/metadata")
TEXT = (
    '{"env_steps": 96, "updates": 12, "format": 3, "run": "0123456789abcdef0123456789abcdef", '
    '"rows": [["rows-000000000.dreamer", 900, 7], ["rows-000000001.dreamer", 800, 8]], '
    '"latents": [["latents-000000000096-0000.dreamer", 700, 9]], "state": ["state-000000000096.dreamer", 600, 10], '
    '"oldest": [0, 4], "rows_per_stream": 48, "metrics": [500, 11], '
    '"spec": {"obs": {}, "action": {"continuous": 1}, "agents": 1}}'
)
MANIFEST = Manifest(
    env_steps=96, updates=12, format=3,
    files=Files(
        run="0123456789abcdef0123456789abcdef",
        rows=(Seal("rows-000000000.dreamer", 900, 7), Seal("rows-000000001.dreamer", 800, 8)),
        latents=(Seal("latents-000000000096-0000.dreamer", 700, 9),),
        state=Seal("state-000000000096.dreamer", 600, 10),
        oldest=(0, 4), rows_per_stream=48,
    ),
    metrics=(500, 11), spec={"obs": {}, "action": {"continuous": 1}, "agents": 1},
)  # fmt: skip


def without(*names: str) -> dict:
    return {name: value for name, value in json.loads(TEXT).items() if name not in names}


def test_a_manifest_is_written_as_it_has_always_been():
    assert json.dumps(MANIFEST.to_json()) == TEXT


def test_a_manifest_is_read_as_it_was_written():
    assert Manifest.from_json(json.loads(TEXT), WHERE) == MANIFEST


def test_lines_of_metrics_may_have_no_checksum():
    meta = without() | {"metrics": [500, None]}
    assert Manifest.from_json(meta, WHERE).to_json() == meta


def test_a_manifest_of_the_first_format_has_neither_metrics_nor_spec():
    meta = without("metrics", "spec") | {"format": 1}
    assert Manifest.from_json(meta, WHERE).to_json() == meta


def test_a_checkpoint_that_can_only_be_evaluated_has_no_files():
    saved = Manifest.from_json({"env_steps": 96, "updates": 12}, WHERE)
    assert saved == Manifest(96, 12) and saved.files is None and saved.run is None
    assert saved.to_json() == {"env_steps": 96, "updates": 12}


def test_a_number_that_is_not_the_env_steps_is_kept():
    saved = MANIFEST._replace(number=97)
    assert saved.step == 97 and MANIFEST.step == 96
    assert Manifest.from_json(saved.to_json(), WHERE) == saved


def test_fields_of_another_version_are_left_out():
    assert Manifest.from_json(without() | {"weather": "fine"}, WHERE) == MANIFEST


@pytest.mark.parametrize(
    "name", ["env_steps", "updates", "format", "run", "rows", "latents", "oldest", "rows_per_stream"]
)
def test_a_manifest_without_a_field_that_a_run_needs_is_refused(name):
    with pytest.raises(UserError, match=f"{WHERE} was not written by this program: without '{name}' it is not what"):
        Manifest.from_json(without(name), WHERE)


@pytest.mark.parametrize("written", [1, 2, 3, FORMAT + 1])
@pytest.mark.parametrize("use", ["restore", "leaves", "manifest"])
def test_a_checkpoint_of_another_version_is_refused_in_a_line(tmp_path, written, use):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"w": np.ones(3)}, {"env_steps": 5, "updates": 1, "format": written})
        checkpoints.wait()
        with pytest.raises(UserError) as caught:
            getattr(checkpoints, use)(*([{"w": np.zeros(3)}] if use == "restore" else []))
    text = str(caught.value)
    assert f"checkpoint 5 of {tmp_path} was written by another version of dreamer, in format {written}" in text
    assert f"this one reads format {FORMAT}: use that version to resume or evaluate, or start a new run" in text
