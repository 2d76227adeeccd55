"""A process of a run that several train together, for tests: starts them, waits for them, and reads what they leave."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import tiny_runs

from dreamer import agent as agents
from dreamer.apps import cli
from dreamer.runtime.files import checkpoint_files, sealed
from dreamer.runtime.files.run_dir import ROWS, folder_of
from dreamer.runtime.learning import updates

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS: dict[str, Any] = {
    **tiny_runs.flat(tiny_runs.TINY), "env": "probes:both", "eval.episodes": 0, "workers.envs": 4,
    "replay.batch_size": 4, "log.tensorboard": False,
}  # fmt: skip


def words(run_dir: str, settings: dict[str, Any]) -> list[str]:
    """Returns the arguments of `dreamer` for a run with SETTINGS and `settings`, by dotted key."""
    flags = []
    for key, value in {**SETTINGS, **settings, "run_dir": run_dir}.items():
        shown = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        flags += [f"--{key.replace('_', '-')}", *([shown[0].lower()] if isinstance(value, bool) else shown)]
    return ["train", *flags]


def main(run_dir: str, settings: dict[str, Any], agent: str = "plain", record: str = "", given: str = "") -> int:
    """Runs `dreamer train`, with the command's own code. Returns the exit code.

    agent: "plain", the fast one of tiny_runs, or "real"
    record: a folder for the batches that this process trains on. given: a folder of such batches, which replace its own
    """
    if agent == "plain":
        agents.make = lambda config, spec, **_: tiny_runs.plain_agent(spec)
    process, drawn = settings.get("devices.process_id", 0), iter(range(10**9))

    def draw(source, learner, batch_size):
        batch, rows = source.sample(batch_size)
        number = next(drawn)
        if record:
            np.savez(f"{record}/{number}-{process}.npz", **named(batch))
        if given:
            parts = sorted(pathlib.Path(given).glob(f"{number}-*.npz"))
            loaded = [dict(np.load(part)) for part in parts]
            joined = {name: np.concatenate([one[name] for one in loaded]) for name in loaded[0]}
            batch = renamed(batch, joined)
        return learner.place(batch), rows

    updates.draw = draw
    return cli.main([*words(run_dir, settings), "--resume", "auto"])


def named(batch) -> dict[str, np.ndarray]:
    """Returns the arrays of a batch by name."""
    plain = {name: getattr(batch, name) for name in batch._fields if name not in ("obs", "latent")}
    obs = {f"obs/{name}": x for name, x in batch.obs.items()}
    return {**plain, **obs, **{f"latent/{name}": x for name, x in batch.latent.items()}}


def renamed(batch, arrays: dict[str, np.ndarray]):
    """Returns a batch like `batch` with the arrays from `named`."""
    return batch._replace(
        obs={name: arrays[f"obs/{name}"] for name in batch.obs},
        latent={name: arrays[f"latent/{name}"] for name in batch.latent},
        **{name: arrays[name] for name in batch._fields if name not in ("obs", "latent")},
    )


def environment() -> dict[str, str]:
    """Returns the environment variables of a process: one CPU device, and XLA without optimizations."""
    import tiny  # not in the processes of a run: it starts the XLA backend

    quick = [f"--{name}={str(value).lower()}" for name, value in tiny.QUICK.items()]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(quick), "PYTHONPATH": paths}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def begun(count: int, call: str) -> list[subprocess.Popen]:
    """Starts `count` processes that run `call`, Python code; in it, DEVICES are the settings of the process."""
    port, processes = free_port(), []
    for index in range(count):
        devices = {"devices.coordinator": f"localhost:{port}", "devices.processes": count, "devices.process_id": index}
        code = f"import sys, hosts_run; DEVICES = {devices if count > 1 else {}!r}; {call}"
        processes.append(
            subprocess.Popen(
                [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                cwd=ROOT, env=environment(),
            )  # fmt: skip
        )
    return processes


def ended(processes: list[subprocess.Popen], seconds: float = 600) -> list[tuple[int, str]]:
    """Waits for processes, at most `seconds` in all. Returns the exit code and the output of each. Leaves none."""
    deadline = time.monotonic() + seconds
    try:
        outputs = [process.communicate(timeout=max(1, deadline - time.monotonic()))[0] for process in processes]
        return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def trained(count: int, run_dir: pathlib.Path, settings: dict[str, Any], **arguments: Any) -> list[str]:
    """Trains a run by `count` processes to its end. Returns their outputs. arguments: of `main`"""
    call = f"sys.exit(hosts_run.main({str(run_dir)!r}, {{**{settings!r}, **DEVICES}}, **{arguments!r}))"
    found = ended(begun(count, call))
    assert [code for code, _ in found] == [0] * count, "\n".join(output for _, output in found)
    return [output for _, output in found]


def rows_of(run_dir: pathlib.Path) -> dict[int, dict[str, np.ndarray]]:
    """Returns the rows of the newest checkpoint {stream of the whole run: {column: [n, ..]}}."""
    step = checkpoint_files.steps(run_dir)[-1]
    rows: dict[int, list[dict[str, np.ndarray]]] = {}
    before = 0
    for process, files in enumerate(checkpoint_files.read_manifest(run_dir, step).hosts):
        for seal in files.rows:
            head, columns = sealed.read(folder_of(run_dir, process) / ROWS / seal.name, seal)
            offset = 0
            for stream, start, stop in head["spans"]:
                part = {name: values[offset : offset + stop - start] for name, values in columns.items()}
                assert sum(len(one["reward"]) for one in rows.get(before + stream, [])) == start
                rows.setdefault(before + stream, []).append(part)
                offset += stop - start
        before += len(files.oldest)
    return {s: {name: np.concatenate([one[name] for one in parts]) for name in parts[0]} for s, parts in rows.items()}
