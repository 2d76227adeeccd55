"""A sealed file returns what was written, or raises an error with the file and the fault."""

from __future__ import annotations

import errno

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamer.errors import UserError
from dreamer.runtime.files import atomic, sealed

HEAD = {"run": "a", "spans": [[0, 3, 9]]}
ARRAYS = {
    "obs/image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "reward": np.float32([1.5, -0.0]),
    "is_first": np.array([True, False]),
    "latent/deter": np.arange(4).astype(ml_dtypes.bfloat16).reshape(2, 2),
    "nothing": np.zeros((0, 3), np.int64),
    "scalar": np.float64(3),
}


@pytest.fixture
def file(tmp_path):
    seal = sealed.write(tmp_path / "rows", HEAD, ARRAYS)
    return tmp_path / "rows", seal


def test_head_and_arrays_come_back_bit_for_bit(file):
    head, arrays = sealed.read(*file)
    assert head == HEAD and list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == np.shape(array)
        assert arrays[name].tobytes() == array.tobytes()


def test_the_seal_can_be_taken_again_from_the_file(file):
    assert sealed.seal_of(file[0]) == file[1]


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(tmp_path_factory, where, bit):
    path = tmp_path_factory.mktemp("flipped") / "rows"
    seal = sealed.write(path, HEAD, ARRAYS)
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    path.write_bytes(data)
    for known in (seal, None):
        with pytest.raises(UserError, match=str(path)):
            sealed.read(path, known)


@given(where=st.floats(0, 1, exclude_max=True))
def test_every_cut_is_found(tmp_path_factory, where):
    path = tmp_path_factory.mktemp("cut") / "rows"
    seal = sealed.write(path, HEAD, ARRAYS)
    path.write_bytes(path.read_bytes()[: int(where * seal.nbytes)])
    for known in (seal, None):
        with pytest.raises(UserError, match=str(path)):
            sealed.read(path, known)


def test_a_longer_file_is_found(file):
    path, seal = file
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UserError, match="too long"):
        sealed.read(path, seal)


def test_another_sealed_file_in_its_place_is_found(file):
    path, seal = file
    sealed.write(path, HEAD, {**ARRAYS, "reward": np.float32([2, 2])})
    with pytest.raises(UserError, match="is not the file that this run wrote"):
        sealed.read(path, seal)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="rows is missing"):
        sealed.read(tmp_path / "rows")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        sealed.write(tmp_path / "rows", HEAD, ARRAYS)
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_its_name_only_once_it_is_on_the_disk(tmp_path, monkeypatch):
    seen = []
    synced = atomic.os.fsync
    monkeypatch.setattr(atomic.os, "fsync", lambda fd: (seen.append([p.name for p in tmp_path.iterdir()]), synced(fd)))
    sealed.write(tmp_path / "rows", HEAD, ARRAYS)
    assert seen == [["rows.unfinished"], ["rows"]]
