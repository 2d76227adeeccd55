"""Datasets with known contents for tests, and what is wrong with a dataset."""

from __future__ import annotations

import h5py
import numpy as np

from dreamer.data import describing
from dreamer.data.episodes import Data, Episode, Found, Reading
from dreamer.data.opening import AS_IS, open_data
from dreamer.errors import UserError
from dreamer.spaces import Action, Space, Spec

KINDS = {
    "vector": (Spec({"vector": Space((3,), "float32")}, Action((), 2)), "numbers"),
    "image": (Spec({"image": Space((8, 8, 3), "uint8")}, Action((4,))), "one choice"),
    "many": (
        Spec(
            {
                "arm/angle": Space((2,), "float64"), "arm/grip": Space((), "int64", 3),
                "depth": Space((6, 6, 1), "float32", bounds=(0.0, 1.0)), "count": Space((1,), "int32"),
            },
            Action((2, 3), 1),
        ),
        "choices and numbers",
    ),
    "masked": (Spec({"action_mask": Space((4,), "int8", 2), "x": Space((1,), "float32")}, Action((4,))), "a mask"),
}  # fmt: skip
TARGETS = ("minari:made/copy-v0", "npz:copy", "hdf5:copy.hdf5")


def values(space: Space, rng: np.random.Generator, rows: int) -> np.ndarray:
    shape = (rows, *space.shape)
    if space.classes:
        return rng.integers(space.classes, size=shape).astype(space.dtype)
    if space.bounds:
        return rng.uniform(*space.bounds, shape).astype(space.dtype)
    if np.dtype(space.dtype).kind == "f":
        return rng.normal(0, 3, shape).astype(space.dtype)
    return rng.integers(256 if space.dtype == "uint8" else 1000, size=shape).astype(space.dtype)


def made(spec: Spec, lengths=(3, 1, 5), seed: int = 0, terminal=(True, False, True)) -> list[Episode]:
    """Episodes with random contents: `lengths` steps each."""
    rng, episodes = np.random.default_rng(seed), []
    for number, (steps, ends) in enumerate(zip(lengths, terminal, strict=True)):
        rows = steps + 1
        first, last, true = np.zeros((3, rows), bool)
        first[0], last[-1], true[-1] = True, True, ends
        parts = [np.eye(n, dtype=np.float32)[rng.integers(n, size=rows)] for n in spec.action.classes]
        action = np.concatenate([*parts, rng.uniform(-1, 1, (rows, spec.action.continuous))], 1).astype(np.float32)
        action[-1] = 0
        reward = rng.normal(size=rows).astype(np.float32)
        reward[0] = 0
        obs = {key: values(space, rng, rows) for key, space in spec.obs.items()}
        episodes.append(Episode(f"episode {number}", obs, action, reward, first, last, true))
    return episodes


def held(spec: Spec, episodes: list[Episode]) -> Data:
    rows = sum(one.rows for one in episodes)
    return Data("made", "made", spec, len(episodes), rows, (), (), lambda: map(Found, episodes))


def same(one: Episode, other: Episode, atol: float = 0.0) -> None:
    assert one.obs.keys() == other.obs.keys()
    for key in one.obs:
        assert one.obs[key].dtype == other.obs[key].dtype
        np.testing.assert_array_equal(one.obs[key], other.obs[key])
    np.testing.assert_allclose(one.action, other.action, rtol=0, atol=atol)
    for left, right in zip(one[3:], other[3:], strict=True):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype


def faults(path, reading: Reading = AS_IS) -> list[str]:
    """Everything that is wrong with a dataset, as lines; what cannot be opened is one line."""
    try:
        return [str(fault) for fault in describing.describe(open_data(path, reading)).faults]
    except UserError as error:
        return [str(error)]


def rewritten(path, change):
    """Changes the arrays of an npz file in place."""
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez_compressed(path, **arrays)


def d4rl(path, **arrays) -> None:
    """A file as D4RL has it: an episode of 3 steps to a true end, one of 2 to a time limit, and 2 steps of a third.

    arrays: in place of those; None: left out
    """
    obs = np.arange(20, dtype=np.float32).reshape(10, 2)  # the observations of rows 0-3, 4-6, 7-9
    held = {
        "observations": obs[[0, 1, 2, 4, 5, 7, 8]],
        "actions": np.linspace(-0.9, 0.9, 7, dtype=np.float32)[:, None],
        "rewards": np.arange(1, 8, dtype=np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 1, 0, 0], bool),
        "next_observations": obs[[1, 2, 3, 5, 6, 8, 9]],
    }
    with h5py.File(path, "w") as file:
        for name, values in (held | arrays).items():
            if values is not None:
                file.create_dataset(name, data=values)
