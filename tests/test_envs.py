"""The suites: adapters work if their package is installed, and raise one clear line if not."""

import ast
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from dreamer import plugins
from dreamer.errors import UserError
from dreamer.runtime.env.rows import EnvRows
from dreamer.spaces import Space

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "envs").glob("*.py"))
# The package that a file wraps, if its name differs from the file.
OWN = {
    "dmc": {"dm_control", "mujoco"}, "_mujoco": {"mujoco"}, "atari": {"ale_py"}, "nethack": {"nle"}, "_nle": {"nle"},
    "playground": {"mujoco_playground"}, "car_racing": {"Box2D"},
}  # fmt: skip
JAX = {
    "_jax_suite", "jax_mazes", "jax_probes", "gymnax", "navix", "craftax", "brax", "playground", "jumanji", "pgx",
    "jaxmarl",
}  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_suite_imports_only_gymnasium_numpy_and_itself(file):
    """A suite of environments in JAX also imports jax, and the contract of such environments."""
    own = OWN.get(file.stem, {file.stem})
    if file.stem in JAX:
        own = own | {"jax", "dreamer"}
    allowed = {"gymnasium", "numpy", "PIL", "__future__"} | own | sys.stdlib_module_names
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] in allowed


@pytest.mark.parametrize(
    "name, package",
    [
        ("dmc:walker-walk", "dm_control"),
        ("atari:pong", "ale_py"),
        ("crafter:reward", "crafter"),
        ("minigrid:Empty-5x5-v0", "minigrid"),
        ("mujoco:HalfCheetah-v5", "mujoco"),
        ("bsuite:catch/0", "bsuite"),
        ("memory_maze:9x9", "memory_maze"),
        ("popgym:RepeatPreviousEasy", "popgym"),
        ("vizdoom:Basic", "vizdoom"),
        ("metaworld:reach-v3", "metaworld"),
    ],
)
def test_missing_package_names_the_extra(monkeypatch, name, package):
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Missing(package), *sys.meta_path])
    extra = name.split(":")[0].replace("_", "-")
    with pytest.raises(UserError, match=rf"needs the package '{package}'.*pip install \"\.\[{extra}\]\""):
        plugins.make_env(name)


