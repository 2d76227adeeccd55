"""Finds objects by name: modules and attributes by dotted name, environments by id, suite or factory.

Imports no jax.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import pickle
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dreamer import suites
from dreamer.errors import UserError, nearest

if TYPE_CHECKING:
    import gymnasium

SUITES = "dreamer.suites"  # the package whose modules are environment suites
RUN_FILES = ("config.yaml", "metrics.jsonl", "checkpoints")  # a run directory holds the first and one of the others
_HINT_CHOICES = 12  # longer lists of choices are noise in a one-line error
_ENV_ID = re.compile(r".*-v\d+$")


def load(name: str, package: str | None = None) -> Any:
    """Returns the module or attribute called `name`. A module outside dreamer may also lie in the current folder.

    "rssm" with package "dreamer.world_models" is the module dreamer.world_models.rssm, "my_lab.models.foo" is the
    module of this name, and "my_lab.models:make" is an attribute of a module.
    Raises UserError when there is no such module or attribute (with the nearest existing name), or when the module
    itself fails to import (with the cause).
    """
    where, _, attribute = name.partition(":")
    if not where or name.endswith(":") or where.startswith("."):
        raise UserError(f"{name!r} is not a module name such as 'my_lab.models' or 'my_lab.models:make'")
    path = where if "." in where or package is None else f"{package}.{where}"
    if not path.startswith("dreamer."):
        add_current_folder()
    module = _import(path, name)
    thing: Any = module
    for part in attribute.split(".") if attribute else []:
        if not hasattr(thing, part):
            public = [key for key in dir(thing) if not key.startswith("_")]
            raise UserError(f"module {where!r} has no {part!r} (asked for by {name!r}){_hint(part, public)}")
        thing = getattr(thing, part)
    return thing


@dataclasses.dataclass(frozen=True)
class Maker:
    """An environment given as the function `make(**options)`. name: its name in messages and configs.

    Pickling copies the function itself (with cloudpickle), so that other processes need not import it.
    """

    name: str
    make: Callable[..., gymnasium.Env]

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return repr(self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        import cloudpickle

        return _maker_from, (self.name, cloudpickle.dumps(self.make))


def _maker_from(name: str, make: bytes) -> Maker:
    return Maker(name, pickle.loads(make))


EnvName = str | Maker  # the argument of `make_env`


def maker(make: Callable[..., gymnasium.Env]) -> EnvName:
    """Returns a name under which `make_env` finds and calls the function `make`.

    The name is "module:function", or a Maker if no other process can import the function under that name, for example
    because it is a lambda or belongs to `__main__`. Raises UserError when `make` cannot be called.
    """
    if not callable(make):
        hint = f"; its name goes into the config: env={make!r}" if isinstance(make, str) else ""
        raise UserError(f"make_env is a {type(make).__name__}, not a function that makes an environment{hint}")
    module, name = getattr(make, "__module__", ""), getattr(make, "__qualname__", type(make).__qualname__)
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is make and module not in ("__main__", *suite_names()):
        return f"{module}:{name}"
    return Maker(f"{module}:{name}", make)


def make_env(name: EnvName, options: Mapping[str, Any] | None = None, render_mode: str | None = None) -> gymnasium.Env:
    """Makes the environment called `name`.

    "CartPole-v1" is a gymnasium id. "dmc:walker-walk" calls make("walker-walk", **options) of the suite envs/dmc.py.
    "my_lab.envs:make" is a function, called with the options. "my_lab.envs:Maze-v0" is an id that the module registers.
    A Maker calls its function with the options. options: the keyword arguments of the environment.
    render_mode: "rgb_array" or None; only environments that take this argument receive it. Raises UserError.
    """
    options = dict(options or {})
    add_folder_for(name)
    if isinstance(name, Maker):
        return _checked(name.name, _call(name.name, name.make, (), options, render_mode))
    where, _, what = name.partition(":")
    if not name or (":" in name and not (where and what)):
        raise UserError(f"env {name!r} is not a gymnasium id, suite:task or package.module:factory")
    if ":" not in name:
        env = _make_registered(name, name, options, render_mode)
    elif where == "__main__" or "<" in what:
        raise UserError(f"env {name!r} was passed as a function: pass it again as make_env=, or put it into a module")
    elif "." not in where and where in suite_names():
        env = _call(name, load(f"{SUITES}.{where}:make"), (what,), options, render_mode)
    elif "." not in where and where not in sys.modules and importlib.util.find_spec(where) is None:
        hint = _hint(where, suite_names())
        raise UserError(f"env {name!r}: there is no suite envs/{where}.py and no module {where!r}{hint}")
    elif _ENV_ID.match(what):
        load(where)
        env = _make_registered(name, what, options, render_mode)
    else:
        env = _call(name, load(name), (), options, render_mode)
    return _checked(name, env)


def suite_names() -> list[str]:
    """Returns the names of the environment suites: the modules in the folder `envs` without a leading "_"."""
    return sorted(m.name for m in pkgutil.iter_modules(suites.__path__) if not m.name.startswith("_"))


def add_folder_for(name: EnvName) -> None:
    """Adds the current folder to sys.path if an environment's name refers to user code, which may lie there."""
    if isinstance(name, Maker) or (":" in name and name.partition(":")[0] not in suite_names()):
        add_current_folder()


