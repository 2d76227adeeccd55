"""The Ray cluster of a sweep: joins one, or starts one on this machine and ends all of it. Imports no jax."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dreamer.apps.sweep.ray_config import Config
from dreamer.errors import UserError
from dreamer.runtime.files.atomic import write_whole
from dreamer.runtime.run.stopping import SIGNALS
from dreamer.runtime.workers.ray_cluster import check_reachable

SESSION = "ray/session.json"  # in the directory of the sweep: the folder of the cluster that it started
PREFIX = "dreamer-ray-"  # of the name of that folder
OBJECTS = 128_000_000  # bytes of shared memory for Ray's objects, of which Tune needs few
# Variables of Ray and Tune. Nothing is sent to anybody; a trial may report no score at first; the workers stay in the
# current folder; Tune writes no tables of its own.
VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0", "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_PRINT_ALL_TRIAL_ERRORS": "0", "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_AIR_NEW_OUTPUT": "0",
}  # fmt: skip


class Share(NamedTuple):
    """What each program takes."""

    cpus: int
    gpus: float


def libraries() -> ModuleType:
    """Returns Ray, with Tune loaded. Raises UserError naming the extra if a part of it is missing."""
    try:
        import optuna  # noqa: F401
        import ray
        import ray.tune
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or error.name or "ray"
        advice = 'pip install "dreamer-jax[distributed]", in the checkout pip install ".[distributed]"'
        raise UserError(f"--on ray needs the package {missing!r}: {advice}") from None
    return ray


@contextlib.contextmanager
def connected(root: Path, config: Config, jobs: int) -> Iterator[ModuleType]:
    """A context with a connection to Ray: to the cluster at config.address, else to one of its own on this machine.

    A process that is connected already uses that cluster. root: the directory of the sweep | jobs: programs at a time
    Raises UserError if Ray is missing or no cluster answers.
    """
    with variables(VARIABLES):
        ray = libraries()
        if ray.is_initialized():
            yield ray
            return
        if config.address:
            check_reachable(config.address, "--ray.address")
            with _connection(ray, config.address, address=config.address):
                yield ray
            return
        with _session(root) as folder, _connection(
            ray, "local", address="local", _temp_dir=str(folder), object_store_memory=OBJECTS,
            num_cpus=max(len(os.sched_getaffinity(0)), jobs), include_dashboard=False,
        ):  # fmt: skip
            yield ray


@contextlib.contextmanager
def _connection(ray: ModuleType, name: str, **arguments: Any) -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **arguments)
    except Exception as error:  # Ray has no class of its own for all of them
        why = " ".join(str(error).split())
        there = f"--ray.address {name}: no Ray cluster answers"
        what = "Ray does not start on this machine" if name == "local" else there
        raise UserError(f"{what}: {why}") from error
    finally:
        for number, handler in handlers.items():  # Ray sets one of its own for SIGTERM
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _session(root: Path) -> Iterator[Path]:
    """A context with a folder for the files of a cluster. First removes what a killed launcher has left.

    The path must be short, because Ray makes sockets in it.
    """
    record = root / SESSION
    record.parent.mkdir(exist_ok=True)
    _remove_old(record)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    text = json.dumps({"folder": str(folder), "host": socket.gethostname()}) + "\n"
    write_whole(record, lambda path: path.write_text(text, encoding="utf-8"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        record.unlink(missing_ok=True)


def _remove_old(record: Path) -> None:
    """Removes the folder of the cluster of a launcher that was killed here. The processes have died with it."""
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        folder = Path(values["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    ours = folder.name.startswith(PREFIX) and not folder.is_symlink()
    if ours and values.get("host") == socket.gethostname():
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """A context with these environment variables, unless the user has set them."""
    new = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in new})
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def share_of(config: Config, nodes: Sequence[Mapping[str, Any]], jobs: int) -> Share:
    """Returns what each program takes of the cluster. nodes: as `ray.nodes()` | jobs: programs at a time; 0: not said

    Raises UserError if no machine has as much.
    """
    has = [(int(r.get("CPU", 0)), float(r.get("GPU", 0))) for r in (n["Resources"] for n in nodes if n["Alive"])]
    most = max((gpus for _, gpus in has), default=0.0)
    gpus = (1.0 if most else 0.0) if config.gpus < 0 else config.gpus
    cpus = config.cpus
    if not cpus and gpus:
        cpus = max(1, min((int(c // (g / gpus)) for c, g in has if g >= gpus), default=1))
    elif not cpus:
        total, largest = sum(c for c, _ in has), max((c for c, _ in has), default=1)
        cpus = max(1, min(largest, total // jobs)) if jobs else 1
    if not any(c >= cpus and g >= gpus for c, g in has):
        offers = "; ".join(f"{c} CPUs and {g:g} GPUs" for c, g in has) or "no machines"
        raise UserError(f"no machine of the cluster has {cpus} CPUs and {gpus:g} GPUs for a program; it has {offers}")
    return Share(cpus, gpus)
