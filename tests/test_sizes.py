"""The size presets have exactly the parameter counts of the reference."""

from __future__ import annotations

import math
import pathlib

import jax
import pytest

from dreamer import agent, config
from dreamer.spaces import Action, Space, Spec

PRESETS = pathlib.Path(__file__).parent.parent / "experiments"
ATARI = Action((18,))
SPECS = {
    "image64": Spec({"image": Space((64, 64, 3), "uint8")}, ATARI),
    "image96": Spec({"image": Space((96, 96, 1), "uint8")}, ATARI),
    "proprio": Spec({"vector": Space((24,), "float32")}, Action(continuous=6)),
}
# Trainable parameters for each input kind, in the order of SPECS.
COUNTS = {
    "size1m": (688_004, 769_762, 640_867),
    "size12m": (10_498_772, 11_808_850, 9_738_019),
    "size25m": (23_496_244, 26_444_402, 21_782_947),
    "size50m": (41_659_284, 46_900_882, 38_612_003),
    "size100m": (93_482_068, 105_276_626, 86_622_499),
    "size200m": (165_967_124, 186_936_082, 153_769_507),
    "size400m": (372_924_052, 420_106_130, 345_473_059),
}
PARTS = {  # of size200m with 64x64x3 images and 18 actions
    "enc": 3_492_864, "dyn": 95_496_192, "dec": 20_282_115, "rew": 10_749_183, "con": 10_488_833,
    "pol": 12_607_506, "val": 12_850_431,
}  # fmt: skip


def parameters(size: str, kind: str):
    """Returns the shapes of the trainable parameters without allocating them."""
    made = agent.make(config.load(PRESETS / f"{size}.yaml").agent, SPECS[kind])
    return jax.eval_shape(made.init, jax.random.key(0)).params


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_count(size):
    assert tuple(count(parameters(size, kind)) for kind in SPECS) == COUNTS[size]


def test_parameter_count_of_each_part():
    params = parameters("size200m", "image64")
    assert {name: count(tree) for part in params.values() for name, tree in part.items()} == PARTS
