"""The files of rows of a run stay within the bound that the run prints, even if rows are added fast."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_runs import plain_agent, tiny

import dreamer
from dreamer import agent as agents
from dreamer.runtime.files import sealed
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.replay import capacity
from dreamer.runtime.run.loop import Run

# Rings of 32 rows, with a checkpoint every 16 rows.
SETTINGS = {
    "env": "broken_envs:sound", "env_steps": 240, "eval__episodes": 0, "log__tensorboard": False, "log__every": 1e9,
    "replay__capacity_steps": 64, "replay__flush": 1e-9, "checkpoint__every": 1e9, "checkpoint__keep": 2,
}  # fmt: skip


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(agents, "make", lambda config, spec, **_: plain_agent(spec))


@pytest.mark.parametrize("least", [0, 10**9])
def test_rows_in_files_stay_within_the_bound_however_late_a_checkpoint_is_due(tmp_path, plain, monkeypatch, least):
    monkeypatch.setattr(capacity, "LEAST_BETWEEN", least)
    held: list[int] = []
    tend = Run.tend

    def tending(run: Run) -> None:
        tend(run)
        run.parts.store.wait()
        held.append(rows_in_files(run.parts.run_dir))

    monkeypatch.setattr(Run, "tend", tending)
    run_dir = dreamer.train(tiny(tmp_path / "run", **SETTINGS))
    within = max(held) <= 64 + 3 * 16 + 2 * 2  # the first and the last file contain a row of each environment
    assert within == (least == 0)  # the bound is exceeded without early checkpoints
    with Checkpoints(run_dir) as checkpoints:
        assert checkpoints.steps()[-1] == 240


def test_the_bound_counts_rows_between_checkpoints_and_the_latents_of_each():
    size = capacity.Capacity(streams=4, rows_per_stream=250_000, row_bytes=12_000, free_bytes=None, bound="")
    assert capacity.rows_between_checkpoints(size) == 250_000
    most = capacity.rows_bound(size, 2_000, keep=2, env_steps=10**9)
    assert most == (1_000_000 + 3 * 250_000 + 2 * 15_625) * 12_000 + 4 * 1_000_000 * 2_000


def test_a_file_of_rows_is_written_before_its_time_when_rows_come_fast(tmp_path, plain, monkeypatch):
    """Rows that would wait for an hour are written after a sixteenth of the rows between two checkpoints."""
    files: set[str] = set()
    tend = Run.tend

    def tending(run: Run) -> None:
        tend(run)
        run.parts.store.wait()
        files.update(path.name for path in (run.parts.run_dir / "rows").glob("rows-*.dreamer"))

    monkeypatch.setattr(Run, "tend", tending)
    monkeypatch.setattr(capacity, "LEAST_BETWEEN", 10**9)
    monkeypatch.setattr(capacity, "rows_between_flushes", lambda size: 20)
    dreamer.train(tiny(tmp_path / "run", **SETTINGS | {"replay__flush": 3600.0}))
    assert len(files) >= 240 // 20


def test_a_replay_that_holds_the_whole_run_needs_no_more_than_its_rows():
    size = capacity.Capacity(1, 1000, row_bytes=100, free_bytes=None, bound="", disk_row_bytes=50)
    assert capacity.rows_bound(size, 0, keep=5, env_steps=1000) == 150_000


def test_the_bound_is_announced(tmp_path, plain, capsys):
    dreamer.train(tiny(tmp_path / "run", **SETTINGS))
    assert re.search(r"rows on the disk: at most [\d.]+ kB \(of [\d.]+ GB free\)", capsys.readouterr().out)


def rows_in_files(run_dir: Path) -> int:
    files = (run_dir / "rows").glob("rows-*.dreamer")
    return sum(stop - start for file in files for _, start, stop in sealed.read(file)[0]["spans"])
