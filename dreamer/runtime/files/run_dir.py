"""The run directory: the names of its files, and whether a new run may use it. Imports no jax."""

from __future__ import annotations

from pathlib import Path

from dreamer.errors import UserError

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
PICTURES = "pictures"
ROWS = "rows"
LOCK = "lock"
HOSTS = "hosts"  # the files of processes other than the first, if several train together
ERROR = "error.txt"
POPULATION = "population.json"
ASIDE = "aside"  # files that a resume has moved aside; they stay until the next checkpoint


def folder_of(run_dir: Path, process: int) -> Path:
    """Returns the folder with the rows of a process: the run directory for process 0, hosts/<process> for another."""
    return run_dir / HOSTS / str(process) if process else run_dir


def refuse_used(path: str | Path) -> Path:
    """Returns the path if it contains no run. Raises UserError if it has files of a run or a population."""
    path = Path(path).expanduser()
    for name in (CONFIG, METRICS, CHECKPOINTS, ROWS, POPULATION):
        if (path / name).exists() or (path / name).is_symlink():
            raise UserError(f"run_dir {path} already holds a run ({name}); choose another run_dir or remove it first")
    return path


def existing_run_dir(path: str | Path) -> Path:
    """Returns the directory of an existing run. Raises UserError if there is none at `path`."""
    path = Path(path).expanduser()
    if not path.is_dir():
        raise UserError(f"no run at {path}: there is no such directory")
    if not (path / CONFIG).is_file():
        raise UserError(f"no run at {path}: it holds no {CONFIG}")
    return path


