"""The device makes the next turns while the host handles the turns before them."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_runs
from test_fused import SETTINGS

import dreamer
from dreamer.runtime.files import checkpoint_files
from dreamer.runtime.learning import pipeline as pipelines
from dreamer.runtime.learning.pipeline import Chunk, Pace, Pipeline
from dreamer.runtime.run.loop import Run

START, LONGEST = 5, 32  # the rows of a stream at which training starts, and those of a ring


class Loop(NamedTuple):
    """Stands for the Loop. ring: the numbers of its rows"""

    ring: np.ndarray


class Device:
    """Stands for the device. made: the turns of each call | fails: whether the next call fails"""

    def __init__(self):
        self.made: list[int] = []
        self.fails = False

    def __call__(self, loop: Loop, turns: Any) -> tuple[Loop, np.ndarray]:
        if self.fails:
            raise RuntimeError("the device is gone")
        self.made.append(int(turns))
        return Loop(np.arange(len(loop.ring) + int(turns))), np.int32(turns)


class Replay:
    """Stands for a replay of one stream."""

    class config:
        batch_size = 2

    class size:
        rows_per_stream = LONGEST

    counts = np.zeros(1)

    def start(self, batch_size: int) -> int:
        return START


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def lost() -> list[str]:
    return []


@pytest.fixture
def pipeline(device, lost, monkeypatch):
    monkeypatch.setattr(pipelines, "SECONDS", 1e9)  # so that turns double from call to call
    rows = lambda ring, n: {"row": ring[None, -n:]}  # noqa: E731
    pace: Any = Pace(Replay())
    loop: Any = Loop(np.arange(0))
    made = Pipeline(loop, device, rows, LONGEST, pace, contextlib.nullcontext, lambda: lost.append("lost"))
    with contextlib.closing(made):
        yield made


def received(pipeline: Pipeline, until: int) -> list[Chunk]:
    """Receives all turns up to row `until`."""
    chunks: list[Chunk] = []
    added = 0
    while added < until:
        chunks.append(pipeline.next(added, lambda ahead, added=added: until - added - ahead))
        added += chunks[-1].turns
    return chunks


def test_the_turns_after_a_chunk_are_dispatched_before_it_is_received(pipeline, device):
    received(pipeline, START)
    before = len(device.made)
    chunk = pipeline.next(START, lambda ahead: 100)
    assert device.made[before] == chunk.turns and len(device.made) == before + 2
    assert pipeline.in_flight == device.made[-1]


def test_each_row_is_received_once_and_in_order(pipeline):
    chunks = received(pipeline, 100)
    rows = np.concatenate([chunk.rows["row"][0, -chunk.turns :] for chunk in chunks])
    assert rows.tolist() == [*range(100)] and pipeline.in_flight == 0


def test_the_turn_in_which_training_starts_stands_alone(pipeline, device):
    pipeline.next(0, lambda ahead: 100)
    assert (device.made, pipeline.in_flight) == ([1], 0)  # its time is not known yet
    added = 1
    while added < START - 1:
        added += pipeline.next(added, lambda ahead: 100).turns
        assert added + pipeline.in_flight < START
    assert pipeline.next(added, lambda ahead: 100).turns == 1 and pipeline.in_flight == 0


def test_no_turns_are_dispatched_beyond_what_is_due(pipeline, device):
    received(pipeline, START)
    pipeline.next(START, lambda ahead: 0 if ahead else 2)
    assert pipeline.in_flight == 0 and sum(device.made) <= START + 2


def test_a_device_that_fails_loses_the_loop_and_the_turns_in_flight(pipeline, device, lost):
    received(pipeline, START)
    pipeline.next(START, lambda ahead: 100)
    device.fails = True
    with pytest.raises(RuntimeError, match="the device is gone"):
        pipeline.next(START + 2, lambda ahead: 100)
    assert pipeline.loop is None and pipeline.in_flight == 0 and lost == ["lost"]


def test_the_host_is_busy_while_the_device_makes_turns_but_checkpoints_and_evaluations_wait(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))
    monkeypatch.setattr(pipelines, "SECONDS", 0.01)
    seen: dict[str, list[int]] = {"tend": [], "save": [], "evaluate": []}

    for name, found in seen.items():
        method = getattr(Run, name)

        def watched(run, *args, method=method, found=found, **kwargs):
            found.append(run.parts.device.in_flight)
            return method(run, *args, **kwargs)

        monkeypatch.setattr(Run, name, watched)
    asked: list[int] = []

    def evaluate_once(line):
        if line.updates and not asked:
            asked.append(line.env_steps)
            return "evaluate"
        return None

    settings = {**SETTINGS, "checkpoint__every": 0.2, "eval__every": 80, "eval__episodes": 1}
    run_dir = dreamer.train(tiny_runs.tiny(tmp_path / "run", **settings, loop="device"), callbacks=[evaluate_once])
    assert any(seen["tend"])
    assert len(seen["save"]) >= 3 and not any(seen["save"])  # at the start, after the compilation and at the end
    assert len(seen["evaluate"]) == 2 and not any(seen["evaluate"])  # one is due, and one is asked for
    steps = [line["env_steps"] for line in tiny_runs.lines(run_dir) if "eval/return" in line]
    assert asked[0] <= steps[0] and 80 in steps and steps[-1] == 160


def test_an_interrupted_run_saves_also_the_turns_in_flight(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))
    monkeypatch.setattr(pipelines, "SECONDS", 0.01)
    tend, seen = Run.tend, {}

    def interrupts(run):
        tend(run)
        if run.parts.device.in_flight:
            seen["steps"] = run.parts.replay.steps + run.parts.device.in_flight * run.parts.workers.streams
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "tend", interrupts)
    with pytest.raises(KeyboardInterrupt):
        dreamer.train(tiny_runs.tiny(tmp_path / "run", **SETTINGS, loop="device"))
    assert checkpoint_files.steps(tmp_path / "run")[-1] == seen["steps"]
