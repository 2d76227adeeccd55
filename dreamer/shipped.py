"""The folders that come with the package besides its code: `envs/` and `experiments/`. Imports no jax.

Both lie next to the package in a checkout, and inside it in a wheel. No other place is searched, so a folder of the
same name in the current folder, or another installed package, never replaces them.
"""

from __future__ import annotations

import difflib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """Returns the path of the folder `name`, which is "envs" or "experiments"."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def presets() -> dict[str, Path]:
    """Returns {name: file} of the presets that come with the package, sorted by name."""
    return {file.stem: file for file in sorted(folder("experiments").glob("*.yaml"))}


def sweeps() -> dict[str, Path]:
    """Returns {name: file} of the sweeps that come with the package, sorted by name."""
    return {file.stem: file for file in sorted((folder("experiments") / "sweeps").glob("*.yaml"))}


def preset_line(file: Path) -> str:
    """Returns the first line of a preset file without its "#": a sentence about the preset."""
    with open(file, encoding="utf-8") as lines:
        return lines.readline().strip().removeprefix("#").strip().rstrip(":.") + "."


def nearest_preset(word: str) -> str:
    """Returns the name of the preset most similar to `word`, or "" if none is. Ignores case and file extension."""
    close = difflib.get_close_matches(Path(word).stem.lower(), presets(), n=1, cutoff=0.6)
    return close[0] if close else ""