def add_current_folder() -> None:
    """Appends the current folder to sys.path if it is not there. Installed modules come first, so that none is hidden.

    Call this only for code that the user has named: jax and gymnasium import plug-ins from any folder on the path
    without asking. A folder in a run directory is not added, because nothing is imported from a run directory.
    """
    folder = os.getcwd()
    if folder not in sys.path and not in_run_dir(folder):
        sys.path.append(folder)


def in_run_dir(path: str | os.PathLike) -> bool:
    """Whether a path is a run directory, or lies inside one."""
    place = os.path.realpath(path)
    while True:
        config, *others = (os.path.lexists(os.path.join(place, name)) for name in RUN_FILES)
        if config and any(others):
            return True
        place, below = os.path.dirname(place), place
        if place == below:
            return False


def _check_place(module: str, asked: str) -> None:
    """Raises UserError when a module would be imported from a run directory. Does not import it.

    asked: the name that the user gave, for the message
    """
    folders: list[str] = sys.path
    for end in [*(i for i, mark in enumerate(module) if mark == "."), len(module)]:
        name = module[:end]
        if name in sys.modules:
            folders = list(getattr(sys.modules[name], "__path__", []))
            continue
        origin, folders = _find(name.rpartition(".")[2], folders)
        for place in filter(None, [origin, *folders]):
            if in_run_dir(place):
                raise UserError(
                    f"{asked!r} lies in a run directory, {place}: nothing is imported from there; move it elsewhere"
                )


