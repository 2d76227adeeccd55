"""The end of a run that fails or is stopped: saves what can be saved, and reports where it is."""

from __future__ import annotations

import contextlib
import functools
import traceback
from pathlib import Path

from dreamer.errors import UserError, one_line
from dreamer.runtime.files.run_dir import ERROR, folder_of
from dreamer.runtime.run import header
from dreamer.runtime.run.loop import Run
from dreamer.runtime.run.schedule import Saved
from dreamer.runtime.run.stopping import Stopped


class RunFailed(UserError):
    """Raised after a started run has failed and saved what it could. The message names the cause and error.txt."""


def failed(run: Run, error: BaseException, checkpoint: bool = True) -> BaseException:
    """Saves what can be saved of a run that failed with `error`, writes error.txt, and returns a RunFailed to raise.

    checkpoint: whether to save a checkpoint, if that is possible; False: only the rows
    If the run has lost its lock, writes nothing and returns the error of the lock.
    """
    parts = run.parts
    if parts.stopping.failure:
        return parts.stopping.failure
    rescue(run, error, checkpoint)
    path = write_error(folder_of(parts.run_dir, parts.process), error)
    parts.display.end("failed", [])
    notes = "; ".join(_notes(error))
    saved = f"checkpoint {parts.checkpoints.latest()} and all rows are saved in {parts.run_dir}"
    return RunFailed(f"{error_line(error)}; {notes or saved}; continue with --resume; details: {path}")


def interrupted(run: Run, stop: BaseException, checkpoint: bool = True) -> None:
    """Saves a run that a signal has stopped. Prints what could not be saved, if anything, and how to resume the run.

    checkpoint: as in `failed`
    """
    parts = run.parts
    rescue(run, stop, checkpoint)
    what = f"stopped at {run.steps:,} {parts.config.counted}; to continue: {header.to_go_on(parts.run_dir)}"
    parts.display.end("stopped", [*_notes(stop), what])


def rescue(run: Run, error: BaseException, checkpoint: bool = True) -> None:
    """Saves a run that ends with `error`. Saves only its rows if the train state is lost or not finite.

    Errors while saving are added to `error` as notes. Does nothing if the run has lost its lock.
    """
    parts = run.parts
    if parts.stopping.failure:
        return
    try:
        parts.checkpoints.wait()
    except UserError as second:  # the save in progress has failed, so the previous one is the newest
        error.add_note(str(second))
    if (latest := parts.checkpoints.latest()) != run.saved.step:
        run.saved = Saved(run.saved.time, latest) if latest else Saved(run.saved.time, 0, 0, 0)
    if checkpoint and _worth_saving(run):
        save = functools.partial(run.save, whole=isinstance(error, Stopped) and not run.collector_failed)
    else:
        save = functools.partial(save_rows, run)
    for keep in (save, parts.checkpoints.wait, parts.environments.report_incidents, run.log):
        try:
            keep()
        except Exception as second:
            error.add_note(error_line(second))


def save_rows(run: Run) -> None:
    """Saves only the rows. A run that resumes from the last checkpoint adds them to its replay."""
    with run.paused():
        run.parts.store.flush(run.parts.replay)
        run.parts.store.wait()


def write_error(run_dir: Path, error: BaseException) -> Path:
    """Writes an exception with its traceback and notes into the run directory. Returns the path."""
    path = run_dir / ERROR
    with contextlib.suppress(OSError):  # a full disk has no room for it either, but the line is still shown
        path.write_text("".join(traceback.format_exception(error)))
    return path


def error_line(error: BaseException) -> str:
    """Returns an exception as one line."""
    return " ".join(str(error).split()) if isinstance(error, UserError) else one_line(error)


def _notes(error: BaseException) -> list[str]:
    """Returns the notes of an exception, except for notes with several lines."""
    return [" ".join(note.split()) for note in getattr(error, "__notes__", ()) if "\n" not in note]


def _worth_saving(run: Run) -> bool:
    """Whether the train state still exists and is finite, so that it can be saved. Prints the reason if not."""
    parts = run.parts
    kept = f"checkpoint {run.saved.step:,} and all rows are kept"
    if parts.learner.lost():
        parts.writeback.close()  # drops its error, which comes from the same failed device
        parts.display.message(f"the train state was lost with the device; {kept}")
        return False
    if parts.learner.diverged():
        parts.display.message(f"the parameters are no longer finite and are not saved; {kept}")
        return False
    return True
