"""The rows of a run on the disk: immutable files written in the background while the replay grows. Imports no jax.

A rows file contains the rows of every stream since the previous file, with the latents that they have at that moment. A
killed run loses at most the rows that are not yet flushed. A checkpoint adds the latents of all rows in the replay, as
refreshed by training, so that a resumed run continues from exactly the replay that was saved. The seal of a file is its
name, size and checksum.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.files import manifest, sealed
from dreamer.runtime.files.atomic import UNFINISHED, disk_error
from dreamer.runtime.files.run_dir import ROWS
from dreamer.runtime.files.safe_files import check_inside
from dreamer.runtime.files.sealed import Seal
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.replay.spans import Span, held_latents, put_latents, put_rows, rows_since

LATENT_FILE_BYTES = 1 << 26
ROWS_FILE_BYTES = 1 << 28  # of a file written by `flush_in_parts`
_WAITING = 4  # maximum flushes that wait for the disk; beyond this, collecting waits too
_NAME = re.compile(r"(rows|latents|state|end)-(\d{1,18})(-\d{1,9})?\.dreamer", re.ASCII)


class _Written(NamedTuple):
    """A rows file: its seal, and the spans of rows that it contains."""

    seal: Seal
    spans: list[Span]


class RowStore:
    """Owns the folder with a run's rows and the thread that writes them. Use as a context manager, or call close().

    If a write fails in the thread, the next call raises the error as a UserError. Files written earlier are kept.
    """

    def __init__(self, folder: Path, run: str):
        """run: the identity of the run, which is written into every file. Creates nothing on the disk; `open` does."""
        self._folder, self.run = folder, run
        self._files: list[_Written] = []
        self._listing = threading.Lock()  # guards `_files`: the writing thread adds to it, `prune` removes
        self._number = 0
        self._flushed: np.ndarray | None = None
        self._flushing = threading.Lock()
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING)
        self._error: UserError | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Creates the folder and starts the thread. Raises UserError if the folder cannot be created."""
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise disk_error(error, self._folder) from error
        self._thread = threading.Thread(target=self._work, name="row store", daemon=True)
        self._thread.start()

    def flush_in_parts(self, replay: Replay) -> None:
        """Writes all rows since the last flush to files of about ROWS_FILE_BYTES. Waits until they are on the disk."""
        each = max(1, ROWS_FILE_BYTES // (replay.size.row_bytes + replay.size.disk_row_bytes) // len(replay.counts))
        while self.flush(replay, each):
            self.wait()

    def flush(self, replay: Replay, most: int | None = None) -> bool:
        """Passes the rows since the last flush to the writing thread. Returns before the rows are on the disk.

        most: the most rows of each stream; None: all. Returns whether there were rows. Callable from any thread.
        """
        with self._flushing:
            self._raise()
            start = np.zeros_like(replay.counts) if self._flushed is None else self._flushed
            spans, columns = rows_since(replay, start, most)
            if not spans:
                return False
            self._flushed = start.copy()
            for span in spans:
                self._flushed[span.stream] = span.stop
            path = self._folder / f"rows-{self._number:09d}.dreamer"
            head = {"run": self.run, "spans": [list(span) for span in spans]}
            self._number += 1
            self._jobs.put(lambda: self._write(path, head, columns, spans))
            return True

    def wait(self) -> None:
        """Waits until all flushed rows are on the disk. Raises UserError if they could not be written."""
        self._jobs.join()
        self._raise()

    def seals(self, oldest: np.ndarray | None = None) -> list[Seal]:
        """Returns the seals (name, size, checksum) of the rows files on the disk, oldest first. Call `wait` first.

        oldest [E]: the first needed row of each stream; None: all rows are needed. Files before the first one with a
        needed row are left out. All later files are included, because the rows of each stream must be contiguous.
        """
        first = 0
        if oldest is not None:
            needed = (i for i, file in enumerate(self._files) if any(s.stop > oldest[s.stream] for s in file.spans))
            first = next(needed, len(self._files))
        return [file.seal for file in self._files[first:]]

    def save_latents(self, replay: Replay, step: int) -> list[Seal]:
        """Writes the latents of all rows in the replay for the checkpoint `step`. Returns the seals of the files.

        The call waits until the files are on the disk.
        """
        seals: list[Seal] = []
        for number, (spans, columns) in enumerate(held_latents(replay, LATENT_FILE_BYTES)):
            head = {"run": self.run, "spans": [list(span) for span in spans]}
            seals.append(sealed.write(self._folder / f"latents-{step:012d}-{number:04d}.dreamer", head, columns))
        return seals

    def save_state(self, step: int, head: dict[str, Any], arrays: dict[str, np.ndarray]) -> Seal:
        """Writes a file with all other state on the host for the checkpoint `step`, such as that of the environments.

        head: JSON values | arrays {name: array of any shape}. Waits until the file is on the disk. Returns its seal.
        """
        return sealed.write(self._folder / f"state-{step:012d}.dreamer", {"run": self.run, **head}, arrays)

    def save_end(self, step: int, state: Sequence[Any], head: dict[str, Any]) -> None:
        """Writes a file which records that a run has ended at the checkpoint `step`. Waits until it is on the disk.

        state: the seal of the checkpoint's state file, because another checkpoint can have the same number.
        head: JSON values that replace those of the state file, because they changed in the last evaluation.
        """
        self._raise()
        sealed.write(self._folder / end_name(step), {"run": self.run, "state": list(state), **head}, {})

    def load_end(self, step: int, state: Sequence[Any]) -> dict[str, Any] | None:
        """Returns {"logger", "loop"} of the `head` given to `save_end`, or None if the run did not end there.

        step, state: see `save_end`. Raises UserError if the file is damaged.
        """
        if not (self._folder / end_name(step)).exists():
            return None
        try:
            head = self.read(end_name(step), None)[0]
        except UserError as error:
            raise UserError(f"{error}; move it away, and the run repeats its last evaluation") from error
        return {key: head[key] for key in ("logger", "loop")} if head.get("state") == list(state) else None

    def load_state(self, seal: Seal) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Returns the `head` and `arrays` given to `save_state`. seal: the seal that it returned.

        Raises UserError if the file is damaged, missing or belongs to another run.
        """
        return self.read(seal.name, seal)

    def load_rows(self, replay: Replay, rows: Sequence[Seal], latents: Iterable[Seal]) -> None:
        """Fills an empty replay with the rows and the latents of a checkpoint. rows, latents: the seals of the files.

        Raises UserError if a file is damaged, missing or of another run, or if rows between two files are missing.
        """
        for seal in rows:
            self._load(replay, seal.name, seal, fresh=False)
        for seal in latents:
            head, columns = self.read(seal.name, seal)
            spans = _spans(head, len(replay.counts), self._folder / seal.name)
            put_latents(replay, spans, columns)
        self._flushed = replay.counts.copy()

    def begin_anew(self) -> None:
        """Makes the next `flush` write all rows of the replay, to a file that is newer than all in the folder."""
        self._flushed = None
        self._number = max(map(_number, self._names("rows")), default=-1) + 1

    def load_later(self, replay: Replay) -> int:
        """Loads the rows files that are newer than the loaded ones, and adds their rows to the replay.

        Returns the number of added rows.

        Raises UserError as `load_rows` does.
        """
        before = int(replay.counts.sum())
        for path in reversed(self.later()):
            try:
                self._load(replay, path.name, None, fresh=True)
            except UserError as error:
                raise UserError(
                    f"{error}; it is newer than the checkpoint: move it and all later rows files away to resume"
                ) from error
        self._flushed = replay.counts.copy()
        return int(replay.counts.sum()) - before

    def later(self) -> list[Path]:
        """Returns the paths of the rows files that are newer than all loaded files, newest first."""
        return [self._folder / name for name in reversed(self._names("rows")) if _number(name) >= self._number]

    def path(self, name: str) -> Path:
        """Returns the path of the file with this name."""
        return self._folder / name

    def beside(self, step: int) -> list[Path]:
        """Returns the paths of the files that only the checkpoint `step` uses, including that of `save_end`."""
        names = [name for kind in ("latents", "state", "end") for name in self._names(kind)]
        return [self._folder / name for name in names if _number(name) == step]

    def stop(self, error: UserError) -> None:
        """Stops all writing: every later call raises `error`. Callable from any thread."""
        self._error = error

    def check_names(self) -> None:
        """Raises UserError if the folder is a link out of the run directory, or has a file with an unknown name."""
        check_inside(self._folder, self._folder.parent)
        for path in sorted(self._folder.iterdir() if self._folder.is_dir() else ()):
            if not path.name.endswith(UNFINISHED) and not _NAME.fullmatch(path.name):
                raise UserError(f"{path} is not a file of this run; move it away to resume")

    def remove_unfinished(self) -> None:
        """Removes the incomplete files that a killed process has left behind."""
        for path in self._folder.glob(f"*{UNFINISHED}"):
            path.unlink(missing_ok=True)

    def prune(self, kept: Collection[str]) -> None:
        """Removes the files that no checkpoint needs, except for rows files newer than all those in `kept`.

        kept: names of the files that the kept checkpoints need.
        """
        self.wait()
        numbers = [_number(name) for name in kept if name.startswith("rows-")]
        newest = max(numbers, default=-1)
        gone = {
            name
            for kind in ("rows", "latents", "state", "end")
            for name in self._names(kind)
            if name not in kept and (kind != "rows" or _number(name) <= newest)
        }
        for name in sorted(gone):
            self._remove(name)
        with self._listing:
            self._files = [file for file in self._files if file.seal.name not in gone]

    def close(self) -> None:
        """Waits until all flushed rows are written, and ends the thread. May be called again.

        Raises UserError if a write failed.
        """
        if self._thread is not None and self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        self._raise()

    def __enter__(self) -> RowStore:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except UserError as second:
            if error is None:
                raise
            error.add_note(str(second))  # the first error is the one to fix

    def _write(self, path: Path, head: dict[str, Any], columns: dict[str, np.ndarray], spans: list[Span]) -> None:
        seal = sealed.write(path, head, columns)
        with self._listing:
            self._files.append(_Written(seal, spans))

    def _load(self, replay: Replay, name: str, seal: Seal | None, fresh: bool) -> None:
        head, columns = self.read(name, seal)
        spans = _spans(head, len(replay.counts), self._folder / name)
        for span in spans:
            held = int(replay.counts[span.stream])
            # If a ring was overwritten completely between two flushes, the second file has all of its rows.
            whole = span.start > held and span.stop - span.start == replay.size.rows_per_stream
            if held and span.start != held and not whole:
                raise UserError(
                    f"{self._folder / name} starts at row {span.start} of stream {span.stream}, "
                    f"but row {held} should come next: a file before it is missing"
                )
        put_rows(replay, spans, columns, fresh)
        path = self._folder / name
        self._files.append(_Written(seal or sealed.seal_of(path), spans))
        self._number = _number(name) + 1

    def read(self, name: str, seal: Seal | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Returns the header and the arrays of a file. seal: the one that it must match; None: any.

        Raises UserError if the file is damaged, missing or belongs to another run.
        """
        path = self._folder / name
        head, arrays = sealed.read(path, seal)
        if head.get("run") != self.run:
            raise UserError(f"{path} belongs to another run")
        return head, arrays

    def _names(self, kind: str) -> list[str]:
        return sorted(path.name for path in self._folder.glob(f"{kind}-*.dreamer") if _NAME.fullmatch(path.name))

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / name).unlink()

    def _raise(self) -> None:
        if self._error is not None:
            raise UserError(str(self._error)) from self._error

    def _work(self) -> None:
        """Runs the writes in the thread. After an error it writes nothing more, so that the saved rows have no gap."""
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None:
                    job()
            except UserError as error:
                self._error = error
            except Exception as error:
                self._error = UserError(f"rows could not be written to {self._folder}: {type(error).__name__}: {error}")
                self._error.__cause__ = error
            finally:
                self._jobs.task_done()
        self._jobs.task_done()


