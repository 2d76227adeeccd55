"""Removes files from a run directory: rows that no checkpoint needs, and files that a resume moved aside."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from dreamer.errors import UserError
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.files.manifest import Manifest, files_of
from dreamer.runtime.files.run_dir import ASIDE, HOSTS, ROWS, folder_of
from dreamer.runtime.replay.store import RowStore, end_name


def row_files(step: int, manifest: Manifest, process: int = 0) -> set[str]:
    """Returns the names of the files that a checkpoint needs in the folder of rows: rows, latents, state and end.

    process: the one whose folder it is, if several train together. Raises UserError if the manifest names no files.
    """
    files_of(manifest, f"checkpoint {step}")
    seals = manifest.hosts[process].seals if process < len(manifest.hosts) else ()
    return {seal.name for seal in seals} | {end_name(step)}


class Retention:
    """Removes the files of a run directory that no checkpoint needs."""

    def __init__(
        self, run_dir: Path, checkpoints: Checkpoints, store: RowStore, resumed_at: int, report: Callable[[str], None],
        process: int = 0, processes: int = 1,
    ):  # fmt: skip
        """resumed_at: the step of the checkpoint that the run resumes from; negative: there is none.

        report: called with a line to print about each checkpoint that is too damaged to use.
        process, processes: the number of this process and of all, if several train together; `store` is its own.
        Process 0 also removes the files of processes that the run had before, and has no longer.
        """
        self._run_dir, self._checkpoints, self._store, self._report = run_dir, checkpoints, store, report
        self._process, self._processes = process, processes
        self._needed = {step: self._row_files_on_disk(step) for step in checkpoints.steps()}
        self._aside, self._resumed_at = resumed_at >= 0, resumed_at

    def saved(self, step: int, manifest: Manifest, steps: Collection[int] | None = None) -> None:
        """Removes the files in the folder of rows that no checkpoint needs. Call it after each save.

        step, manifest: of the checkpoint just saved. Its train state may still be on the way to the disk.
        steps: the numbers of the checkpoints on the disk; None: looks there
        """
        self._needed[step] = {one: row_files(step, manifest, one) for one in self._folders()}
        kept = {*(self._checkpoints.steps() if steps is None else steps), step}
        self._needed = {one: names for one, names in self._needed.items() if one in kept}
        for process in self._folders():
            needed = set().union(*(names.get(process, ()) for names in self._needed.values()))
            if process == self._process:
                self._store.prune(needed)
            else:
                self._remove_left(folder_of(self._run_dir, process), needed)

    def remove_aside(self) -> None:
        """Removes the files that a resume moved aside, if a checkpoint newer than the resumed one is on the disk."""
        if self._aside and (self._checkpoints.latest() or 0) > self._resumed_at:
            shutil.rmtree(folder_of(self._run_dir, self._process) / ASIDE, ignore_errors=True)
            self._aside = False

    def _folders(self) -> list[int]:
        """Returns the number of this process, and in process 0 those of processes that the run has no longer."""
        if self._process:
            return [self._process]
        found = (int(path.name) for path in (self._run_dir / HOSTS).glob("*") if path.name.isdecimal())
        return [0, *(one for one in sorted(found) if one >= self._processes)]

    def _remove_left(self, folder: Path, needed: Collection[str]) -> None:
        """Removes the files of a process that the run no longer has, except for those in `needed`."""
        shutil.rmtree(folder / ASIDE, ignore_errors=True)
        for path in (folder / ROWS).glob("*"):
            if path.name not in needed:
                path.unlink(missing_ok=True)

    def _row_files_on_disk(self, step: int) -> dict[int, set[str]]:
        """Returns `row_files` of the checkpoint `step` by process, or all files if that checkpoint is damaged."""
        try:
            manifest = self._checkpoints.manifest(step)
            return {process: row_files(step, manifest, process) for process in self._folders()}
        except UserError as error:
            self._report(f"not used, and kept as it is: {error}")
            folders = {process: folder_of(self._run_dir, process) / ROWS for process in self._folders()}
            return {process: {path.name for path in folder.glob("*")} for process, folder in folders.items()}
