"""Weights & Biases, with the real library and without a network: what its files contain."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import yaml
from test_population_host import config_of
from test_resume import stopped

import dreamer
from dreamer.apps import cli
from dreamer.apps.sweep import packing
from dreamer.apps.sweep.packing import Program
from dreamer.apps.sweep.trials import Trial
from dreamer.config import load
from dreamer.runtime.log.logger import Config, Logger, Resumed
from dreamer.runtime.log.wandb_runs import SENT
from dreamer.runtime.population.members import members_of
from dreamer.runtime.run.loop import Run
from dreamer.runtime.run.stopping import Stopped

wandb = pytest.importorskip("wandb")
from wandb.proto import wandb_internal_pb2  # noqa: E402

OFFLINE = Config(tensorboard=False, wandb="offline")
LOGGED = {"log__wandb": "offline", "log__tensorboard": False, "eval__episodes": 0}
BLOCK = 32768  # bytes of a block of a log of LevelDB, in which W&B writes its records


@pytest.fixture(autouse=True)
def agent_that_compiles_at_once(monkeypatch):
    monkeypatch.setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))


def files_of(run_dir: Path) -> list[Path]:
    """Returns the files of W&B in the order of their begin, once its service process has written and left them."""
    wandb.teardown()
    return sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime_ns)


def records(path: Path) -> list[Any]:
    """Reads all records of a file of W&B: a head of 7 bytes, then blocks with parts of records, as LevelDB has them."""
    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # the whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found


def begun(path: Path) -> Any:
    """Returns the record about the run."""
    return next(one.run for one in records(path) if one.WhichOneof("record_type") == "run")


def history(path: Path) -> list[dict[str, Any]]:
    """Returns what was logged, with W&B's own step as "_step"."""
    rows = [one.history.item for one in records(path) if one.WhichOneof("record_type") == "history"]
    return [{" > ".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row} for row in rows]


def curve(run_dir: Path, name: str) -> list[int]:
    """Returns the env_steps of the values of a name, over all files."""
    rows = [row for path in files_of(run_dir) for row in history(path)]
    return [row.get("env_steps") for row in rows if name in {key.partition(" > ")[0] for key in row}]


def settings(path: Path) -> dict[str, Any]:
    return {item.key: json.loads(item.value_json) for item in begun(path).config.update}


def test_two_runs_in_one_process_are_two_runs_there(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    with Logger(tmp_path / "a", OFFLINE, {"seed": 1}) as one, Logger(tmp_path / "b", OFFLINE, {"seed": 2}) as other:
        for logger, value in ((one, 1.0), (other, 2.0)):
            logger.add({"loss/dyn": value})
            logger.write(640, 20)
    (first,), (second,) = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    assert begun(first).run_id != begun(second).run_id
    assert (begun(first).display_name, begun(second).display_name) == ("a", "b")
    assert (settings(first)["seed"], settings(second)["seed"]) == (1, 2)
    assert [row["loss/dyn"] for path in (first, second) for row in history(path)] == [1.0, 2.0]


def test_a_run_of_the_caller_stays_open(tmp_path):
    own = wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(silent=True, console="off"))
    try:
        (tmp_path / "run").mkdir()
        with Logger(tmp_path / "run", OFFLINE):
            pass
        own.log({"mine": 1})
    finally:
        own.finish()
    assert begun(files_of(tmp_path / "run")[0]).run_id != own.id and curve(tmp_path, "mine") == [None]


def write(logger: Logger, steps: int, **values: float) -> None:
    logger.add({"loss/dyn": steps / 10, **values}, latest=True)
    logger.write(steps, steps)


def test_a_killed_run_that_is_resumed_sends_nothing_twice(tmp_path):
    with Logger(tmp_path, OFFLINE) as logger:
        write(logger, 10)
        position = json.loads(json.dumps(logger.position()))
        write(logger, 20)
        write(logger, 30)
    with Logger(tmp_path, OFFLINE, resumed=Resumed(position, 10, later=False)) as logger:
        write(logger, 20)
        write(logger, 30, **{"eval/return": 5.0})
        write(logger, 40)
    assert curve(tmp_path, "loss/dyn") == [10, 20, 30, 40] and curve(tmp_path, "eval/return") == [30]
    assert len({begun(path).run_id for path in files_of(tmp_path)}) == 1
    numbers = [row["_step"] for path in files_of(tmp_path) for row in history(path)]
    assert numbers == [*range(len(numbers))]  # W&B drops what goes back


