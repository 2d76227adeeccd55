"""The README's custom environment works with the installed wheel, in a folder outside the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import TINY, flat

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAZE = '''import gymnasium
import numpy as np


class MyMaze(gymnasium.Env):
    def __init__(self, size):
        self.size = size
        self.observation_space = gymnasium.spaces.Box(0, size - 1, (2,), np.int64)
        self.action_space = gymnasium.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.integers(0, self.size, 2)
        return self.place.copy(), {}

    def step(self, action):
        self.place = np.clip(self.place + [(0, 1), (0, -1), (1, 0), (-1, 0)][action], 0, self.size - 1)
        found = not self.place.any()
        return self.place.copy(), float(found), found, False, {}


'''


def block(after: str) -> str:
    """Returns the first Python block of the README below a heading."""
    found = re.search(r"```python\n(.*?)```", README.partition(f"## {after}")[2], re.DOTALL)
    assert found, f"README.md has no Python below {after!r}"
    return found.group(1)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Makes a folder with my_lab/envs.py from the README; returns a function that runs Python there with the wheel."""
    folder = tmp_path_factory.mktemp("outside")
    source = folder / "source"
    for name in ("dreamer", "envs", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    quiet = {"capture_output": True, "text": True, "check": True}
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], **quiet)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "installed", wheel], **quiet)
    work = folder / "work"
    for name in ("envs", "experiments"):  # folders of the user with these names, which must hide nothing
        (work / name).mkdir(parents=True)
        (work / name / "__init__.py").write_text("raise ImportError('not this one')")
    (work / "my_lab").mkdir()
    (work / "my_lab" / "__init__.py").touch()
    (work / "my_lab" / "envs.py").write_text(MAZE + block("Your own environment"))

    def python(*args: str) -> str:
        environ = {**os.environ, "PYTHONPATH": str(folder / "installed")}
        done = subprocess.run([sys.executable, *args], cwd=work, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return folder, python


def test_the_installed_wheel_is_imported(outside):
    folder, python = outside
    assert python("-c", "import dreamer; print(dreamer.__file__)").startswith(str(folder / "installed"))


def test_the_environment_in_five_lines_trains_and_its_agent_acts(outside):
    _, python = outside
    command = re.search(r"dreamer (train --env my_lab\S+ .*)", README)
    assert command, "README.md has no command for one's own environment"
    small = {"workers.envs": 2, **{k: v for k, v in flat(TINY).items() if k != "env"}}
    flags = [word for key, value in small.items() for word in (f"--{key.replace('_', '-')}", str(value).strip("[]"))]
    output = python("-m", "dreamer", *command.group(1).split(), *flags, "--run-dir", "runs/my-run")
    assert "shows vector int64 2, takes one of 4" in output
    act = block("Load and act").replace("obs as the", "# obs as the")
    print(python("-c", "import numpy as np\nobs = np.array([3, 4])\n" + act + "\nassert action in range(4)"))


def test_check_finds_it_sound(outside):
    _, python = outside
    assert "sound: 0 wrong" in python("-m", "dreamer", "check", "my_lab.envs:make", "--steps", "500")


def test_a_shipped_suite_runs_in_worker_processes(outside):
    _, python = outside
    program = (
        "from dreamer.config import load\nfrom dreamer.runtime.workers import make_workers\n"
        "config = load(overrides={'workers.backend': 'processes', 'workers.envs': 2, 'env': 'probes:counter'})\n"
        "workers = make_workers(config.workers, config.env, {}, action_repeat=1, seed=0)\n"
        "print(sorted(workers.spec.obs))\nworkers.close()"
    )
    assert "['vector']" in python("-c", program)


def test_a_shipped_preset_is_found_by_name_from_any_folder(outside):
    _, python = outside
    assert "env_steps: 30000" in python("-m", "dreamer", "train", "quickstart", "--print-config")


def test_presets_are_listed_and_the_references_are_there(outside):
    folder, python = outside
    assert "quickstart " in python("-m", "dreamer", "presets")
    found = python("-c", "from dreamer.shipped import folder; print(*(folder('experiments') / 'references').iterdir())")
    assert "crafter.csv" in found and str(folder / "installed") in found


def test_nothing_but_the_library_is_put_beside_other_packages(outside):
    folder, _ = outside
    found = {path.name for path in (folder / "installed").iterdir() if not path.name.endswith(".dist-info")}
    assert found - {"bin"} == {"dreamer"}