def _find(name: str, folders: Iterable[str]) -> tuple[str | None, list[str]]:
    """Returns the file of the module `name` in the first of `folders` that has it, and the folders of its submodules.

    The file is None if there is no such module, or if it is a namespace package.
    """
    parts: list[str] = []
    machinery = importlib.machinery
    loaders = (
        (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
        (machinery.SourceFileLoader, machinery.SOURCE_SUFFIXES),
        (machinery.SourcelessFileLoader, machinery.BYTECODE_SUFFIXES),
    )
    for folder in folders:
        spec = machinery.FileFinder(folder or os.getcwd(), *loaders).find_spec(name)
        if spec and spec.loader:
            return spec.origin, list(spec.submodule_search_locations or [])
        parts += (spec.submodule_search_locations or []) if spec else []
    return None, parts


def one_line(error: BaseException) -> str:
    """Returns an exception as one line: its type, its message, and the file and line that raised it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    message = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
    return f"{type(error).__name__}: {message}{place}"


def _import(module: str, asked: str) -> ModuleType:
    """Imports a module. Raises UserError, whose text says whether the module is missing or fails to import.

    asked: the name that the user gave, for the message
    """
    importlib.invalidate_caches()
    _check_place(module, asked)
    try:
        return importlib.import_module(module)
    except UserError:
        raise
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{module}.".startswith(f"{missing}."):
            raise UserError(f"module {module!r} failed to import: {one_line(error)}") from error
    parent, _, last = missing.rpartition(".")
    if not parent:
        choices = [found.name for found in pkgutil.iter_modules([os.getcwd()])]
        raise UserError(f"no module {missing!r} (asked for by {asked!r}){_hint(last, choices)}")
    folders = getattr(sys.modules[parent], "__path__", [])
    choices = [found.name for found in pkgutil.iter_modules(folders) if not found.name.startswith("_")]
    raise UserError(f"no module {last!r} in {parent} (asked for by {asked!r}){_hint(last, choices)}")


def _make_registered(name: str, env_id: str, options: dict[str, Any], render_mode: str | None) -> gymnasium.Env:
    import gymnasium

    extra: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        try:
            # dreamer.runtime.env.rows checks every row; gymnasium's own checker would halve the speed.
            return gymnasium.make(env_id, disable_env_checker=True, **options, **extra)
        except TypeError as error:
            if not extra or "render_mode" not in str(error):
                raise
            return gymnasium.make(env_id, disable_env_checker=True, **options)
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(f"env {name!r} is no registered gymnasium id{_nearest_id(env_id)}") from error
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        text = " ".join(str(error).split())
        extra_name = re.search(r"gymnasium\[([\w-]+)\]", text)
        advice = f'; try: pip install "gymnasium[{extra_name.group(1)}]"' if extra_name else ""
        raise UserError(f"env {name!r} needs a package that is not installed: {text}{advice}") from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"env {name!r} could not be made with options {options}: {one_line(error)}") from error


def _call(
    name: str, factory: Callable, args: tuple, options: dict[str, Any], render_mode: str | None
) -> gymnasium.Env:
    if not callable(factory):
        raise UserError(f"env {name!r}: that is a {type(factory).__name__}, not a factory that can be called")
    parameters = inspect.signature(factory).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        taken = list(parameters)[len(args) :]
        for key in options:
            if key not in taken:
                raise UserError(f"env {name!r} takes no option {key!r}{_hint(key, taken)}")
    if render_mode is not None and "render_mode" in parameters:
        options = {"render_mode": render_mode, **options}
    try:
        return factory(*args, **options)
    except UserError:
        raise
    except (ValueError, ImportError) as error:
        raise UserError(f"env {name!r}: {' '.join(str(error).split())}") from error
    except Exception as error:
        raise UserError(f"env {name!r} could not be made with options {options}: {one_line(error)}") from error


def _checked(name: str, env: Any) -> gymnasium.Env:
    import gymnasium

    if isinstance(env, gymnasium.vector.VectorEnv):
        raise UserError(f"env {name!r} is a vector environment; name a single one, --workers.envs sets how many run")
    missing = [key for key in ("observation_space", "action_space", "reset", "step") if not hasattr(env, key)]
    if missing:
        raise UserError(f"env {name!r} returned a {type(env).__name__}, not a gymnasium.Env: it has no {missing[0]!r}")
    return env


# Packages whose ids have the form namespace/Name-v0, and dreamer's suite of these environments, which is also an extra.
_NAMESPACES = {
    "ale": ("ale_py", "atari"), "dm_control": ("shimmy", "dmc"), "minigrid": ("minigrid", "minigrid"),
    "babyai": ("minigrid", "minigrid"), "memory_maze": ("memory_maze", "memory_maze"),
    "meta-world": ("metaworld", "metaworld"), "popgym": ("popgym", "popgym"), "vizdoom": ("vizdoom", "vizdoom"),
}  # fmt: skip


def _nearest_id(env_id: str) -> str:
    """Returns a hint for a wrong gymnasium id: an id that the user may have meant, or a package to import; or ""."""
    import gymnasium

    by_lower = {known.lower(): known for known in sorted(gymnasium.registry)}
    namespace, slash, task = env_id.rpartition("/")
    # MiniGrid's ids have their name before a hyphen: MiniGrid-Empty-5x5-v0.
    family = namespace.lower() if slash else env_id.partition("-")[0].lower()
    if any(known.startswith(f"{family}/" if slash else f"{family}-") for known in by_lower):
        family = ""  # the package is imported: its own ids are near enough
    if family in _NAMESPACES:
        module, suite = _NAMESPACES[family]
        name = task if slash else env_id.removeprefix("MiniGrid-")
        if suite in ("atari", "dmc", "memory_maze"):
            name = re.sub(r"-v\d+$", "", name).removeprefix("MemoryMaze-")
        name = name.lower() if suite == "atari" else name
        ours = f"{suite}:{name} (extra {suite.replace('_', '-')})"
        return f"; it belongs to {module}, which is not imported: use our suite's {ours}, or {module}:{env_id}"
    if slash and family:
        near = f"did you mean {by_lower[task.lower()]!r}?" if task.lower() in by_lower else ""
        near = near or f"name the module that does, such as my_package:{env_id}"
        return f"; nothing here registers ids of {namespace!r}: {near}"
    close = difflib.get_close_matches(env_id.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def _hint(name: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    hint = nearest(name, choices)
    return hint if hint.startswith("; did") or len(choices) <= _HINT_CHOICES else ""