def test_on_python_3_13_dm_control_is_installed_without_labmaze(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [Missing("dm_control"), *sys.meta_path])
    for module in [module for module in sys.modules if module.split(".")[0] == "dm_control"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    with pytest.raises(UserError, match="pip install --no-deps dm-control"):
        plugins.make_env("dmc:walker-walk")


class Missing:
    """An import finder for which one package is not installed."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_nethack_that_is_missing_comes_with_the_command_that_installs_it(monkeypatch):
    for module in [module for module in sys.modules if module.split(".")[0] == "nle"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Missing("nle"), *sys.meta_path])
    with pytest.raises(UserError, match="needs the package 'nle'.*pip install --no-deps nle"):
        plugins.make_env("nethack:Score")


class FakeCrafter:
    """The part of crafter.Env that the adapter uses: four values, and a discount in the info."""

    def __init__(self, size, reward, seed):
        self.size, self.seed, self.discount = size, seed, 1.0
        self._world = types.SimpleNamespace(_objects=[None])
        self.action_space = types.SimpleNamespace(n=17)

    def reset(self):
        self.time = 0
        return np.zeros((*self.size, 3), np.uint8)

    def step(self, action):
        self.time += 1
        discount = float(action != 3)
        return np.zeros((*self.size, 3), np.uint8), 0.5, self.time == 4 or discount == 0, {"discount": discount}


@pytest.mark.parametrize("action, steps, terminal", [(3, 1, True), (0, 4, False)])
def test_crafter_distinguishes_death_from_the_length_limit(monkeypatch, action, steps, terminal):
    monkeypatch.setitem(sys.modules, "crafter", types.SimpleNamespace(Env=FakeCrafter))
    rows = EnvRows(plugins.make_env("crafter:reward", {"size": [32, 32]}), seed=1)
    assert rows.spec.obs == {"image": Space((32, 32, 3), "uint8")} and rows.spec.action_width == 17
    last = [rows.step(np.eye(17, dtype=np.float32)[action]) for _ in range(steps + 1)][-1]
    assert last.is_last.item() and last.is_terminal.item() is terminal


class TestDMC:
    """Needs dm_control from the extra `dmc`; without it only the error line can be tested."""

    @pytest.fixture(autouse=True)
    def suite(self):
        try:
            from envs.dmc import _suite

            _suite()
        except ImportError:
            pytest.skip("the extra dmc is not installed")

    def test_vectors_by_key_with_scalars_as_one_number(self):
        rows = EnvRows(plugins.make_env("dmc:walker-walk"), seed=0)
        assert {key: space.shape for key, space in rows.spec.obs.items()} == {
            "height": (1,),
            "orientations": (14,),
            "velocity": (9,),
        }
        row = [rows.step(np.ones(6, np.float32)) for _ in range(2)][-1]
        assert all(array.dtype == np.float32 and array.any() for array in row.obs.values())

    @pytest.mark.parametrize("name", ["ball_in_cup-catch", "ball-in-cup-catch", "Ball_In_Cup_Catch"])
    def test_task_is_found_however_it_is_hyphenated(self, name):
        assert plugins.make_env(f"dmc:{name}").action_space.shape == (2,)

    def test_every_task_of_the_suite_has_one_name(self):
        from dm_control import suite

        from envs._suite import find_task

        names = [f"{domain}-{task}" for domain, task in suite.ALL_TASKS]
        assert all(find_task("dmc", name, names) == name for name in names)

    @pytest.mark.parametrize(
        "name, options, message",
        [
            ("dmc:walker-wlk", {}, "no task 'walker-wlk'; did you mean 'walker-walk'"),
            ("dmc:walker-walk", {"imag": True}, "no option 'imag'; did you mean 'image'"),
            ("dmc:walker-walk", {"proprio": False}, "no observation"),
        ],
    )
    def test_wrong_name_gets_the_nearest_one(self, name, options, message):
        with pytest.raises(UserError, match=message):
            plugins.make_env(name, options)

    def test_time_limit_is_not_a_true_end(self):
        rows = EnvRows(plugins.make_env("dmc:pendulum-swingup"), seed=0, action_repeat=10)
        episode = [rows.step(np.zeros(1, np.float32)) for _ in range(101)]
        assert [row.is_last.item() for row in episode] == [False] * 100 + [True]
        assert not episode[-1].is_terminal.item()

    def test_discount_zero_is_a_true_end(self):
        env = plugins.make_env("dmc:pendulum-swingup")
        env.reset(seed=0)
        env._env.task.get_termination = lambda physics: 0.0
        assert env.step(np.zeros(1, np.float32))[2:4] == (True, False)

    def test_seed_decides_the_episodes_that_follow(self):
        def play(seed):
            rows = EnvRows(plugins.make_env("dmc:reacher-hard"), seed=seed, action_repeat=500)
            return np.concatenate([rows.step(np.ones(2, np.float32)).obs["to_target"] for _ in range(6)])

        np.testing.assert_array_equal(play(3), play(3))
        assert (play(3) != play(4)).any()

    def test_vectors_need_no_graphics(self):
        code = (
            "import os, sys; before = dict(os.environ); from dreamer import plugins;"
            "env = plugins.make_env('dmc:cheetah-run'); env.reset(seed=0); env.step(env.action_space.sample());"
            "sys.exit(dict(os.environ) != before)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == ""

    def test_pictures_without_any_graphics_library_end_with_one_line(self, monkeypatch):
        for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
        monkeypatch.setattr(sys, "platform", "linux")
        with pytest.raises(UserError, match="cannot draw: no OpenGL library.*apt install"):
            plugins.make_env("dmc:walker-walk", {"image": True})

    @pytest.mark.parametrize("order", ["vectors first", "picture first"])
    def test_picture_is_drawn_without_a_screen(self, order):
        code = (
            "import numpy as np; from dreamer import plugins; from dreamer.runtime.env.rows import EnvRows\n"
            f"if {order!r} == 'vectors first': plugins.make_env('dmc:quadruped-walk')\n"
            "rows = EnvRows(plugins.make_env('dmc:quadruped-walk', {'image': True, 'size': [32, 48]}, 'rgb_array'))\n"
            "row = rows.step(np.zeros(12, np.float32)); assert list(row.obs) == ['image']\n"
            "assert row.obs['image'].shape == (1, 32, 48, 3) and row.obs['image'].std() > 10\n"
            "assert rows.render().shape == (240, 320, 3)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        if "no OpenGL library" in done.stderr:
            pytest.skip("no OpenGL library on this machine")
        assert done.returncode == 0, done.stderr
