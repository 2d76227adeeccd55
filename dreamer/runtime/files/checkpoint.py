"""Checkpoints of a run: saved in the background, and restored bit for bit or refused with a reason.

A checkpoint is one Orbax step with two items: `state`, the pytree as a flat {leaf name: array}, and `meta`, a JSON
file with the crc32 of every leaf and the caller's values.
The state is flat because Orbax restores NamedTuples as dicts or lists and drops empty ones. `restore` takes the
structure of the tree from its argument `like`. So it can compare a checkpoint of another config leaf by leaf.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from dreamer.errors import UserError
from dreamer.fields import at_least
from dreamer.runtime.files import checkpoint_files, checksums
from dreamer.runtime.files.atomic import disk_error
from dreamer.runtime.files.checkpoint_files import seal
from dreamer.runtime.files.leaves import crc_of, differences, from_stored, named_leaves, to_storable, to_target
from dreamer.runtime.files.manifest import Manifest
from dreamer.runtime.files.run_dir import CHECKPOINTS

SHOWN_DIFFERENCES = 3
UNFINISHED = ".orbax-checkpoint-tmp"  # suffix of a step that Orbax has not committed
FILES_OF_A_SAVE = 64  # more than Orbax creates
BEST_PACKED = 1000  # maximum bytes of arrays for each byte of a file
LEAST_BOUND = 1 << 30  # bytes of arrays that are always accepted, for files of any size
PRUNED = "pruned"  # a step is moved into this folder in one operation before its files are deleted


@dataclasses.dataclass(frozen=True)
class Config:
    """How often the train state is saved, and how many checkpoints are kept."""

    every: Annotated[float, at_least(0)] = 300.0
    """Seconds between two checkpoints. They come earlier if rows are added so fast that their files would outgrow the
    replay. The last state of a run is always saved."""
    keep: Annotated[int, at_least(1)] = 2
    """Number of checkpoints to keep. Older ones are deleted once a newer one is on the disk."""
    keep_every: Annotated[int, at_least(0)] = 0
    """Agent steps between older checkpoints that are kept as well, with all rows and latents needed to resume from
    them; 0 = none."""


class Checkpoints:
    """The checkpoints of one run directory. Use as a context manager, or call close().

    `save` returns before the file is complete; the next call raises an error of the background write.
    The first save creates the folder, so a finished run can be read from a read-only disk.
    """

    def __init__(self, run_dir: str | Path, keep: int = 2, keep_every: int = 0):
        """keep: the number of newest checkpoints to keep.

        keep_every: the minimum number of env_steps between older checkpoints that are kept too; 0: none is kept.
        """
        self._dir = (Path(run_dir) / CHECKPOINTS).absolute()
        self._keep, self._keep_every = keep, keep_every
        self._manager: ocp.CheckpointManager | None = None
        self._quiet = _Quiet()
        self._failed = False

    def save(self, step: int, state: Any, meta: Mapping[str, Any] | None = None) -> None:
        """Saves a pytree of arrays, Python numbers and typed PRNG keys as checkpoint `step` (env_steps).

        The state may be donated as soon as this returns. A step that is already stored is left unchanged. With several
        processes only one of them saves, from a local copy of the state (`placement.local_copy`); `restore` then
        returns numpy arrays.
        meta: JSON values. Raises UserError if the disk is full (older checkpoints are kept) or if `step` is older than
        the latest checkpoint. Raises TypeError if meta is not JSON.
        """
        meta = json.loads(json.dumps(dict(meta or {})))
        leaves = {name: to_storable(name, leaf) for name, leaf in named_leaves(state).items()}
        sealed = seal({"meta": meta, "leaf_crc32": {name: crc_of(leaf) for name, leaf in leaves.items()}})
        self.wait()
        latest = self.latest()
        if latest == step:
            return
        if latest is not None and latest > step:
            raise UserError(
                f"cannot save checkpoint {step} in {self._dir}: the newer checkpoint {latest} exists; delete it first"
            )
        with self._writing():
            _check_room(self._dir, sum(leaf.nbytes for leaf in leaves.values()))
            if self._manager is None:
                self._manager = self._open_for_writing()
            items = ocp.args.Composite(state=checksums.SealedSave(leaves), meta=ocp.args.JsonSave(sealed))
            if not self._manager.save(step, args=items):
                raise RuntimeError(f"orbax did not save checkpoint {step} in {self._dir}")

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Returns the stored (state, meta) of a checkpoint.

        step: the number of the checkpoint; None: the newest.
        like: pytree of arrays, jax.ShapeDtypeStruct or Python numbers. It sets the types of the containers and the
        places of the leaves. A leaf with a device or sharding goes there, a numpy leaf stays numpy, and any other leaf
        goes to the first device.
        Raises UserError if there is no such checkpoint, if it cannot be read, or if a name, shape or dtype of its
        leaves differs from `like`. Never restores only a part.
        """
        self.wait()
        step = self._existing(step)
        wanted = named_leaves(like)
        targets = {name: to_target(leaf) for name, leaf in wanted.items()}
        checkpoint_files.check_state(self._dir.parent, step)
        with self._reading(step) as manager:
            stored = manager.item_metadata(step)["state"]
            different = differences({k: (tuple(v.shape), v.dtype) for k, v in stored.tree.items()}, targets)
            if not different:
                out = manager.restore(step, args=ocp.args.Composite(state=checksums.SealedRestore(targets)))
        if different:
            more = len(different) - SHOWN_DIFFERENCES
            text = "; ".join(different[:SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
            raise UserError(f"checkpoint {step} in {self._dir} is of another config: {text}")
        meta, crcs = self._unsealed(step)
        self._check_leaves(step, out["state"], crcs)
        leaves = [from_stored(out["state"][name], leaf) for name, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), meta

    def leaves(self, step: int | None = None) -> dict[str, np.ndarray]:
        """Returns all leaves {"params/world_model/..": [..]} of a checkpoint, as numpy arrays.

        step: the number of the checkpoint; None: the newest.
        Raises UserError if there is no such checkpoint or if it cannot be read.
        """
        self.wait()
        step = self._existing(step)
        checkpoint_files.check_state(self._dir.parent, step)
        with self._reading(step) as manager:
            stored = manager.item_metadata(step)["state"]
            self._check_forms(step, stored.tree)
            forms = {name: np.empty(form.shape, form.dtype) for name, form in stored.tree.items()}
            out = manager.restore(step, args=ocp.args.Composite(state=checksums.SealedRestore(forms)))
        self._check_leaves(step, out["state"], self._unsealed(step)[1])
        return {name: np.asarray(leaf) for name, leaf in out["state"].items()}

    def manifest(self, step: int | None = None) -> Manifest:
        """Returns the manifest of a checkpoint. Raises UserError if the manifest is unreadable or invalid.

        step: the number of the checkpoint; None: the newest.
        """
        self.wait()
        return checkpoint_files.read_manifest(self._dir.parent, self._existing(step))

    def latest(self) -> int | None:
        """Returns the number of the newest complete checkpoint, or None if there is none."""
        steps = self.steps()
        return steps[-1] if steps else None

    def steps(self) -> list[int]:
        """Returns the numbers of all complete checkpoints, oldest first. A save in progress is not included."""
        return checkpoint_files.steps(self._dir.parent)

    def wait(self) -> None:
        """Waits for the save in progress. Raises UserError if it could not be written."""
        if self._manager is not None:
            with self._writing():
                self._manager.wait_until_finished()
                self._delete_pruned()
            _give_back_memory()

    def close(self) -> None:
        """Waits for the save in progress and ends Orbax's threads. Raises as `wait` does. May be called again."""
        self.wait()
        self._drop_manager()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except UserError as error:
            if exc is None:
                raise
            exc.add_note(str(error))  # the first error is the one to fix

    def _check_forms(self, step: int, forms: Mapping[str, Any]) -> None:
        """Raises UserError if the metadata of a checkpoint describes arrays that are too large for its files."""
        most = LEAST_BOUND + BEST_PACKED * checkpoint_files.state_bytes(self._dir.parent, step)
        sizes = [math.prod(form.shape) * np.dtype(form.dtype).itemsize for form in forms.values()]
        if any(length < 0 for form in forms.values() for length in form.shape) or sum(sizes) > most:
            raise UserError(f"checkpoint {step} in {self._dir} is damaged: its arrays are larger than its files")

    def _check_leaves(self, step: int, leaves: Mapping[str, Any], crcs: Mapping[str, int]) -> None:
        """Raises UserError naming a leaf whose bytes have changed since they were saved."""
        if leaves.keys() != crcs.keys():
            name = min(leaves.keys() ^ crcs.keys())
            raise UserError(f"checkpoint {step} in {self._dir} is damaged: it has no array or no checksum for {name}")
        for name, crc in crcs.items():
            if crc_of(leaves[name]) != crc:
                raise UserError(f"checkpoint {step} in {self._dir} is damaged: the checksum of {name} differs")

    def _unsealed(self, step: int) -> tuple[dict[str, Any], dict[str, int]]:
        """Returns the caller's meta and the crc32 of each leaf. Raises UserError if either of them was changed."""
        content = checkpoint_files.read_meta(self._dir.parent, step)
        return content["meta"], content["leaf_crc32"]

    def _open_for_writing(self) -> ocp.CheckpointManager:
        self._dir.mkdir(parents=True, exist_ok=True)
        self._delete_pruned()
        kept: list[policies.PreservationPolicy] = [policies.LatestN(self._keep)]
        if self._keep_every:
            kept.append(policies.EveryNSteps(self._keep_every, exact_interval=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
            todelete_subdir=PRUNED,
            create=False,
            multiprocessing_options=_alone(),
        )
        logging.getLogger("absl").addFilter(self._quiet)
        # Never removed: asyncio logs errors of a save when its memory is collected, perhaps only at exit.
        asyncio_logger = logging.getLogger("asyncio")
        if not any(isinstance(known, _Quiet) for known in asyncio_logger.filters):
            asyncio_logger.addFilter(_Quiet())
        return ocp.CheckpointManager(self._dir, options=options)

    def _delete_pruned(self) -> None:
        """Deletes the old checkpoints that Orbax has moved to the folder PRUNED.

        It moves them there first, so that a kill while deleting leaves no incomplete checkpoint among the others.
        """
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._dir / PRUNED)

    def _drop_manager(self) -> None:
        manager, self._manager = self._manager, None
        try:
            if manager is not None:
                manager.close()
        finally:
            if not self._failed:  # otherwise threads of the failed save may still log
                logging.getLogger("absl").removeFilter(self._quiet)

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise UserError(f"no checkpoint in {self._dir}")
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint {step} in {self._dir}; available: {checkpoint_files.listed(steps)}")
        return steps[-1] if step is None else step

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A context manager that turns errors of a full or failing disk into a UserError.

        It then deletes the incomplete save.
        """
        try:
            yield
        except (OSError, ValueError) as error:
            cause = _os_error(error)
            if cause is None:
                raise
            self._failed = True
            with contextlib.suppress(OSError, ValueError):  # it raises the same error again
                self._drop_manager()  # it would count the incomplete save as a checkpoint to keep
            for half in self._dir.glob(f"*{UNFINISHED}"):
                shutil.rmtree(half, ignore_errors=True)
            raise disk_error(cause, self._dir) from error

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[ocp.CheckpointManager]:
        """A context manager with a read-only Orbax manager. Turns errors from damaged files into a UserError."""
        handlers = {"state": checksums.SealedHandler()}
        quiet = _Quiet()
        logging.getLogger("absl").addFilter(quiet)
        try:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=_alone())
            with ocp.CheckpointManager(
                self._dir, options=options, item_names=("state",), item_handlers=handlers
            ) as manager:
                yield manager
        except UserError:
            raise
        except Exception as error:  # Orbax raises bare Exceptions if tensorstore finds damage
            cause = error.__cause__ if type(error) is Exception and error.__cause__ else error
            reason = (str(cause).splitlines() or [type(cause).__name__])[0]
            raise UserError(f"checkpoint {step} in {self._dir} cannot be read: {reason}") from error
        finally:
            logging.getLogger("absl").removeFilter(quiet)


def _check_room(folder: Path, nbytes: int) -> None:
    """Raises OSError if the disk has no room for a save of `nbytes`, before Orbax starts it.

    Without this check, Orbax's threads wait 300 s for a folder that could not be created, and each prints an error.
    """
    place = next(place for place in (folder, *folder.parents) if place.is_dir())
    disk = os.statvfs(place)
    if disk.f_bavail * disk.f_frsize < nbytes or (disk.f_files and disk.f_favail < FILES_OF_A_SAVE):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _give_back_memory() -> None:
    """Makes glibc return free memory to the system: the threads of each save leave megabytes in their heaps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _alone() -> ocp.options.MultiprocessingOptions:
    """Returns options with which Orbax does not wait for other processes: each process handles a whole checkpoint."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )


def _os_error(error: Exception) -> OSError | None:
    """Returns the OSError that caused an exception, or None if there is none.

    Tensorstore turns it into a ValueError whose text ends in [os_error_code='28'].
    """
    if isinstance(error, OSError):
        return error
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


class _Quiet(logging.Filter):
    """A filter that drops log records of Orbax: remarks about options, and tracebacks of errors.

    This module raises those errors as one line. On the logger "asyncio" the filter drops the tracebacks of Orbax's
    other tasks that failed with the same save.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        about = record.pathname if record.name != "asyncio" else record.getMessage()
        return "orbax" not in about and "os_error_code" not in about
