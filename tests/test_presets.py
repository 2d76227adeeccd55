"""experiments/*.yaml: each loads and contains only differences, and sizes follow the rules of the reference."""

from __future__ import annotations

import pathlib

import pytest
import yaml

from dreamer.config import Config, load, read_preset
from dreamer.fields import get, keys

FOLDER = pathlib.Path(__file__).parent.parent / "experiments"
PRESETS = sorted(FOLDER.glob("*.yaml"))
SIZES = [path for path in PRESETS if path.stem.startswith("size")]
HIDDEN = {"1m": 64, "12m": 256, "25m": 384, "50m": 512, "100m": 768, "200m": 1024, "400m": 1536}

every_preset = pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
every_size = pytest.mark.parametrize("path", SIZES, ids=lambda path: path.stem)


def leaves(path: pathlib.Path) -> dict:
    """Returns {dotted key: value} of a preset; env_options is one key."""
    held = read_preset(path).values
    found = {}
    for key in keys(load(path)):
        place = held
        for part in key.split("."):
            place = place.get(part, {}) if isinstance(place, dict) else {}
        if place != {}:
            found[key] = place
    return found


@every_preset
def test_a_preset_loads(path):
    assert isinstance(load(path), Config)


def numbers(value):
    """Converts every number in `value` to float, also a number written as text."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    try:
        return value if isinstance(value, bool) else float(value)
    except ValueError:
        return value


@every_preset
def test_a_preset_means_the_same_in_every_yaml_library(path):
    """Except for numbers such as 7e-4, which YAML 1.1 reads as text."""
    assert numbers(yaml.safe_load(path.read_text())) == numbers(read_preset(path).values)


# size1m repeats the default size, so that it can be applied over a larger one
@pytest.mark.parametrize("path", [path for path in PRESETS if path.stem != "size1m"], ids=lambda path: path.stem)
def test_a_preset_holds_differences_only(path):
    given = load(path)
    names = {key: get(given, key) for key in ("agent.world_model.name", "agent.behavior.name")}
    default = load(overrides=names)  # of the families that the preset chooses
    assert not [key for key in leaves(path) if key not in names and get(given, key) == get(default, key)]
    assert not [key for key in leaves(path) if key in names and names[key] == get(Config(), key)]


@every_preset
def test_a_preset_has_a_description_and_a_command(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert path.read_text().startswith("# ") and any(f"experiments/{path.name}" in line for line in comments)


def test_there_is_a_preset_for_each_size_and_suite():
    tasks = "quickstart debug dmc_proprio dmc_proprio_paper dmc_vision atari100k atari crafter".split()
    assert {path.stem for path in PRESETS} >= {f"size{size}" for size in HIDDEN} | set(tasks)


@every_size
def test_a_size_sets_the_same_keys_as_every_size(path):
    assert set(leaves(path)) == {
        "agent.world_model.deter", "agent.world_model.hidden", "agent.world_model.classes", "agent.world_model.depth",
        "agent.world_model.units", "agent.behavior.units",
    }  # fmt: skip


@every_size
def test_a_size_obeys_the_rules(path):
    model, behavior = load(path).agent.world_model, load(path).agent.behavior
    hidden = HIDDEN[path.stem.removeprefix("size")]
    assert (model.hidden, model.deter, model.units, behavior.units) == (hidden, 8 * hidden, hidden, hidden)
    assert (model.depth, model.classes, model.stoch, model.blocks) == (hidden // 16, hidden // 16, 32, 8)


def test_the_defaults_are_size_1m():
    assert load(FOLDER / "size1m.yaml") == Config()


def has_a_size(path: pathlib.Path) -> bool:
    """Whether a preset trains the RSSM and the actor-critic, whose sizes the presets of sizes give."""
    held, names = leaves(path), {"agent.world_model.name": "rssm", "agent.behavior.name": "actor_critic"}
    return all(held.get(key, name) == name for key, name in names.items())


@pytest.mark.parametrize("small", ["size1m", "size12m"])
@pytest.mark.parametrize("path", [*filter(has_a_size, PRESETS)], ids=lambda path: path.stem)
def test_a_size_laid_over_a_preset_wins(path, small):
    size = FOLDER / f"{small}.yaml"
    assert load(path, size).agent.world_model.deter == load(size).agent.world_model.deter


@pytest.mark.parametrize(
    "task, size, repeat, envs, ratio, env_steps",
    [
        ("dmc_proprio", "1m", 1, 16, 1024, 1.1e6), ("dmc_proprio_paper", "12m", 2, 16, 512, 250e3),
        ("dmc_vision", "200m", 1, 16, 256, 1.1e6), ("atari100k", "200m", 4, 1, 256, 1.1e5),
        ("atari", "200m", 4, 16, 32, 5.1e7), ("crafter", "200m", 1, 1, 512, 1.1e6),
    ],
)  # fmt: skip
def test_a_task_has_the_values_of_the_specification(task, size, repeat, envs, ratio, env_steps):
    config = load(FOLDER / f"{task}.yaml")
    assert (config.action_repeat, config.workers.envs, config.replay_ratio) == (repeat, envs, ratio)
    assert config.env_steps == env_steps
    assert config.agent == load(FOLDER / f"size{size}.yaml").agent
