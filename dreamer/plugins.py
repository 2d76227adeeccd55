"""Finds objects by name: modules and attributes by dotted name, environments by id, suite or factory.

Imports no jax until an environment written in JAX is made.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import pickle
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from dreamer import suites
from dreamer.errors import UserError, nearest, one_line
from dreamer.gymnasium_ids import make_registered

if TYPE_CHECKING:
    import gymnasium

    from dreamer.interfaces import JaxEnv

SUITES = "dreamer.suites"  # the package whose modules are environment suites
RUN_FILES = ("config.yaml", "metrics.jsonl", "checkpoints")  # a run directory holds the first and one of the others
_HINT_CHOICES = 12  # longer lists of choices are noise in a one-line error
_ENV_ID = re.compile(r".*-v\d+$")
_JAX_ENVS: dict[tuple[int, tuple[str, ...], str], tuple[Any, JaxEnv]] = {}  # by factory, its arguments and options


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


@dataclasses.dataclass(frozen=True, eq=False)
class Maker:
    """An environment given as the function `make(**options)`. name: its name in messages and configs.

    A Maker is equal only to itself, so that nothing is remembered of what `make` has made for another run. Pickling
    copies the function itself (with cloudpickle), so that other processes need not import it.
    """

    name: str
    make: Callable[..., gymnasium.Env | JaxEnv]

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


def maker(make: Callable[..., gymnasium.Env | JaxEnv]) -> EnvName:
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
    A Maker calls its function with the options. If a function returns a JaxEnv, returns it as a HostEnv or HostTeam.
    options: the keyword arguments of the environment.
    render_mode: "rgb_array" or None; only environments that take this argument receive it. Raises UserError.
    """
    options = dict(options or {})
    found = _factory(name)
    if isinstance(found, str):
        return _checked(str(name), make_registered(str(name), found, options, render_mode))
    env = _made(found, options, render_mode)
    if not _is_jax_env(env):
        return _checked(found.name, env)
    from dreamer.host_env import as_gymnasium

    return _checked(found.name, as_gymnasium(env, found.name, render_mode))


def make_jax_env(name: EnvName, options: Mapping[str, Any] | None = None) -> JaxEnv | None:
    """Makes the environment called `name` if it is written in JAX: if its factory is annotated with "-> JaxEnv".

    Returns None for any other environment, without calling its factory. name, options: as in `make_env`.
    Raises UserError, also if the environment is faulty, see `jax_envs.check`.
    """
    found = _factory(name)
    if isinstance(found, str) or not _returns_jax_env(found.make):
        return None
    env = _made(found, dict(options or {}), None)
    if not _is_jax_env(env):
        raise UserError(f"env {found.name!r} is annotated as a JaxEnv, but its factory made a {type(env).__name__}")
    return env


class Factory(NamedTuple):
    """A function that makes an environment. name: the environment's | args: the first arguments of `make`"""

    name: str
    make: Callable[..., Any]
    args: tuple[str, ...] = ()


def _factory(name: EnvName) -> Factory | str:
    """Returns the Factory of the environment called `name`, or its id in gymnasium's registry. Raises UserError."""
    add_folder_for(name)
    if isinstance(name, Maker):
        return Factory(name.name, name.make)
    where, _, what = name.partition(":")
    if not name or (":" in name and not (where and what)):
        raise UserError(f"env {name!r} is not a gymnasium id, suite:task or package.module:factory")
    if ":" not in name:
        return name
    if where == "__main__" or "<" in what:
        raise UserError(f"env {name!r} was passed as a function: pass it again as make_env=, or put it into a module")
    if "." not in where and where in suite_names():
        return Factory(name, load(f"{SUITES}.{where}:make"), (what,))
    if "." not in where and where not in sys.modules and importlib.util.find_spec(where) is None:
        hint = _hint(where, suite_names())
        raise UserError(f"env {name!r}: there is no suite envs/{where}.py and no module {where!r}{hint}")
    if _ENV_ID.match(what):
        load(where)
        return what
    return Factory(name, load(name))


def _returns_jax_env(factory: Any) -> bool:
    """Whether a factory says that it returns a JaxEnv. The annotation may be a string or the class."""
    if not callable(factory):
        return False
    annotation = getattr(inspect.unwrap(factory), "__annotations__", {}).get("return")
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return text.rpartition(".")[2] == "JaxEnv"


def _made(found: Factory, options: dict[str, Any], render_mode: str | None) -> Any:
    """Calls a factory, unless it has already made this environment in JAX: all its uses share one compiled program."""
    known = (id(found.make), found.args, repr(sorted(options.items())))
    if known in _JAX_ENVS:
        return _JAX_ENVS[known][1]
    env: Any = _call(found.name, found.make, found.args, options, render_mode)
    if _is_jax_env(env):
        from dreamer.jax_envs import check

        check(env, found.name)
        _JAX_ENVS[known] = found.make, env  # holds the factory, so that no other one gets its id
    return env


def _is_jax_env(env: Any) -> bool:
    interfaces = sys.modules.get("dreamer.interfaces")  # not loaded: nothing can have made a JaxEnv
    return interfaces is not None and isinstance(env, interfaces.JaxEnv)


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


def _hint(name: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    hint = nearest(name, choices)
    return hint if hint.startswith("; did") or len(choices) <= _HINT_CHOICES else ""
