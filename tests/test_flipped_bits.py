"""A flipped bit in a run directory is reported with its file or has no effect. It never changes the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_loop import timeless
from test_resume import state_of, stopped
from tiny_runs import tiny

import dreamer
from dreamer.apps.verify import verify
from dreamer.errors import UserError

pytestmark = pytest.mark.usefixtures("quick")

SETTINGS = {"env": "probes:both", "eval__episodes": 0, "checkpoint__every": 0, "checkpoint__keep": 2}
EXEMPT = ("pictures", "wandb", "events.out")  # pictures, and files of other programs


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """A lockstep run that was stopped halfway."""
    return stopped(tmp_path_factory.mktemp("half") / "run", 20, **SETTINGS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that was never stopped."""
    return dreamer.train(tiny(tmp_path_factory.mktemp("whole") / "run", **SETTINGS))


def flip(run_dir: Path, rng: np.random.Generator) -> str:
    """Flips a random bit of a random file. Returns a description."""
    files = sorted(path for path in run_dir.rglob("*") if path.is_file() and path.stat().st_size)
    files = [path for path in files if not str(path.relative_to(run_dir)).startswith(EXEMPT)]
    path = files[rng.integers(len(files))]
    data = bytearray(path.read_bytes())
    byte, bit = int(rng.integers(len(data))), int(rng.integers(8))
    data[byte] ^= 1 << bit
    path.write_bytes(data)
    return f"{path.relative_to(run_dir)} byte {byte} bit {bit}"


def outcome(run_dir: Path, whole: Path) -> str:
    """Resumes a flipped run. Returns "named" if it is refused, "harmless" if it ends like the whole run."""
    try:
        dreamer.train(tiny(run_dir, **SETTINGS), resume="yes")
    except UserError as error:
        assert "\n" not in str(error)
        return "named"
    assert state_of(run_dir) == state_of(whole) and timeless(run_dir) == timeless(whole)
    return "harmless"


def check(tmp_path: Path, half: Path, whole: Path, flips: int, resumes: int, seed: int) -> dict[str, int]:
    """Flips `flips` bits, each in a new copy; resumes the runs that `verify` finds whole, and `resumes` others."""
    rng, counts = np.random.default_rng(seed), {"named": 0, "harmless": 0, "resumed": 0}
    for number in range(flips):
        run_dir = shutil.copytree(half, tmp_path / str(number))
        what = flip(run_dir, rng)
        report = verify(run_dir)
        if report.whole or resumes:
            resumes -= not report.whole
            counts["resumed"] += 1
            came = outcome(run_dir, whole)
            # A fault that verify finds may be in a checkpoint or a line that a resume does not use.
            assert came == "harmless" or not report.whole, f"{what}: refused, but verify found nothing"
        counts["harmless" if report.whole else "named"] += 1
        shutil.rmtree(run_dir)
    return counts


def test_a_flipped_bit_is_named_or_harmless(tmp_path, half, whole):
    counts = check(tmp_path, half, whole, flips=8, resumes=2, seed=0)
    assert counts["named"]


@pytest.mark.slow
def test_five_hundred_flipped_bits_are_named_or_harmless(tmp_path, half, whole):
    counts = check(tmp_path, half, whole, flips=500, resumes=60, seed=1)
    print(counts)
    assert counts["named"] > 400
