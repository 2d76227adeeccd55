"""Rows on the disk: no flushed row is lost or repeated, wrong files are named, and old files are removed."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_replay import SPEC, STORAGE, build, collected, fill

from dreamer.errors import UserError
from dreamer.runtime.replay import spans as replay_state
from dreamer.runtime.replay import store as stores
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.replay.store import RowStore
from dreamer.steps import Rows


def saved(folder: Path, replay: Replay, store: RowStore) -> dict:
    """Returns the manifest of a checkpoint of the replay."""
    store.flush(replay)
    store.wait()
    latents = store.save_latents(replay, replay.steps)
    return {"rows": store.seals(), "latents": latents, "state": replay_state.state(replay)}


def opened(folder: Path, run: str = "run") -> RowStore:
    """Returns a store opened for writing."""
    store = RowStore(folder, run)
    store.open()
    return store


def loaded(folder: Path, manifest: dict, run="run", **form) -> tuple[Replay, RowStore]:
    replay, store = build(**form), opened(folder, run)
    store.load_rows(replay, manifest["rows"], manifest["latents"])
    replay_state.load(replay, *manifest["state"])
    return replay, store


def same(a: Replay, b: Replay) -> bool:
    held = [np.arange(max(0, n - a.size.rows_per_stream), n) % a.size.rows_per_stream for n in a.counts]
    return (
        np.array_equal(a.counts, b.counts) and list(a.queue) == list(b.queue)
        and a.rng.bit_generator.state == b.rng.bit_generator.state
        and all(np.array_equal(array, b.sampler.state()[name]) for name, array in a.sampler.state().items())
        and all(
            a.columns[name][env, slots].tobytes() == b.columns[name][env, slots].tobytes()
            for name in a.columns for env, slots in enumerate(held)
        )
    )  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(flushes=st.lists(st.integers(0, 13), min_size=1, max_size=6), rows=st.integers(4, 12))
def test_flushed_rows_are_restored_bit_for_bit_from_any_division_into_files(tmp_path_factory, flushes, rows):
    folder = tmp_path_factory.mktemp("rows")
    form = dict(envs=2, rows=rows, length=3, online=True, priority=0.5, uniform=0.5)
    replay = build(**form)
    with opened(folder) as store:
        for number in flushes:
            fill(replay, number)
            store.flush(replay)
        manifest = saved(folder, replay, store)
    back, store = loaded(folder, manifest, **form)
    with store:
        assert same(replay, back)


def test_refreshed_latents_come_back_as_they_were_at_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "LATENT_FILE_BYTES", 64)
    replay = build()
    with opened(tmp_path) as store:
        fill(replay, 8)
        store.flush(replay)
        _, rows = replay.sample(4)
        latent = {k: np.ones((4, 3, *s.shape), replay.columns[f"latent/{k}"].dtype) for k, s in STORAGE.items()}
        replay.refresh(rows, latent)
        manifest = saved(tmp_path, replay, store)
    assert len(manifest["latents"]) > 2
    back, store = loaded(tmp_path, manifest)
    with store:
        assert same(replay, back) and (back.columns["latent/deter"] == 1).any()


def test_rows_flushed_after_the_checkpoint_can_be_kept(tmp_path):
    form = dict(online=True, priority=0.5, uniform=0.5)
    replay = build(**form)
    with opened(tmp_path) as store:
        fill(replay, 5)
        manifest = saved(tmp_path, replay, store)
        fill(replay, 4)
        store.flush(replay)
    back, store = loaded(tmp_path, manifest, **form)
    with store:
        assert store.load_later(back) == 8 and same(replay, back)
        fill(replay, 3)
        fill(back, 3)
        manifest = saved(tmp_path, back, store)
    again, store = loaded(tmp_path, manifest, **form)
    with store:
        assert same(replay, again)


def test_rows_files_after_the_checkpoint_are_listed_newest_first(tmp_path):
    replay = build()
    with opened(tmp_path) as store:
        fill(replay, 5)
        manifest = saved(tmp_path, replay, store)
        for _ in range(2):
            fill(replay, 4)
            store.flush(replay)
    _, store = loaded(tmp_path, manifest)
    with store:
        assert [path.name for path in store.later()] == ["rows-000000002.dreamer", "rows-000000001.dreamer"]


def test_files_go_when_no_kept_checkpoint_names_them_and_the_one_kept_comes_back(tmp_path):
    replay = build(rows=6)
    with opened(tmp_path) as store:
        for _ in range(10):
            fill(replay, 2)
            store.flush(replay)
        store.save_latents(replay, 30)
        manifest = saved(tmp_path, replay, store)
        manifest["rows"] = store.seals(replay.counts - 6)
        names = {seal.name for seal in [*manifest["rows"], *manifest["latents"]]}
        fill(replay, 2)
        store.flush(replay)
        store.prune(names)
        assert len(manifest["rows"]) == 3
    assert {path.name for path in tmp_path.iterdir()} == names | {"rows-000000010.dreamer"}
    back, store = loaded(tmp_path, manifest, rows=6)
    with store:
        assert store.load_later(back) == 4 and np.array_equal(back.counts, replay.counts)


def test_rows_of_environments_that_run_at_different_speeds_come_back_without_a_gap(tmp_path):
    """A file that only the slow environment needs is followed by files with rows of the fast one only."""
    replay = build(rows=6)
    with opened(tmp_path) as store:
        fill(replay, 1)
        store.flush(replay)
        for _ in range(9):
            step, latent = collected([1], replay.counts[1:2])
            replay.add(step, latent, np.array([1]))
            store.flush(replay)
        manifest = saved(tmp_path, replay, store)
        manifest["rows"] = store.seals(replay_state.oldest(replay))
        store.prune({seal.name for seal in [*manifest["rows"], *manifest["latents"]]})
    back, store = loaded(tmp_path, manifest, rows=6)
    with store:
        assert same(replay, back)


def test_a_missing_file_between_others_is_named(tmp_path):
    replay = build()
    with opened(tmp_path) as store:
        manifest = saved(tmp_path, replay, store)
        for _ in range(3):
            fill(replay, 2)
            store.flush(replay)
    (tmp_path / "rows-000000001.dreamer").unlink()
    back, store = loaded(tmp_path, manifest)
    with store, pytest.raises(UserError, match=r"rows-000000002\.dreamer starts at row 4 of stream 0, but row 2"):
        store.load_later(back)


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_file_of_a_manifest_is_named_and_not_replaced_by_another(tmp_path, damage):
    replay = build()
    with opened(tmp_path) as store:
        fill(replay, 5)
        manifest = saved(tmp_path, replay, store)
    path = tmp_path / manifest["rows"][0].name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-9])
    with pytest.raises(UserError, match=path.name):
        loaded(tmp_path, manifest)


def test_the_file_of_another_run_is_named(tmp_path):
    replay = build()
    with opened(tmp_path, "another") as store:
        fill(replay, 5)
        manifest = saved(tmp_path, replay, store)
    with pytest.raises(UserError, match=r"rows-000000000\.dreamer belongs to another run"):
        loaded(tmp_path, manifest)


def test_half_written_files_are_removed_and_strangers_are_named(tmp_path):
    with opened(tmp_path) as store:
        (tmp_path / "rows-000000000.dreamer.unfinished").write_bytes(b"half")
        store.check_names()
        store.remove_unfinished()
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match=r"notes\.txt is not a file of this run"):
            store.check_names()


def test_a_full_disk_ends_the_run_and_keeps_what_was_written(tmp_path, monkeypatch):
    replay, store = build(), opened(tmp_path)
    fill(replay, 2)
    store.flush(replay)
    store.wait()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(stores.sealed.os, "fsync", full)
    fill(replay, 2)
    store.flush(replay)
    with pytest.raises(UserError, match="no space left"):
        store.wait()
    with pytest.raises(UserError, match="no space left"):
        store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["rows-000000000.dreamer"]


def test_rows_of_another_form_are_refused_by_their_column(tmp_path):
    replay = build()
    step, latent = collected([0, 1], [0, 0])
    replay.add(step, latent)
    spans, columns = replay_state.rows_since(replay, np.zeros(2, int))
    columns["action"] = columns["action"][:, :1]
    with pytest.raises(UserError, match="'action' must be float32"):
        replay_state.put_rows(build(), spans, columns, fresh=False)


def test_a_replay_that_came_back_draws_the_same_batches(tmp_path):
    replay = build(online=True)
    with opened(tmp_path) as store:
        fill(replay, 9)
        replay.sample(3)
        manifest = saved(tmp_path, replay, store)
    back, store = loaded(tmp_path, manifest, online=True)
    with store:
        for _ in range(3):
            (a, rows_a), (b, rows_b) = replay.sample(3), back.sample(3)
            assert isinstance(rows_a, Rows) and np.array_equal(rows_a.number, rows_b.number)
            assert all(np.array_equal(a.obs[key], b.obs[key]) for key in SPEC.obs)
