"""Removal from a run directory: files of rows that no checkpoint needs, and files that a resume moved aside."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from dreamer.errors import UserError
from dreamer.runtime.files.manifest import Files, Manifest
from dreamer.runtime.files.sealed import Seal
from dreamer.runtime.run.retention import Retention
from dreamer.runtime.run.schedule import NEVER


def manifest(*rows: str) -> Manifest:
    sealed = tuple(Seal(name, 1, 2) for name in rows)
    files = Files("0" * 32, sealed, (Seal("latents-1", 1, 2),), Seal("state-1", 1, 2), (), 1)
    return Manifest(0, 0, files=files)


class Saved:
    """Replaces `Checkpoints`, with {step: manifest} on the disk; None is a damaged checkpoint."""

    def __init__(self, held: dict[int, Manifest | None]):
        self.held = held

    def steps(self) -> list[int]:
        return sorted(self.held)

    def latest(self) -> int | None:
        return max(self.held, default=None)

    def manifest(self, step: int) -> Manifest:
        found = self.held[step]
        if found is None:
            raise UserError(f"checkpoint {step} is damaged")
        return found


class Store:
    """Records the last argument of `RowStore.prune`."""

    kept: Collection[str] = ()

    def prune(self, kept: Collection[str]) -> None:
        self.kept = kept


def retention(run_dir: Path, saved: Any, store: Any, resumed_at: int = NEVER, report: Any = print) -> Retention:
    return Retention(run_dir, saved, store, resumed_at, report)


def rows(store: Store) -> set[str]:
    return {name for name in store.kept if name.startswith("rows")}


def test_rows_stay_as_long_as_a_checkpoint_on_the_disk_needs_them(tmp_path):
    saved, store = Saved({1: manifest("rows-1"), 2: manifest("rows-1", "rows-2")}), Store()
    kept = retention(tmp_path, saved, store)
    del saved.held[1]
    kept.saved(3, manifest("rows-2", "rows-3"))
    assert rows(store) == {"rows-1", "rows-2", "rows-3"}
    del saved.held[2]
    kept.saved(4, manifest("rows-3", "rows-4"))
    assert rows(store) == {"rows-3", "rows-4"}


def test_a_damaged_checkpoint_keeps_all_rows_that_are_there_and_is_named(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows-7").touch()
    store, lines = Store(), []
    retention(tmp_path, Saved({1: None}), store, report=lines.append).saved(2, manifest("rows-8"))
    assert rows(store) == {"rows-7", "rows-8"}
    assert lines == ["not used, and kept as it is: checkpoint 1 is damaged"]


@pytest.mark.parametrize(("newest", "goes"), [(40, False), (41, True)])
def test_files_moved_aside_are_removed_once_a_newer_checkpoint_is_on_the_disk(tmp_path, newest, goes):
    (tmp_path / "aside").mkdir()
    retention(tmp_path, Saved({newest: manifest("rows-1")}), Store(), resumed_at=40).remove_aside()
    assert (tmp_path / "aside").exists() is not goes
