"""Pickled states of environments are read only from files that this user made or trusts."""

from __future__ import annotations

import pickle
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from crafting import change_state
from test_resume import ENV, stopped
from tiny_runs import tiny

import dreamer
from dreamer.runtime.env import state as env_state

pytestmark = pytest.mark.usefixtures("quick")

PICKLING = {**ENV, "env": "broken_envs:pickles_its_state"}
WHY = "their states are pickles that were not made by you on this machine (--trust reads them)"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with a stopped run and the key of the user who made it."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        stopped(folder / "run", 20, env=PICKLING["env"])
    return folder


@pytest.fixture
def run_dir(whole, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def resumed(run_dir: Path, capsys, trust: bool = False) -> str:
    capsys.readouterr()
    dreamer.train(tiny(run_dir, **PICKLING), resume="yes", trust=trust)
    return capsys.readouterr().out


def test_a_pickled_state_of_this_user_is_read(run_dir, capsys):
    assert "not resumed" not in resumed(run_dir, capsys)


def test_a_pickled_state_from_elsewhere_begins_a_new_episode(tmp_path, run_dir, capsys):
    shutil.rmtree(tmp_path / "state")
    assert f"not resumed: the running episodes of all environments, since {WHY}" in resumed(run_dir, capsys)


@pytest.mark.parametrize("form", ["marked", "older", "with a foreign seal"])
def test_a_payload_in_a_state_does_not_run(tmp_path, run_dir, capsys, form):
    proof = tmp_path / "proof"
    data = pickle.dumps(Payload(proof))
    state = data if form == "older" else env_state.PICKLED + zlib.compress(data)

    def put(head, arrays):
        arrays["envs/state/00001"] = np.frombuffer(state, np.uint8)
        if form != "with a foreign seal":
            head.pop("macs")

    change_state(run_dir, put)
    out = resumed(run_dir, capsys)
    assert not proof.exists()
    assert WHY in out


def test_with_trust_a_pickled_state_from_elsewhere_is_read(tmp_path, run_dir, capsys):
    shutil.rmtree(tmp_path / "state")
    assert "not resumed" not in resumed(run_dir, capsys, trust=True)


def test_reading_a_plain_state_imports_nothing():
    before = set(sys.modules)
    with pytest.raises(ValueError):
        env_state._unpacked(env_state.PLAIN + pickle.dumps(1))
    assert set(sys.modules) == before
