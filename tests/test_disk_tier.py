"""The disk tier: equal samples from files, creation and removal of the files, and a full disk."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from test_replay import SPEC, STORAGE, collected, fill

from dreamer.errors import UserError
from dreamer.runtime.replay import disk_tier, memory
from dreamer.runtime.replay.disk_tier import FOLDER, DiskTier, remove_left_over
from dreamer.runtime.replay.replay import Config, Replay, size_replay
from dreamer.spaces import Space

WIDE = Space((64, 64, 3), "uint8")


def build(folder, tier="disk", rows=10, **settings):
    config = Config(capacity_steps=2 * rows, batch_length=3, online=False, tier=tier, **settings)
    return Replay(SPEC, STORAGE, config, streams=2, seed=0, env_steps=10**9, run_dir=folder)


def taken(folder):
    """Returns the bytes that the files of a tier take on the disk."""
    return sum(file.stat().st_blocks * 512 for file in folder.glob(f"{FOLDER}-*/*"))


@pytest.mark.parametrize("added", [4, 10, 27])
def test_samples_are_those_of_memory(tmp_path, added):
    disk, memory = build(tmp_path), build(tmp_path, "memory")
    for replay in (disk, memory):
        fill(replay, added)
    for _ in range(5):
        (ours, rows), (theirs, other) = disk.sample(8), memory.sample(8)
        np.testing.assert_array_equal(rows.number, other.number)
        for name in SPEC.obs:
            np.testing.assert_array_equal(ours.obs[name], theirs.obs[name])
            assert ours.obs[name].dtype == theirs.obs[name].dtype and type(ours.obs[name]) is np.ndarray
    disk.close()


def test_capacity_may_exceed_the_memory(tmp_path):
    settings = {"batch_length": 3, "online": False, "capacity_gb": 3e-6}  # 3000 bytes
    held = {}
    for tier in ("memory", "disk"):
        config = Config(tier=tier, **settings)
        replay = Replay(SPEC, STORAGE, config, streams=2, seed=0, env_steps=10**9, run_dir=tmp_path)
        held[tier] = replay.size.steps
        assert replay.size.nbytes <= 3000
        fill(replay, 2 * replay.size.rows_per_stream)
        batch, rows = replay.sample(50)
        np.testing.assert_array_equal(batch.obs["id"][:, 1:, 1], rows.number)
        replay.close()
    assert held == {"memory": 2 * (3000 // (89 * 2)), "disk": 2 * (3000 // (33 * 2))}


def test_observations_alone_lie_in_files(tmp_path):
    replay = build(tmp_path)
    assert sorted(file.name for file in tmp_path.glob(f"{FOLDER}-*/*")) == ["obs-id.bin", "obs-image.bin"]
    mapped = [name for name, column in replay.columns.items() if isinstance(column.base, np.memmap)]
    assert mapped == ["obs/id", "obs/image"]
    replay.close()


def test_memory_makes_no_files(tmp_path):
    build(tmp_path, "memory").close()
    assert not list(tmp_path.iterdir())


def test_closing_removes_the_files(tmp_path):
    replay = build(tmp_path)
    fill(replay, 5)
    replay.close()
    replay.close()
    assert not list(tmp_path.iterdir())


def test_files_of_a_killed_run_are_removed_and_those_of_this_process_stay(tmp_path):
    (tmp_path / f"{FOLDER}-1-1").mkdir()
    (tmp_path / f"{FOLDER}-1-1" / "obs-old.bin").write_bytes(bytes(100))
    replay = build(tmp_path)
    remove_left_over(tmp_path)
    assert sorted(file.name for file in tmp_path.glob(f"{FOLDER}-*/*")) == ["obs-id.bin", "obs-image.bin"]
    fill(replay, 4)
    assert not replay.columns["obs/image"][:, 4:].any()
    replay.close()


def test_space_is_taken_as_rows_come(tmp_path):
    rows = 4000
    tier = DiskTier(tmp_path, {"obs/image": WIDE}, 2, rows)
    assert taken(tmp_path) < 2**20
    tier.reserve(np.array([1]), np.array([0]))
    assert 2**23 - WIDE.width <= taken(tmp_path) < 2**24
    tier.reserve(np.array([0, 1]), np.array([rows - 1, 100]))
    assert 2**23 + rows * WIDE.width - 2**14 <= taken(tmp_path) < rows * WIDE.width + 2**24
    tier.close()


def test_a_full_disk_is_an_error_before_the_row_is_written(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk_tier, "BLOCK", 48 * 5)  # five rows of the image
    replay = build(tmp_path)
    fill(replay, 5)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no space left on the disk of .*obs-.*; everything written before is kept"):
        replay.add(*collected([0, 1], [5, 5]))
    assert replay.counts.tolist() == [5, 5]
    batch, rows = replay.sample(20)
    np.testing.assert_array_equal(batch.obs["id"][:, 1:, 1], rows.number)
    monkeypatch.undo()
    fill(replay, 5)  # once there is room, it continues
    replay.close()


def test_files_that_cannot_be_made_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write .*{FOLDER}"):
        DiskTier(tmp_path / "file", {"obs/image": WIDE}, 1, 10)


def test_a_plan_makes_no_files(tmp_path):
    size_replay(SPEC, STORAGE, Config(tier="disk"), streams=2, env_steps=10**6, run_dir=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_plan_takes_the_disk_that_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_tier, "free_space", lambda path: 56 * 2000)
    monkeypatch.setattr(memory, "free_memory", lambda: 10**9)
    config = Config(tier="disk", batch_length=8)
    size = size_replay(SPEC, STORAGE, config, streams=10, env_steps=10**6, run_dir=tmp_path)
    assert size.rows_per_stream == 100 and size.bound == "half of the free disk (replay.disk_gb)"
    assert (size.row_bytes, size.disk_row_bytes) == (33, 56)


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path):
    assert disk_tier.free_space(tmp_path / "a" / "b") > 0