def later_rows(run_dir: Path, step: int, files: manifest.Files) -> tuple[int, list[str]]:
    """Returns the number of rows in files newer than the checkpoint `step`, and what is wrong with these files.

    files: the files of the checkpoint. Also checks the file of `save_end`. Only reads.
    """
    folder, count, faults = run_dir / ROWS, 0, []
    newest = max((_number(seal.name) for seal in files.rows), default=-1)
    for path in sorted(folder.glob("rows-*.dreamer")):
        if not _NAME.fullmatch(path.name) or _number(path.name) <= newest:
            continue
        try:
            head, _ = sealed.read(path)
            count += sum(span.stop - span.start for span in _spans(head, len(files.oldest), path))
            if head.get("run") != files.run:
                faults.append(f"{path} belongs to another run")
        except UserError as error:
            faults.append(f"{error}; it is newer than the checkpoint: move it and all later rows files away")
    end = folder / end_name(step)
    if end.exists():
        try:
            sealed.read(end)
        except UserError as error:
            faults.append(str(error))
    return count, faults


def end_name(step: int) -> str:
    """Returns the name of the file that records that a run has ended at `step`."""
    return f"end-{step:012d}.dreamer"


def _spans(head: dict[str, Any], streams: int, path: Path) -> list[Span]:
    return [Span(*span) for span in manifest.spans(head.get("spans"), streams, path)]


def _number(name: str) -> int:
    """Returns the number in a file name: 12 for "rows-000000012.dreamer" and "latents-000000000012-0001.dreamer"."""
    match = _NAME.fullmatch(name)
    assert match, name
    return int(match[2])
