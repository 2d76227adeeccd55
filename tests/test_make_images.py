"""The script that makes the pictures of README and documentation, and the pictures as they are committed."""

from __future__ import annotations

import pathlib
import runpy

import numpy as np
import pytest
from PIL import Image

from dreamer.config import Config, load
from dreamer.errors import UserError
from dreamer.runtime.log.open_loop import DREAMED, OBSERVED

DOCS = pathlib.Path(__file__).parent.parent / "docs"
SCRIPT = runpy.run_path(str(DOCS / "make_images.py"))
IMAGE = np.full((4, 8, 3), 7, np.uint8)


def colors(row):
    return {color for _, color in SCRIPT["frame"](IMAGE, IMAGE, row).getcolors(100_000)}


def test_the_border_changes_its_color_when_the_model_stops_seeing():
    seen = SCRIPT["SEEN"]
    assert OBSERVED in colors(seen - 1) and DREAMED not in colors(seen - 1)
    assert DREAMED in colors(seen) and OBSERVED not in colors(seen)


def test_a_run_without_returns_is_named_instead_of_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"env_steps": 1, "updates": 0, "time": 0.5}\n')
    with pytest.raises(UserError, match="has no episode/return"):
        SCRIPT["make_return"](tmp_path, tmp_path, 0)


def test_the_return_is_drawn_from_the_metrics_of_a_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"env_steps": 1, "episode/return": 3.0}\n{"env_steps": 2}\n')
    with Image.open(SCRIPT["make_return"](tmp_path, tmp_path, 0)) as image:
        assert image.size[0] > 500


def test_the_preset_of_the_animation_loads_once_its_environment_is_named():
    assert isinstance(load(DOCS / "dream.yaml", overrides={"env": "docs.cartpole:make"}), Config)


def test_the_animation_is_at_most_two_megabytes_and_goes_on_after_the_model_stops_seeing():
    path = DOCS / "images" / "dream.gif"
    with Image.open(path) as image:
        assert path.stat().st_size <= SCRIPT["LARGEST"] and image.n_frames > SCRIPT["SEEN"] + 1
