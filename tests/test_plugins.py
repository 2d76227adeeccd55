"""Names are resolved to objects, and wrong names raise one clear line."""

import sys

import gymnasium
import pytest

from dreamer import gymnasium_ids, plugins
from dreamer.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Changes into an empty folder, as a user would, and forgets the modules that the test imports from it."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_short_name_is_a_module_of_the_package():
    assert plugins.load("steps", "dreamer").__name__ == "dreamer.steps"


def test_dotted_name_is_found_in_the_current_folder(folder):
    (folder / "my_lab").mkdir()
    (folder / "my_lab" / "models.py").write_text("def make():\n    return 3\n")
    assert plugins.load("my_lab.models", "dreamer.runtime").make() == 3
    assert plugins.load("my_lab.models:make")() == 3


def test_current_folder_is_put_on_the_path_once(folder):
    plugins.add_current_folder()
    plugins.add_current_folder()
    assert sys.path.count(str(folder)) == 1


@pytest.mark.parametrize(
    "name, package, message",
    [
        ("stepz", "dreamer", "'stepz' in dreamer.*did you mean 'steps'"),
        ("dreamer.runtimo.steps", None, "did you mean 'runtime'"),
        ("dreamer.spaces:Spac", None, "'dreamer.spaces' has no 'Spac'.*did you mean 'Space'"),
        ("dreamer.spaces:", None, "not a module name"),
        ("", None, "not a module name"),
    ],
)
def test_unknown_name_gets_the_nearest_one(name, package, message):
    with pytest.raises(UserError, match=message):
        plugins.load(name, package)


@pytest.mark.parametrize(
    "source, cause",
    [
        ("import surely_not_installed", "No module named 'surely_not_installed'"),
        ("from json import surely_not_there", "cannot import name 'surely_not_there'"),
        ("x = 1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
    ],
)
def test_module_that_fails_to_import_is_not_called_missing(folder, source, cause):
    (folder / "broken_models.py").write_text(f"\n{source}\n")
    with pytest.raises(UserError) as caught:
        plugins.load("broken_models")
    message = str(caught.value)
    assert "'broken_models' failed to import" in message and cause in message and "line 2" in message
    assert "\n" not in message and caught.value.__cause__ is not None


def test_gymnasium_id_is_made_with_its_options_and_time_limit():
    env = plugins.make_env("CartPole-v1", {"max_episode_steps": 7})
    assert env.spec.max_episode_steps == 7


def test_gymnasium_id_of_a_module_is_registered_by_importing_it(folder):
    (folder / "my_mazes.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('TestMaze-v0', CartPoleEnv)\n"
    )
    try:
        assert plugins.make_env("my_mazes:TestMaze-v0").spec.id == "TestMaze-v0"
    finally:
        gymnasium.registry.pop("TestMaze-v0", None)


def test_suite_gets_the_task_and_the_options():
    assert plugins.make_env("probes:counter", {"steps": 3}).steps == 3


FACTORY = """
import gymnasium
def make(width=1, render_mode=None):
    env = gymnasium.Env()
    env.observation_space = env.action_space = gymnasium.spaces.Discrete(width)
    env.asked = render_mode
    return env
def plain():
    return make()
def bad():
    raise KeyError("abc")
def nothing():
    pass
def vector():
    return gymnasium.make_vec("CartPole-v1")
"""


@pytest.fixture
def factory(folder):
    (folder / "my_factory.py").write_text(FACTORY)
    (folder / "my_pack").mkdir()
    (folder / "my_pack" / "envs.py").write_text(FACTORY)


@pytest.mark.usefixtures("factory")
def test_factory_gets_the_options():
    assert plugins.make_env("my_pack.envs:make", {"width": 5}).action_space.n == 5
    assert plugins.make_env("my_factory:make", {"width": 6}).action_space.n == 6


@pytest.mark.usefixtures("factory")
def test_render_mode_reaches_only_factories_that_take_it():
    assert plugins.make_env("my_factory:make", {}, "rgb_array").asked == "rgb_array"
    assert plugins.make_env("my_factory:plain", {}, "rgb_array").asked is None


@pytest.mark.usefixtures("factory")
@pytest.mark.parametrize(
    "name, options, message",
    [
        ("Cartpol-v1", {}, "did you mean 'CartPole-v1'"),
        ("CartPole-v1", {"gravitty": 1}, "gravitty"),
        ("prob:counter", {}, "no suite envs/prob.py.*did you mean 'probes'"),
        ("probes:countr", {}, "did you mean 'counter'"),
        ("probes:counter", {"step": 3}, "takes no option 'step'; did you mean 'steps'"),
        ("no_lab.envs:make", {}, "no module 'no_lab'"),
        ("my_factory:mak", {}, "did you mean 'make'"),
        ("my_factory:bad", {}, "KeyError: 'abc' .*my_factory.py, line"),
        ("my_factory:nothing", {}, "returned a NoneType, not a gymnasium.Env"),
        ("my_factory:vector", {}, "is a vector environment"),
        ("Nowhere/Pong-v5", {}, "nothing here registers ids of 'Nowhere': name the module"),
        ("nowhere/Ant-v5", {}, "did you mean 'Ant-v5'"),
        ("my_factory:FACTORIES-v0", {}, "no registered gymnasium id"),
        ("", {}, "not a gymnasium id"),
        ("probes:", {}, "not a gymnasium id"),
    ],
)
def test_env_that_cannot_be_made_ends_with_one_line(name, options, message):
    sys.path.insert(0, str(plugins.__file__).rsplit("/", 2)[0])
    with pytest.raises(UserError, match=message) as caught:
        plugins.make_env(name, options)
    assert "\n" not in str(caught.value)


def test_missing_package_of_a_gymnasium_env_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"needs a package.*gymnasium\[box2d\]"):
        plugins.make_env("LunarLander-v3")