def test_an_evaluation_after_later_values_is_sent(tmp_path):
    with Logger(tmp_path, OFFLINE) as logger:
        write(logger, 40)
        logger.image(30, "picture", np.zeros((4, 4, 3), np.uint8))
        write(logger, 30)
    assert curve(tmp_path, "picture") == [30] and curve(tmp_path, "loss/dyn") == [40, 30]


def test_a_run_that_goes_back_to_a_chosen_checkpoint_is_another_run_there(tmp_path):
    with Logger(tmp_path, OFFLINE) as logger:
        position = json.loads(json.dumps(logger.position()))
        write(logger, 30)
    with Logger(tmp_path, OFFLINE, resumed=Resumed(position, 0, later=False, rewound=True)) as logger:
        write(logger, 20)
        assert logger.position()["wandb"] != position["wandb"]
    assert curve(tmp_path, "loss/dyn") == [30, 20]


def test_a_run_without_a_checkpoint_keeps_its_id(tmp_path):
    ids = []
    for _ in range(2):
        with Logger(tmp_path, OFFLINE) as logger:
            ids.append(logger.position()["wandb"])
    assert ids[0] == ids[1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "x", "step": 3, "env_steps": {"a": []}}'])
def test_a_damaged_note_of_what_was_sent_is_ignored(tmp_path, text):
    (tmp_path / "wandb").mkdir()
    (tmp_path / SENT).write_text(text)
    with Logger(tmp_path, OFFLINE) as logger:
        write(logger, 10)
    assert curve(tmp_path, "loss/dyn") == [10] and json.loads((tmp_path / SENT).read_text())["env_steps"]


def test_a_stopped_run_goes_on_as_the_same_run_there(tmp_path):
    run_dir = stopped(tmp_path / "run", 20, **LOGGED)
    dreamer.train(tiny_runs.tiny(run_dir, env="probes:both", **LOGGED), resume="yes")
    files = files_of(run_dir)
    assert len(files) == 2 and len({begun(path).run_id for path in files}) == 1
    steps = curve(run_dir, "loss/w")
    assert steps == sorted(set(steps)) and steps[-1] == 96


def test_each_member_of_a_population_is_a_run_of_the_group(tmp_path):
    root = tmp_path / "learners"
    config = config_of(root, **LOGGED, log__wandb_tags=["mine"])
    turns, tend = iter(range(10**9)), Run.tend

    def tending(run):
        if next(turns) == 60:
            os.kill(os.getpid(), signal.SIGTERM)
        tend(run)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Run, "tend", tending)
        dreamer.train(config)
    dreamer.train(config, resume="yes")
    ids = set()
    for seed in range(2):
        run_dir = root / f"seed{seed}"
        files = files_of(run_dir)
        assert len(files) == 2 and len({begun(path).run_id for path in files}) == 1
        ids.add(begun(files[0]).run_id)
        for run in map(begun, files):
            assert (run.display_name, run.run_group) == (f"seed{seed}", "learners")
            assert list(run.tags) == ["mine", "population"]
        assert settings(files[0])["seed"] == seed
        steps = curve(run_dir, "loss/w")
        assert steps == sorted(set(steps)) and steps[-1] == 96
    assert len(ids) == 2


def test_a_trial_has_its_own_name_and_the_group_of_its_sweep(tmp_path):
    found = {f"lr={i}": Trial(f"lr={i}", {}, i, load(overrides={"log.wandb": "offline", "seed": i})) for i in range(2)}
    alone = packing.config_of(Program("program0", ("lr=1",)), found, tmp_path / "rates").log
    assert (alone.wandb_name, alone.wandb_group, alone.wandb_tags) == ("lr=1", "rates", ("sweep",))
    together = packing.config_of(Program("program0", tuple(found)), found, tmp_path / "rates")
    logs = [member.config.log for member in members_of(together)]
    assert [(log.wandb_name, log.wandb_group) for log in logs] == [("lr=0", "rates"), ("lr=1", "rates")]
    assert logs[0].wandb_tags == ("sweep", "population")


def test_names_of_the_config_come_first(tmp_path):
    log = Config(wandb="offline", wandb_name="try", wandb_group="all")
    config = dataclasses.replace(load(overrides={"population.seeds": 2, "run_dir": str(tmp_path)}), log=log)
    assert [(m.config.log.wandb_name, m.config.log.wandb_group) for m in members_of(config)] == [
        ("try-seed0", "all"), ("try-seed1", "all"),
    ]  # fmt: skip


def test_a_sweep_without_wandb_is_refused_before_it_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.dump({"base": ["quickstart", {"log": {"wandb": "offline"}}], "seeds": 2}))
    assert cli.main(["sweep", str(path), "--run-dir", str(tmp_path / "out")]) == 2
    assert "log.wandb=offline needs the package wandb" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
