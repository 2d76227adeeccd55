"""`dreamer verify RUN`: reads the files that a run needs and compares them with their checksums. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreamer.errors import UserError
from dreamer.runtime.files import checkpoint_files, lock
from dreamer.runtime.files.atomic import disk_error
from dreamer.runtime.files.run_dir import ASIDE, CONFIG, ERROR, METRICS, existing_run_dir
from dreamer.runtime.replay.store import later_rows
from dreamer.runtime.run import run_config, verifying


class Checked(NamedTuple):
    """The result of checking one checkpoint.

    step: the number of the checkpoint | faults: one line for each fault; empty: the checkpoint is whole
    resumable: whether the checkpoint names the replay rows that a resumed run needs
    """

    step: int
    faults: list[str]
    resumable: bool


class Report(NamedTuple):
    """The results of `verify`.

    faults: one line for each damaged file outside the checkpoints | notes: other facts worth knowing
    later: the number of replay rows on the disk that are newer than the newest whole checkpoint
    """

    run_dir: Path
    checkpoints: list[Checked]
    faults: list[str]
    notes: list[str]
    later: int

    @property
    def whole(self) -> bool:
        """Whether nothing is damaged."""
        return not self.faults and not any(one.faults for one in self.checkpoints)

    @property
    def newest_whole(self) -> int | None:
        """The number of the newest checkpoint that is undamaged and can be resumed; None: there is none."""
        return max((one.step for one in self.checkpoints if not one.faults and one.resumable), default=None)


def verify_run(run: str, json_file: str | None = None) -> int:
    """Runs `dreamer verify`: prints what is damaged, and advice. Returns the exit code: 1 if something is damaged.

    json_file: also write the report as JSON to this file; "-": print the JSON instead of the lines.
    Raises UserError when there is no run.
    """
    report = verify(Path(run))
    if json_file == "-":
        print(as_json(report))
    else:
        for line in lines(report):
            print(line)
    if json_file and json_file != "-":
        path = Path(json_file).expanduser()
        try:
            path.write_text(as_json(report) + "\n")
        except OSError as error:
            raise disk_error(error, path) from error
    return 0 if report.whole else 1


def verify(run: Path, deep: bool = True) -> Report:
    """Looks for damage in all files that a run needs. Raises UserError if there is no run.

    deep: whether to read the arrays of the checkpoints, too, and compare them with their checksums
    """
    run_dir = existing_run_dir(run)
    notes: list[str] = []
    faults: list[str] = []
    own = None
    try:
        own = run_config.read(run_dir)
    except UserError as error:
        faults.append(str(error))
    checked = []
    for step in checkpoint_files.steps(run_dir):
        found = verifying.checkpoint_faults(run_dir, step)
        resumable = False
        if not found:
            manifest = checkpoint_files.read_manifest(run_dir, step)
            resumable = manifest.files is not None
            try:
                if own:
                    run_config.check_same_run(own, manifest, step)
            except UserError as error:
                found = [str(error)]
            found = found or (_arrays(run_dir, step) if deep else [])
        checked.append(Checked(step, found, resumable))
    report = Report(run_dir, checked, faults, notes, 0)
    if fault := verifying.newest_metrics_fault(run_dir):
        faults.append(f"{fault}; move it away to continue without these lines")
    newest = report.newest_whole
    later = 0
    files = None if newest is None else checkpoint_files.read_manifest(run_dir, newest).files
    if newest is not None and files is not None:
        later, damaged = later_rows(run_dir, newest, files)
        faults += damaged
    notes += _notes(run_dir, checked)
    return report._replace(later=later)


def lines(report: Report) -> Iterator[str]:
    """Yields the lines that `dreamer verify` prints for a report."""
    for one in report.checkpoints:
        what = "whole" if one.resumable else "whole, can be evaluated but not resumed"
        yield f"checkpoint {one.step:>12,}  {what if not one.faults else 'DAMAGED'}"
        yield from (f"    {fault}" for fault in one.faults)
    yield from (f"DAMAGED  {fault}" for fault in report.faults)
    yield from (f"note     {note}" for note in report.notes)
    yield "everything that matters is whole" if report.whole else "not whole"
    yield from advice(report)


def advice(report: Report) -> Iterator[str]:
    """Yields lines of advice: how the run can be resumed, and what would be lost."""
    newest = report.newest_whole
    resume = f"dreamer train --run-dir {report.run_dir} --resume"
    if newest is None:
        yield "no checkpoint can be resumed" + ("; there is none" if not report.checkpoints else "")
        return
    if any(f"{CONFIG} " in fault for fault in report.faults):
        yield f"put {report.run_dir / CONFIG} back as it was; then: {resume}"
        return
    lost = [one.step for one in report.checkpoints if one.step > newest]
    if lost:
        yield f"continue from checkpoint {newest:,}: {resume}-from {newest}"
        yield f"    the weights of the checkpoints {checkpoint_files.listed(lost)} would be lost"
    else:
        yield f"continue from checkpoint {newest:,}: {resume}"
    if report.later:
        yield f"    {report.later:,} rows are newer: they are kept, but in lockstep they are collected again"


def as_json(report: Report) -> str:
    """Returns the report as the text of a JSON object."""
    values: dict[str, Any] = {
        "run": str(report.run_dir), "whole": report.whole, "newest_whole": report.newest_whole, "later": report.later,
        "checkpoints": [one._asdict() for one in report.checkpoints], "faults": report.faults, "notes": report.notes,
        "advice": list(advice(report)),
    }  # fmt: skip
    return json.dumps(values, indent=1)


def _arrays(run_dir: Path, step: int) -> list[str]:
    """Reads the arrays of a checkpoint. Returns the error of Orbax or of a wrong checksum in a list; [] if none."""
    from dreamer.runtime.files.checkpoint import Checkpoints

    try:
        with Checkpoints(run_dir) as checkpoints:
            checkpoints.leaves(step)
    except UserError as error:
        return [str(error)]
    return []


def _notes(run_dir: Path, checked: Sequence[Checked]) -> list[str]:
    notes = []
    held = lock.look(run_dir)
    if held:
        state = "stale, the next run replaces it" if held.stale else f"last heartbeat {held.age:.0f} s ago"
        notes.append(f"locked by {held.card}: {state}")
    if not checked:
        notes.append("no checkpoint yet")
    if not (run_dir / METRICS).exists():
        notes.append(f"no {METRICS}")
    if (run_dir / ASIDE).exists():
        notes.append(f"{run_dir / ASIDE} holds files that a resume has set aside; the next checkpoint removes them")
    if (run_dir / ERROR).exists():
        notes.append(f"the last process of this run ended with an error: {run_dir / ERROR}")
    return notes