@pytest.mark.parametrize(
    ("name", "ours", "module"),
    [
        ("ALE/Pong-v5", "atari:pong (extra atari)", "ale_py:ALE/Pong-v5"),
        ("dm_control/cheetah-run-v0", "dmc:cheetah-run (extra dmc)", "shimmy:dm_control"),
        ("MiniGrid-Empty-5x5-v0", "minigrid:Empty-5x5-v0 (extra minigrid)", "minigrid:MiniGrid"),
        ("memory_maze/MemoryMaze-9x9-v0", "memory_maze:9x9 (extra memory-maze)", "memory_maze:memory_maze/"),
    ],
)
def test_an_id_of_a_package_that_is_not_imported_names_our_suite_and_the_package(monkeypatch, name, ours, module):
    prefix = name.partition("/" if "/" in name else "-")[0]
    known = {key: value for key, value in gymnasium.registry.items() if not key.startswith(prefix)}
    monkeypatch.setattr(gymnasium, "registry", known)
    hint = gymnasium_ids._nearest_id(name)
    assert ours in hint and module in hint and "did you mean" not in hint


@pytest.mark.usefixtures("folder")
def test_a_users_folder_named_envs_does_not_hide_a_suite(folder):
    (folder / "envs").mkdir()
    (folder / "envs" / "__init__.py").write_text("raise ImportError('not this one')")
    (folder / "envs" / "mine.py").touch()
    assert "probes" in plugins.suite_names() and "mine" not in plugins.suite_names()
    assert type(plugins.make_env("probes:counter")).__module__ == "dreamer.suites.probes"


def test_suites_are_the_files_of_the_folder():
    assert {"dmc", "atari", "crafter", "probes"} <= set(plugins.suite_names())


def test_helpers_of_the_suites_are_no_suites():
    assert not [name for name in plugins.suite_names() if name.startswith("_")]
    with pytest.raises(UserError, match="no suite envs/_suite.py"):
        plugins.make_env("_suite:extra")
