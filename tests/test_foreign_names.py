"""Configs from a stranger and modules in the current folder run no code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_runs import tiny

import dreamer
from dreamer import plugins, trust
from dreamer.coerce import Loader
from dreamer.config import load
from dreamer.errors import UserError
from dreamer.runtime.run import resume

pytestmark = pytest.mark.usefixtures("quick")

ROOT = Path(__file__).parent.parent


def foreign(text: str) -> list[str]:
    """Returns the keys of the foreign names in a config."""
    return [key for key, _ in trust.foreign(yaml.load(text, Loader), plugins.suite_names())]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("workers: {backend: ray, address: 'ray://stranger:10001'}", "workers.address"),
        ("workers: {address: 'stranger:6379'}", "workers.address"),
        ("devices: {coordinator: 'stranger:1234'}", "devices.coordinator"),
        ("env_options: {x: 'ümod:make'}", "env_options.x"),
        ("env_options: {x: ' my_lab:make'}", "env_options.x"),
        ("env_options: {x: [{y: '~root/x'}]}", "env_options.x.y"),
        ("env_options: {x: ./scene.xml}", "env_options.x"),
        ("env_options: {x: runs/downloaded/level}", "env_options.x"),
        ("env_options: {x: scene.xml}", "env_options.x"),
        ("env_options: {'my_lab:make': 1}", "env_options"),
        ("env: 'mujoco:ümod:Ant-v5'", "env"),
        ("env: 'mujoco: my_lab:Ant-v5'", "env"),
        ("agent: {world_model: {encoder: 'dreamer.nets.encoder:np.ctypeslib'}}", "agent.world_model.encoder"),
        ("agent: {world_model: {name: 'dreamer.nets.encoder:jax.numpy'}}", "agent.world_model.name"),
    ],
)  # fmt: skip
def test_names_that_may_lead_to_code_need_permission(text, key):
    assert foreign(text) == [key]


@pytest.mark.parametrize(
    "text",
    [
        "workers: {backend: ray, address: auto}", "workers: {address: ''}", "devices: {coordinator: auto}",
        "env_options: {map_name: 4x4, desc: [SFFF, FHFH], ratio: '4:3', version: v1.5, view: whole, size: [64, 64]}",
        "env: bsuite:deep_sea/0", "env: dmc:walker-walk", "env: ALE/Pong-v5",
        "agent: {world_model: {name: dreamer.world_models.rssm, encoder: 'dreamer.nets.encoder:make'}}",
    ],
)  # fmt: skip
def test_names_that_lead_to_no_code_need_no_permission(text):
    assert not foreign(text)


def test_the_shipped_presets_need_no_permission():
    from dreamer import shipped

    for file in shipped.presets().values():
        assert not foreign(file.read_text()), file


@pytest.mark.parametrize("value", ["!!binary L2V0Yy9wYXNzd2Q=", "!!set {'my_lab:make': null}", "2026-01-01x: 1"])
def test_values_that_are_no_plain_text_are_refused(tmp_path, value):
    (tmp_path / "stranger.yaml").write_text(f"env_options: {{x: {value}}}\n")
    with pytest.raises(UserError):
        load(tmp_path / "stranger.yaml")


def test_an_address_that_the_command_names_is_taken(tmp_path):
    (tmp_path / "theirs.yaml").write_text("workers: {backend: ray, address: '10.0.0.1:6379'}\n")
    with pytest.raises(UserError, match="workers.address is '10.0.0.1:6379'"):
        load(tmp_path / "theirs.yaml")
    assert load(tmp_path / "theirs.yaml", overrides={"workers.address": "auto"}).workers.address == "auto"
    assert load(tmp_path / "theirs.yaml", trust=True).workers.address == "10.0.0.1:6379"


def test_plug_ins_of_installed_packages_are_not_looked_for_in_the_current_folder(tmp_path):
    marker = tmp_path / "it ran"
    folder = tmp_path / "stranger"
    (folder / "jax_plugins" / "theirs").mkdir(parents=True)
    (folder / "theirs-1.0.dist-info").mkdir()
    (folder / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (folder / "theirs-1.0.dist-info" / "entry_points.txt").write_text(
        "[gymnasium.envs]\n__root__ = theirs:go\n[jax_plugins]\ntheirs = theirs\n"
    )
    for file in (folder / "jax_plugins" / "theirs" / "__init__.py", folder / "theirs.py"):
        file.write_text(f"open({str(marker)!r}, 'w')\ndef go(): pass\n")
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from dreamer import Config, plugins; Config(); "
        "plugins.make_env('probes:both'); plugins.make_env('CartPole-v1'); import jax; jax.devices()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not marker.exists()


def test_the_current_folder_is_on_the_path_for_code_of_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("CartPole-v1", "probes:both"):
        plugins.add_folder_for(name)
    plugins.load("dreamer.errors")
    plugins.load("rssm", "dreamer.world_models")
    assert str(tmp_path) not in sys.path
    plugins.add_folder_for("my_lab.envs:make")
    assert sys.path[-1] == str(tmp_path)


# ---- links in a run directory


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return dreamer.train(
        tiny(folder / "run", env="probes:both", eval__episodes=0, log__tensorboard=False, env_steps=40)
    )


@pytest.mark.parametrize(
    "place", ["rows/rows-000000001.dreamer.unfinished", "pictures/openloop_000000048.png.unfinished"]
)
def test_a_resume_writes_through_no_link(tmp_path, made, place):
    run, victim = shutil.copytree(made, tmp_path / "run"), tmp_path / "victim"
    victim.write_text("mine")
    (run / place).parent.mkdir(exist_ok=True)
    (run / place).symlink_to(victim)
    with pytest.raises(UserError, match="leads out of the run directory"):
        resume.find(run)
    assert victim.read_text() == "mine"


def test_a_pipe_deep_in_a_run_directory_is_named(tmp_path, made):
    run = shutil.copytree(made, tmp_path / "run")
    os.mkfifo(run / "rows" / "state-000000000048.dreamer.unfinished")
    with pytest.raises(UserError, match="state-000000000048.dreamer.unfinished is neither a file nor a folder"):
        resume.find(run)


def test_a_link_inside_of_a_run_directory_is_allowed(tmp_path, made):
    run = shutil.copytree(made, tmp_path / "run")
    (run / "newest").symlink_to("rows")
    assert resume.find(run)
