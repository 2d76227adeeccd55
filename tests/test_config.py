"""dreamer/config.py and dreamer/coerce.py: layers, strictness, one-line errors, round trip."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
import pathlib
import subprocess
import sys
import textwrap
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer import config as configs
from dreamer.coerce import coerce, parse
from dreamer.config import Config, layer, load, overlay, similar_key, to_yaml
from dreamer.errors import UserError
from dreamer.fields import MAY_CHANGE, SAME_GROUP, get, has_mark, keys, marked, type_of


@pytest.fixture
def preset(tmp_path):
    """Writes a preset file and returns its path."""

    def write(text: str, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def error_of(*presets: str, **overrides: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(*presets, overrides=overrides, trust=True)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- layers


def test_later_presets_win_and_overrides_win_over_presets(preset):
    first = preset("seed: 1\nenv_steps: 10\nreplay_ratio: 2", "a.yaml")
    second = preset("env_steps: 20\nreplay_ratio: 4", "b.yaml")
    config = load(first, second, overrides={"replay_ratio": 8})
    assert (config.seed, config.env_steps, config.replay_ratio) == (1, 20, 8)


def test_a_preset_changes_only_what_it_names(preset):
    config, default = load(preset("agent: {world_model: {free_nats: 0.5}}")), Config()
    changed = [key for key in keys(config) if get(config, key) != get(default, key)]
    assert changed == ["agent.world_model.free_nats"]


def test_loading_leaves_the_defaults_as_they_were(preset):
    before = to_yaml(Config())
    load(preset("env_options: {a: 1}\nseed: 4"))
    assert to_yaml(Config()) == before


def test_an_empty_preset_is_no_difference(preset):
    assert load(preset("# nothing but a comment\n")) == Config()


def test_overrides_may_be_dotted_or_nested():
    dotted = load(overrides={"agent.world_model.free_nats": 0.5, "agent.world_model.deter": 64})
    nested = load(overrides={"agent": {"world_model": {"free_nats": 0.5, "deter": 64}}})
    assert dotted == nested != Config()


def test_dotted_and_nested_overrides_meet_and_stay_as_they_were_given():
    overrides = {
        "agent.world_model.deter": 64,
        "agent": {"world_model": {"free_nats": 0.5}},
        "agent.world_model.blocks": 4,
    }
    model = load(overrides=overrides).agent.world_model
    assert (model.deter, model.free_nats, model.blocks) == (64, 0.5, 4)
    assert overrides["agent"] == {"world_model": {"free_nats": 0.5}}


def test_env_options_merge_key_by_key_and_an_empty_mapping_empties_them(preset):
    first, second = preset("env_options: {a: 1, b: 2}", "a.yaml"), preset("env_options: {b: 3}", "b.yaml")
    assert load(first, second).env_options == {"a": 1, "b": 3}
    assert load(first, preset("env_options: {}")).env_options == {}


# ---- plug-ins


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Writes lab.model, a world model of the user, into the current folder."""
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "model.py").write_text(
        textwrap.dedent("""
            import dataclasses

            @dataclasses.dataclass(frozen=True)
            class Config:
                name: str = "x"
                width: int = 7

                def __post_init__(self):
                    if self.width % 2 == 0:
                        raise ValueError("width must be odd")
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    for name in ("lab", "lab.model"):
        sys.modules.pop(name, None)


def test_another_name_brings_the_config_of_that_plug_in(preset, lab):
    path = preset("agent: {world_model: {width: 9, name: lab.model}}")
    model = load(path, trust=True).agent.world_model
    assert (type(model).__module__, model.name, model.width) == ("lab.model", "lab.model", 9)
    assert load(path, preset("agent: {world_model: {width: 11}}", "b.yaml"), trust=True).agent.world_model.width == 11
    saved = preset(to_yaml(load(path, trust=True)), "saved.yaml")
    assert load(saved, trust=True) == load(path, trust=True)
    assert "agent.world_model.deter" in error_of(path, **{"agent.world_model.deter": 8})


def test_the_same_name_keeps_what_was_set(preset):
    config = load(preset("agent: {world_model: {deter: 64}}"), overrides={"agent.world_model.name": "rssm"})
    assert config.agent.world_model.deter == 64


def test_an_unknown_plug_in_names_key_origin_and_nearest(preset):
    text = error_of(preset("seed: 1\nagent:\n  world_model: {name: rsm}"))
    assert "agent.world_model.name" in text and "mine.yaml:3" in text and "'rssm'" in text


# ---- errors


@pytest.mark.parametrize(
    "text, parts",
    [
        ("sed: 3", ["unknown key 'sed'", "mine.yaml:1", "'seed'"]),
        ("eval.episodes: 3", ["unknown key 'eval.episodes'", "mine.yaml:1", "nest it: eval: {episodes: ..}"]),
        ("seed: 1\nagent:\n  world_model:\n    free_nat: 3", ["'agent.world_model.free_nat'", "mine.yaml:4", "nats"]),
        ("free_nats: 3", ["'free_nats'", "'agent.world_model.free_nats'"]),
        ("seed: 1.5", ["seed", "whole number (int)", "1.5", "mine.yaml:1"]),
        ("seed: true", ["seed", "whole number (int)", "True"]),
        ("lockstep: 1", ["lockstep", "true or false (bool)", "1"]),
        ("lockstep: yes", ["lockstep", "true or false (bool)", "'yes'"]),
        ("replay_ratio: fast", ["replay_ratio", "number (float)", "'fast'"]),
        ("replay_ratio: .nan", ["replay_ratio", "number (float)"]),
        ("replay_ratio: .inf", ["replay_ratio", "at least 0"]),
        ("run_dir: 2024", ["run_dir", "text (str)", "2024"]),
        ("env_options: 3", ["env_options", "mapping", "3"]),
        ("agent: 3", ["agent", "mapping", "3"]),
        ("seed: {a: 1}", ["seed", "whole number"]),
        ("log:\n  wandb: offlin", ["log.wandb", "off, offline, online", "'offlin'", "mine.yaml:2", "'offline'"]),
        ("agent: {world_model: {mults: [2, 3.5]}}", ["agent.world_model.mults", "list, each a whole number", "3.5"]),
        ("agent: {world_model: {mults: 2}}", ["agent.world_model.mults", "list, each a whole number", "2"]),
        ("env_steps: 0", ["env_steps", "at least 1", "0", "mine.yaml:1"]),
        ("replay_ratio: -1", ["replay_ratio", "at least 0", "-1"]),
        ("replay:\n  context: 2", ["replay.context", "from 0 to 1", "2", "mine.yaml:2"]),
        ("replay: {batch_size: 0}", ["replay.batch_size", "at least 1"]),
        ("env: ''", ["env", "mine.yaml:1"]),
        ("seed: 1\nseed: 2", ["mine.yaml:2", "'seed' is given twice"]),
        ("agent:\n  world_model: {deter: 8, deter: 8}", ["mine.yaml:2", "'deter' is given twice"]),
        ("seed: 1\nlog: [", ["mine.yaml:", "not valid YAML"]),
        ("- seed", ["mine.yaml", "mapping"]),
        ("!!python/object:os.system {}", ["mine.yaml:1", "not valid YAML"]),
        ("? [a]\n: 1", ["mine.yaml:1", "plain name"]),
        ("1: 2", ["unknown key '1'"]),
        ("seed: !!int x", ["mine.yaml", "not valid YAML"]),
        ("env_options: &a {b: *a}", ["mine.yaml", "not valid YAML"]),
        (
            "agent: {world_model: {name: dreamer.errors}}",
            ["agent.world_model.name", "'dreamer.errors'", "no dataclass Config"],
        ),
    ],
)
def test_a_wrong_preset_ends_with_one_line_that_names_the_cause(preset, text, parts):
    message = error_of(preset(text))
    for part in parts:
        assert part in message, message


def test_a_missing_preset_names_the_nearest_file(preset):
    path = preset("seed: 1", "size12m.yaml")
    assert repr(path) in error_of(path.replace("size12m", "size21m"))


def test_a_preset_that_is_a_folder_or_no_text_is_one_line(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in error_of(str(tmp_path))
    assert "UTF-8" in error_of(str(tmp_path / "bytes.yaml"))
    assert "no folder" in error_of(str(tmp_path / "nowhere" / "a.yaml"))


def test_python_values_are_checked_too():
    with pytest.raises(UserError, match="env_steps must be at least 1, not 0"):
        Config(env_steps=0)
    with pytest.raises(UserError, match="replay_ratio"):
        dataclasses.replace(Config(), replay_ratio="much")


def test_a_refusal_of_a_nested_config_keeps_its_origin(preset, lab):
    message = error_of(preset("agent:\n  world_model:\n    name: lab.model\n    width: 8"))
    assert "width must be odd" in message and "mine.yaml:4" in message


def test_a_refusal_that_names_no_field_is_about_the_whole_plug_in(preset, tmp_path, monkeypatch):
    (tmp_path / "strict").mkdir()
    (tmp_path / "strict" / "model.py").write_text(
        "import dataclasses\n\n@dataclasses.dataclass(frozen=True)\nclass Config:\n    name: str = 'x'\n"
        "    width: int = 1\n\n    def __post_init__(self):\n        if self.width > 9:\n"
        "            raise ValueError('too wide for any machine')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    message = error_of(preset("agent:\n  world_model:\n    name: strict.model\n    width: 10"))
    assert "agent.world_model: too wide for any machine (from " in message


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("agent.world_model.deter", 100, "deter must be a multiple of blocks (8), not 100"),
        ("agent.world_model.blocks", 3, "deter must be a multiple of blocks (3), not 512"),
        ("agent.world_model.stoch", 0, "stoch must be at least 1, not 0"),
        ("agent.world_model.bins", 4, "bins must be odd, not 4"),
        ("agent.world_model.mults", [2, 0], "mults must be at least 1, not 0"),
        ("agent.world_model.mults", [], "mults must have at least one stage"),
        ("agent.world_model.unimix", 1.5, "unimix must be from 0 to 1, not 1.5"),
        ("agent.behavior.bins", 1, "bins must be at least 3, not 1"),
        ("agent.behavior.imagine_length", 0, "imagine_length must be at least 1, not 0"),
        ("agent.behavior.maxstd", 0.05, "maxstd must be at least 0.1, not 0.05"),
        ("agent.behavior.lam", -0.5, "lam must be from 0 to 1, not -0.5"),
        ("agent.horizon", 0, "horizon must be at least 1, not 0.0"),
        ("agent.optimizer.beta1", 1.1, "beta1 must be from 0 to 1, not 1.1"),
        ("replay.batch_length", 1, "batch_length must be at least 2, not 1"),
    ],
)
def test_a_number_that_no_agent_can_have_is_refused_with_its_key(key, value, reason):
    with pytest.raises(UserError) as error:
        load(overrides={key: value})
    assert str(error.value) == f"{key.rpartition('.')[0]}.{reason} (from overrides)"


RANGED = """
import dataclasses
from typing import Annotated

from dreamer.fields import at_least, between

@dataclasses.dataclass(frozen=True)
class Inner:
    rate: Annotated[float, between(0, 1)] = 0.5

@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "x"
    width: Annotated[int | None, at_least(1)] = None
    stages: Annotated[tuple[int, ...], at_least(2)] = (2, 3)
    inner: Inner = Inner()
"""


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("width", 0, "width must be at least 1, not 0"),
        ("stages", (2, 1), "stages must be at least 2, not 1"),
        ("inner", {"rate": 1.5}, "inner.rate must be from 0 to 1, not 1.5"),
    ],
)
def test_a_plug_in_of_the_users_own_may_declare_ranges(preset, lab, tmp_path, key, value, reason):
    (tmp_path / "lab" / "model.py").write_text(RANGED)
    named = {"agent.world_model.name": "lab.model"}
    assert load(overrides={**named, "agent.world_model.width": 3}).agent.world_model.width == 3
    with pytest.raises(UserError) as error:
        load(overrides={**named, f"agent.world_model.{key}": value})
    assert str(error.value) == f"agent.world_model.{reason} (from overrides)"


def test_ranges_of_a_plug_in_hold_for_values_given_in_python(lab, tmp_path):
    (tmp_path / "lab" / "model.py").write_text(RANGED)
    config = load(overrides={"agent.world_model.name": "lab.model"})
    model = dataclasses.replace(config.agent.world_model, stages=(2, 0))
    with pytest.raises(UserError, match="^agent.world_model.stages must be at least 2, not 0$"):
        dataclasses.replace(config, agent=dataclasses.replace(config.agent, world_model=model))


# ---- types


@pytest.mark.parametrize(
    "value, kind, expected",
    [
        (1e6, int, 1_000_000),
        ("1e6", int, 1_000_000),
        ("1_000", int, 1000),
        (3, float, 3.0),
        ("7e-4", float, 7e-4),
        (True, bool, True),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([], tuple[int, ...], ()),
        ([1, 2], tuple[int, int], (1, 2)),
        ([1, 2], list[float], [1.0, 2.0]),
        ("a", Literal["a", "b"], "a"),
        (None, str | None, None),
        ("a", str | None, "a"),
        (1, int | float, 1),
        (1.5, int | float, 1.5),
        ({"a": 1}, dict[str, Any], {"a": 1}),
        ({"a": 1}, dict, {"a": 1}),
        ("x", Any, "x"),
        (None, Any, None),
        (9007199254740993, int, 9007199254740993),
        ("9007199254740993", int, 9007199254740993),
    ],
)
def test_values_become_their_declared_type(value, kind, expected):
    result = coerce(value, kind)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    "value, kind",
    [
        (True, int),
        (1, bool),
        ("true", bool),
        (True, float),
        (1.5, int),
        ("", int),
        ("1e400", int),
        (None, int),
        (1, str),
        ("ab", tuple[str, ...]),
        ([1], tuple[int, int]),
        ([1, True], tuple[int, ...]),
        ("c", Literal["a", "b"]),
        (True, Literal[0, 1]),
        ({1: 2}, dict[str, Any]),
        ([], dict),
        ({"a": "b"}, dict[str, int]),
        (float("nan"), float),
    ],
)
def test_values_of_another_type_are_refused(value, kind):
    with pytest.raises(ValueError):
        coerce(value, kind)


@settings(deadline=None)
@given(st.integers() | st.floats(allow_nan=False) | st.text())
def test_a_number_is_never_changed_by_becoming_an_int(value):
    try:
        result = coerce(value, int)
    except ValueError:
        return
    assert type(result) is int
    assert result == value if not isinstance(value, str) else float(result) == float(value)


@pytest.mark.parametrize(
    "words, kind, expected",
    [
        (["off"], Literal["off", "on"], "off"),
        (["12"], str, "12"),
        (["12"], int, 12),
        (["1e6"], int, 1e6),
        (["null"], str | None, "null"),
        (["true"], bool, True),
        (["2"], tuple[int, ...], [2]),
        (["2", "3"], tuple[int, ...], [2, 3]),
        (["[2, 3]"], tuple[int, ...], [2, 3]),
        (["{a: 1}"], dict[str, Any], {"a": 1}),
        (["64", "64"], Any, [64, 64]),
        (["[1"], Any, "[1"),
        (["#fff"], Any, "#fff"),
        (["off"], Any, "off"),
        (["12:30"], Any, "12:30"),
    ],
)
def test_the_words_of_a_flag_become_what_a_preset_would_hold(words, kind, expected):
    assert parse(words, kind) == expected


def test_type_of_knows_fields_entries_and_groups():
    config = load(overrides={"env_options": {"size": 3}})
    assert type_of(config, "seed") is int
    assert type_of(config, "agent.world_model.mults") == tuple[int, ...]
    assert type_of(config, "env_options.anything") is Any
    assert type_of(config, "agent.world_model") is type(config.agent.world_model)
    for key in ("sed", "seed.x", "agent.nothing.at_all", ""):
        assert type_of(config, key) is None


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("sed", "seed"),
        ("free_nats", "agent.world_model.free_nats"),
        ("agent.worldmodel.deter", "agent.world_model.deter"),
        ("envs", "workers.envs"),
        ("wandb", "log.wandb"),
        ("agent.optimizer.lr", "agent.optimizer.learning_rate"),
        ("lr", "agent.optimizer.learning_rate"),
        ("discount", "agent.horizon"),
        ("batch", "replay.batch_size"),
        ("ratio", "replay_ratio"),
        ("total_timesteps", "env_steps"),
        ("num_envs", "workers.envs"),
        ("logdir", "run_dir"),
        ("task", "env"),
        ("qqqqqqq", None),
    ],
)
def test_the_nearest_key_is_a_field_of_that_name_or_spelling(wrong, right):
    assert similar_key(Config(), wrong) == right


# ---- round trip


def test_the_resolved_config_is_itself_a_preset(preset):
    options = {"size": [64, 64], "b": None}
    config = load(overrides={"seed": 3, "agent.world_model.mults": [1, 2], "env_options": options})
    assert load(preset(to_yaml(config))) == config
    assert to_yaml(load(preset(to_yaml(config)))) == to_yaml(config)


def test_the_resolved_config_holds_every_key():
    saved = yaml.safe_load(to_yaml(Config()))
    for key in keys(Config()):
        get(saved, key)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
names = st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=1)
numbers = st.integers(-128, 127).map(np.int8) | st.floats(width=32, allow_nan=False).map(np.float32)
nested = st.recursive(
    scalars | numbers | st.lists(st.integers(-9, 9)).map(np.array),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(-9, 9), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: not twice(value))
options = st.dictionaries(names, nested)


def twice(value: Any) -> bool:
    """Whether a mapping in `value` has two keys with the same text, such as 1 and "1"."""
    if isinstance(value, dict):
        return len({str(key) for key in value}) < len(value) or any(map(twice, value.values()))
    return isinstance(value, list) and any(map(twice, value))


@settings(deadline=None, max_examples=25)
@given(options, st.text(min_size=1), st.floats(0, 1e30), st.integers(0, 2**31 - 1))
def test_any_value_survives_the_round_trip(tmp_path_factory, env_options, env, ratio, seed):
    config = Config(env_options=env_options, env=env, replay_ratio=ratio, seed=seed)
    path = tmp_path_factory.mktemp("round") / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load(str(path), trust=True) == config


@pytest.mark.parametrize("text", ["off", "yes", "7e-4", "1_0", "12:30", "null", "", "2001-01-01", "0x1f", "~", "a: b"])
def test_text_that_looks_like_something_else_stays_text_for_every_reader_of_yaml(text, preset):
    saved = to_yaml(Config(env_options={"text": text}))
    assert yaml.safe_load(saved)["env_options"]["text"] == text
    assert load(preset(saved), trust=True).env_options["text"] == text


# ---- values from Python


class Level(enum.Enum):
    LOW = 1


@pytest.mark.parametrize(
    ("given", "held"),
    [
        (np.int64(3), 3),
        (np.float32(0.1), 0.10000000149011612),
        (np.bool_(True), True),
        (np.array([[1, 2], [3, 4]], np.int8), [[1, 2], [3, 4]]),
        (np.array("x"), "x"),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        ((1, (2, 3)), [1, [2, 3]]),
        (enum.IntEnum("Two", {"B": 2}).B, 2),
        (enum.StrEnum("Text", {"B": "b"}).B, "b"),
        (collections.OrderedDict(a=np.int32(1)), {"a": 1}),
        ({np.int64(1): "x"}, {1: "x"}),
        (math.inf, math.inf),
    ],
)
def test_what_python_gives_as_an_option_is_held_exactly(given, held, preset):
    config = Config(env_options={"x": given})
    assert repr(config.env_options) == repr({"x": held})
    assert load(preset(to_yaml(config)), trust=True) == config == load(overrides={"env_options.x": given})


def holds_itself() -> dict:
    one: dict = {}
    one["a"] = one
    return one


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (object(), ["env_options.x is a object"]),
        ({"a": [1, {2}]}, ["env_options.x.a[1] is a set"]),
        (Level.LOW, ["env_options.x is a", "Level"]),
        (len, ["env_options.x is a builtin_function"]),
        (b"x", ["env_options.x is a bytes"]),
        (1 + 2j, ["env_options.x is a complex"]),
        (np.datetime64("2020-01-01", "ns"), ["env_options.x is a numpy.datetime64"]),
        (math.nan, ["env_options.x is nan"]),
        ([10**5000], ["env_options.x[0] is a whole number too large"]),
        ({(1, 2): 3}, ["env_options.x has the key (1, 2), a tuple"]),
        ({1: 2, "1": 3}, ["env_options.x has two keys with the same text"]),
        (holds_itself(), ["env_options", "is nested", "or holds itself"]),
    ],
)
def test_what_no_preset_can_hold_is_refused_by_its_place(given, parts):
    for make in (lambda: Config(env_options={"x": given}), lambda: load(overrides={"env_options.x": given})):
        with pytest.raises(UserError) as caught:
            make()
        assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


def test_every_field_takes_the_numbers_of_numpy_and_paths(preset):
    replay = dataclasses.replace(Config().replay, batch_size=np.int64(4))
    config = Config(
        seed=np.int64(3), lockstep=np.bool_(True), replay_ratio=np.float64(2), run_dir=pathlib.Path("a"), replay=replay
    )
    assert (config.run_dir, type(config.seed), type(config.replay.batch_size)) == ("a", int, int)
    assert load(preset(to_yaml(config))) == config


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"agent": 3}, "agent must be a Config"),
        ({"replay": None}, "replay must be a Config, not None"),
        ({"env_steps": 10**400}, "env_steps must be a whole number of at most 64 bits"),
        ({"replay_ratio": 10**400}, "replay_ratio must be a number"),
        ({"env": 3}, "env must be text"),
        ({"env_options": [1]}, "env_options must be a mapping"),
    ],
)
def test_a_field_of_another_type_is_refused_by_its_name(fields, part):
    with pytest.raises(UserError, match=part):
        Config(**fields)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: load({"seed": 3}), "overrides="),
        (lambda: load(3), "a preset is a file or a name, not 3"),
        (lambda: load(overrides=3), "overrides must be a mapping"),
        (lambda: configs.expect_config("x.yaml", "dreamer.train"), r"dreamer.train\(dreamer.load_config\('x.yaml'\)\)"),
        (lambda: configs.expect_config(pathlib.Path("x.yaml"), "dreamer.train"), r"load_config\('x.yaml'\)"),
        (lambda: configs.expect_config({"seed": 3}, "dreamer.train"), "load_config.overrides="),
    ],
)
def test_a_call_with_something_else_says_how_to_call_it(call, part):
    with pytest.raises(UserError, match=part):
        call()


# ---- a plug-in that replaces another


def test_a_plug_in_keeps_what_earlier_layers_set_as_far_as_it_fits(preset, lab, tmp_path):
    (tmp_path / "lab" / "model.py").write_text(
        textwrap.dedent("""
            import dataclasses

            @dataclasses.dataclass(frozen=True)
            class Inner:
                rate: float = 1.0
                gone: int = 0

            @dataclasses.dataclass(frozen=True)
            class Config:
                name: str = "x"
                deter: int = 7
                units: str = "text"
                blocks: int = 7
                inner: Inner = Inner()

                def __post_init__(self):
                    if self.deter % self.blocks:
                        raise ValueError("deter must be a multiple of blocks")
        """)
    )
    first = preset("agent:\n  world_model: {deter: 64, blocks: 4, units: 8,\n    hidden: 8}", "first.yaml")
    notes: list[str] = []
    model = load(first, overrides={"agent.world_model.name": "lab.model"}, note=notes.append).agent.world_model
    assert (model.deter, model.blocks, model.units) == (64, 4, "text")
    assert len(notes) == 1 and "units = 8 (from" in notes[0] and "hidden = 8" in notes[0] and "first.yaml:3" in notes[0]
    later = preset("agent: {world_model: {name: lab.model, inner: {rate: 2}}}", "later.yaml")
    own = {"agent.world_model.deter": 8}
    both = load(first, later, overrides=own, note=notes.append, trust=True).agent.world_model
    assert (both.deter, both.blocks, both.inner.rate) == (8, 4, 2.0)


def test_a_value_that_equals_the_old_default_is_kept_too(preset, lab):
    path = preset("agent: {behavior: {units: 64}, world_model: {unimix: 0.5}}")
    config = load(path, overrides={"agent.behavior.name": "dreamer.behaviors.actor_critic"})
    assert config.agent.behavior.units == 64 and config.agent.world_model.unimix == 0.5


def test_an_own_key_beside_the_name_is_not_forgiven(preset, lab):
    assert "'agent.world_model.deter'" in error_of(preset("agent: {world_model: {name: lab.model, deter: 8}}"))


# ---- house rules


def test_nothing_that_an_agent_learns_from_may_change_at_a_resume():
    free = {key.partition(".")[0] for key in keys(Config()) if has_mark(Config(), key, MAY_CHANGE)}
    places = {"run_dir", "loop", "collect", "workers", "replay", "log", "eval", "checkpoint", "devices", "population"}
    assert free == places | {"env_steps", "updates", "updates_per_call"}
    held = ["workers.envs", "replay.capacity_steps", "replay.batch_size", "replay.batch_length", "replay.priority"]
    assert not any(has_mark(Config(), key, MAY_CHANGE) for key in held)


def test_the_mark_of_a_group_is_that_of_its_fields():
    found = [*marked(Config(), SAME_GROUP)]
    assert "log" in found and "log.every" not in found
    assert has_mark(Config(), "log.every", SAME_GROUP) and not has_mark(Config(), "eval.every", SAME_GROUP)


def test_plug_in_places_hold_a_name():
    for path in configs.PLUGINS:
        assert isinstance(get(Config(), path).name, str)


def test_importing_the_config_imports_no_jax():
    program = "import sys, dreamer.config; assert not {'jax', 'flax', 'orbax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_overlay_names_the_flag_that_each_value_came_from():
    flags = layer({"log.every": "x"}, "the command line", {"log.every": "--log.every"})
    with pytest.raises(UserError, match=r"log.every must be a number \(float\), not 'x' \(from --log.every\)"):
        overlay(Config(), flags)
