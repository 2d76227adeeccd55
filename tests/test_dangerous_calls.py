"""Lists every call that may run code named by a file or a string, with the reason why it is safe.

A new call fails until somebody has reviewed it. An entry that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest
import yaml

from dreamer import coerce

ROOT = pathlib.Path(__file__).parents[1]
# Modules whose every use counts, and single names of other modules that count.
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "runpy", "importlib", "code"}
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
ATTRIBUTES = {
    ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("yaml", "UnsafeLoader"), ("yaml", "FullLoader"),
    ("yaml", "Loader"), ("yaml", "load_all"), ("np", "load"), ("numpy", "load"), ("np", "fromregex"),
    ("pd", "read_pickle"), ("torch", "load"), ("ctypes", "CDLL"),
}  # fmt: skip
OF_OS = ("system", "popen", "exec", "spawn", "posix_spawn", "fork", "startfile")
# {file: {call: reason}}
KNOWN: dict[str, dict[str, str]] = {
    "dreamer/__init__.py": {"importlib": "names of the package's own functions, when they are first used"},
    "dreamer/plugins.py": {
        "importlib": "names in a config, after trust.check has accepted them",
        "pickle": "a function that makes environments, between this program's processes",
        "cloudpickle": "the same for a function that pickle refuses",
    },
    "dreamer/coerce.py": {"yaml.load": "with a SafeLoader, which makes only plain values"},
    "dreamer/layers.py": {"yaml.load": "with a SafeLoader, which makes only plain values"},
    "dreamer/data/films.py": {"subprocess": "ffmpeg, with a list of arguments"},
    "dreamer/data/npz.py": {"np.load": "of a zip file, with allow_pickle False"},
    "dreamer/apps/imagine/files.py": {"np.load": "of a zip file, with allow_pickle False"},
    "dreamer/apps/start.py": {"os.execve": "the same command again, with other environment variables"},
    "dreamer/apps/lists.py": {"importlib": "whether a suite of this package is installed, without importing it"},
    "dreamer/apps/report/page.py": {"importlib": "the files of the page, which come with this package"},
    "dreamer/apps/report/best.py": {"yaml.load": "with a SafeLoader, which makes only plain values"},
    "dreamer/apps/sweep/child.py": {"ctypes.CDLL": "the C library of this process"},
    "dreamer/apps/sweep/local.py": {"subprocess": "the programs of a sweep by this program, with a list of arguments"},
    "dreamer/apps/sweep/planning.py": {"subprocess": "this program's own child, with a list of arguments"},
    "dreamer/apps/sweep/slurm.py": {"subprocess": "the program of a sweep by this program, with a list of arguments"},
    "dreamer/apps/check/isolation.py": {"subprocess": "this program's own child, with a list of arguments"},
    "dreamer/runtime/files/checkpoint.py": {"ctypes.CDLL": "the C library of this process"},
    "dreamer/runtime/env/state.py": {"pickle": "states that this user pickled or vouches for (resume._untrusted)"},
    "dreamer/runtime/log/images.py": {"subprocess": "ffmpeg, with a list of arguments"},
    "dreamer/runtime/workers/messages.py": {"pickle": "between this program's processes, over a pair of sockets"},
    "dreamer/runtime/workers/process.py": {
        "pickle": "the plan of a worker, to this program's process, over a pair of sockets",
        "subprocess": "this program's own worker, with a list of arguments",
    },
    "dreamer/runtime/workers/relay.py": {"subprocess": "the type of a process that process.py has started"},
    "envs/playground.py": {"subprocess": "the type of an error of the package"},
    "envs/_mujoco.py": {"importlib": "a module of dm_control that was imported before"},
    "envs/memory_maze.py": {"importlib": "where the package lies"},
    "envs/pettingzoo.py": {"importlib": "the family of a task, from pettingzoo's own list"},
}


def dangerous(source: str) -> Iterator[str]:
    """Yields the names in a source that may run code from their arguments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name for alias in node.names if (name := alias.name.split(".")[0]) in MODULES | {"subprocess"})
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = (node.module or "").split(".")[0]
            if module in MODULES | {"subprocess"}:
                yield module
            yield from (f"{module}.{alias.name}" for alias in node.names if _counts(module, alias.name))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield node.func.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if _counts(node.value.id, node.attr):
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield node.arg


def _counts(module: str, name: str) -> bool:
    return (module, name) in ATTRIBUTES or (module == "os" and name.startswith(OF_OS)) or name == "find_spec"


def test_every_call_that_may_run_code_from_its_arguments_is_listed():
    found = {}
    for folder in ("dreamer", "envs"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if uses := set(dangerous(file.read_text())):
                found[file.relative_to(ROOT).as_posix()] = uses
    assert found == {file: set(uses) for file, uses in KNOWN.items()}


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle as p", "pickle"), ("from pickle import loads", "pickle"), ("import importlib.a", "importlib"),
        ("eval(text)", "eval"), ("yaml.load(text)", "yaml.load"), ("from yaml import unsafe_load", "yaml.unsafe_load"),
        ("np.load(path, allow_pickle=True)", "allow_pickle"), ("os.system(line)", "os.system"),
        ("from os import execv", "os.execv"), ("run(line, shell=True)", "shell"), ("import subprocess", "subprocess"),
    ],
)  # fmt: skip
def test_a_use_is_found_however_it_is_written(source, what):
    assert what in set(dangerous(source))


@pytest.mark.parametrize("source", ["re.compile(x)", "model.eval()", "yaml.safe_load(x)", "f(allow_pickle=False)"])
def test_harmless_calls_are_not_found(source):
    assert not set(dangerous(source))


def test_yaml_makes_nothing_but_plain_values():
    assert issubclass(coerce.Loader, yaml.SafeLoader) and issubclass(coerce.Dumper, yaml.SafeDumper)
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.getcwd []", coerce.Loader)
