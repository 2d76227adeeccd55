"""pyproject.toml and setup.cfg declare what the code needs, and install only the library."""

from __future__ import annotations

import ast
import configparser
import pathlib
import re
import sys
import tomllib

import thorough

import dreamer

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Import names that differ from the name of their package.
PACKAGES = {
    "yaml": "pyyaml", "PIL": "pillow", "haiku": "dm-haiku", "orbax": "orbax-checkpoint", "dm_control": "dm-control",
    "ale_py": "ale-py", "imageio_ffmpeg": "imageio", "memory_maze": "memory-maze",
    "mujoco_playground": "playground",
    "skimage": "scikit-image",
    "Box2D": "gymnasium",  # its extra box2d
}  # fmt: skip
# Their declared requirements conflict with ours, but they work; envs/minihack.py has the command to install them.
APART = {"nle", "minihack"}


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def third_party(folder: str) -> set[str]:
    """Returns the packages whose modules the files of `folder` import."""
    found = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    found -= sys.stdlib_module_names | {"dreamer"}
    return {PACKAGES.get(name, name).lower().replace("_", "-") for name in found}


def test_every_library_that_is_imported_is_a_dependency():
    optional = names(EXTRAS["distributed"]) | names(EXTRAS["report"]) | names(EXTRAS["slurm"])
    optional |= names(EXTRAS["data"]) | names(EXTRAS["video"]) | names(EXTRAS["evolution"])
    assert third_party("dreamer") <= names(PROJECT["dependencies"]) | optional


def test_every_suite_file_has_the_extra_that_it_imports():
    for file in (ROOT / "envs").glob("*.py"):
        name = file.stem.replace("_", "-")
        if name in EXTRAS:
            assert names(EXTRAS[name]), file.name
    extras = set().union(*(names(requirements) for requirements in EXTRAS.values()))
    assert third_party("envs") <= names(PROJECT["dependencies"]) | extras | APART


def test_no_extra_has_an_underscore_which_older_pips_do_not_find():
    assert not [name for name in EXTRAS if "_" in name]


def test_the_library_its_suites_and_its_presets_are_packaged_and_nothing_else():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    code = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "dreamer").rglob("*.py")}
    assert set(setup["options"]["packages"].split()) == code | {"dreamer.envs", "dreamer.experiments"}


def test_every_folder_of_the_library_is_a_package():
    for file in (ROOT / "dreamer").rglob("*.py"):
        assert (file.parent / "__init__.py").exists(), f"{file.parent} would be left out of the wheel"


def test_the_version_is_the_same_everywhere():
    assert dreamer.__version__ == PROJECT["version"]


def test_the_public_names_exist():
    for name in dreamer.__all__:
        assert getattr(dreamer, name) is not None


def test_the_command_exists():
    module, _, function = PROJECT["scripts"]["dreamer"].partition(":")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_thorough_test_exists():
    """So a renamed test cannot enter the quick set unnoticed."""
    folder = pathlib.Path(__file__).parent
    for name in thorough.FILES:
        assert (folder / f"{name}.py").exists(), name
    for name in thorough.TESTS:
        file, _, test = name.partition(":")
        tree = ast.parse((folder / f"{file}.py").read_text())
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, name
