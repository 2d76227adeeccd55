"""The import table: which room may import which, checked on the syntax trees."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent

def module_name(file: pathlib.Path) -> str:
    """Returns the module of a file: dreamer/nets/mlp.py -> dreamer.nets.mlp; a package has the name of its folder."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(folder: str) -> list[tuple[str, pathlib.Path]]:
    return [(module_name(file), file) for file in sorted((ROOT / folder).rglob("*.py"))]



NOUNS = {"errors", "spaces", "steps", "plugins", "fields"}  # modules that every room except ops may import
LOOSE = {"shipped", "suites", "trust", "coerce", "hints", "layers", "config"}  # for configs and trust
RUNTIME = {
    f"runtime/{name}"
    for name in ("env", "workers", "replay", "devices", "files", "log", "fused", "learning", "run")
}
# room -> the rooms of dreamer that it may import, in addition to the nouns and itself.
TABLE: dict[str, set[str]] = {
    "errors": set(),
    "spaces": set(),
    "steps": set(),
    "shipped": set(),
    "suites": {"shipped"},
    "gymnasium_ids": {"errors"},
    "plugins": {"errors", "gymnasium_ids", "host_env", "interfaces", "jax_envs", "suites"},  # JAX only when asked for
    "trust": {"errors"},
    "coerce": {"errors"},
    "fields": {"errors"},
    "hints": {"shipped"},
    "layers": {"coerce", "hints", "shipped", "trust"} | NOUNS,
    "interfaces": NOUNS,
    "contracts": {"interfaces"} | NOUNS,
    "jax_leaves": set(),
    "jax_envs": {"jax_leaves", "interfaces"} | NOUNS,
    "host_env": {"jax_envs", "jax_leaves", "interfaces"} | NOUNS,
    "ops": {"fields"},  # for the Config of the optimizer
    "nets": {"ops", "interfaces"} | NOUNS,
    "dreaming": {"nets", "ops", "interfaces"} | NOUNS,
    "world_models": {"nets", "ops", "dreaming", "interfaces"} | NOUNS,
    "behaviors": {"nets", "ops", "dreaming", "interfaces"} | NOUNS,
    "losses": {"ops", "interfaces"} | NOUNS,
    "agent": {"ops", "losses", "interfaces", "contracts", "coerce"} | NOUNS,
    "config": LOOSE | {"data", "runtime/log", "runtime/replay", "runtime/workers"} | NOUNS,  # their Configs
    # Datasets are checked like environments, and read like the rows of runs, without jax; they fill a replay.
    "data": {"runtime/env", "runtime/files", "runtime/replay"} | NOUNS,
    "runtime": {f"runtime/{name}" for name in ("devices", "hosts", "log", "population", "run")}
    | {"interfaces", "config"} | NOUNS,
    "runtime/files": NOUNS,
    "runtime/env": {"runtime/files"} | NOUNS,
    "runtime/workers": {"runtime/env"} | NOUNS,
    "runtime/replay": {"runtime/files"} | NOUNS,
    "runtime/devices": {"interfaces"} | NOUNS,
    "runtime/log": {"runtime/files"} | NOUNS,
    "runtime/fused": {"runtime/env", "runtime/files", "runtime/workers", "interfaces", "jax_leaves"} | NOUNS,
    "runtime/learning": {f"runtime/{name}" for name in ("devices", "fused", "log", "replay", "workers")}
    | {"interfaces"} | NOUNS,
    "runtime/run": RUNTIME | {"data", "agent", "interfaces", "jax_envs", "config", "layers", "trust"} | NOUNS,
    "runtime/hosts": {f"runtime/{name}" for name in ("devices", "files", "log", "replay", "run")} | {"config"} | NOUNS,
    "runtime/population": RUNTIME | {"agent", "interfaces", "config", "layers"} | NOUNS,
    "apps": RUNTIME
    | {"data", "runtime", "runtime/population", "apps/check", "apps/report", "agent", "losses", "interfaces"}
    | LOOSE | NOUNS,
    "apps/check": {"runtime/env", "runtime/workers", "runtime/files", "runtime/log"} | NOUNS,
    "apps/report": {"apps", "runtime/files", "runtime/log", "runtime/run", "config", "coerce", "shipped"} | NOUNS,
    "dreamer": {"config", "runtime", "apps"},
}
OPS_LIBRARIES = {"jax", "optax", "chex", "numpy"}
# Suites of environments written in JAX, and what they share.
JAX_SUITES = tuple(
    f"envs.{name}"
    for name in (
        "_jax_suite", "brax", "craftax", "gymnax", "jax_mazes", "jax_probes", "jaxmarl", "jumanji", "navix", "pgx",
        "playground",
    )
)  # fmt: skip
JAX_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "chex", "haiku", "orbax"}
# Rooms and files that must work in a process without jax.
NO_JAX_ROOMS = ("data", "runtime/env", "runtime/workers", "runtime/replay", "runtime/log", "apps/check", "apps/report")
NO_JAX = (
    "dreamer", "dreamer.config", "dreamer.coerce", "dreamer.plugins", "dreamer.spaces", "dreamer.errors",
    "dreamer.shipped", "dreamer.fields", "dreamer.hints", "dreamer.suites", "dreamer.steps", "dreamer.trust",
    "dreamer.layers", "dreamer.gymnasium_ids",
    *(f"dreamer.runtime.population.{name}" for name in ("config", "display", "exploit", "members", "standing")),
    *(
        f"dreamer.runtime.files.{name}"
        for name in (
            "run_dir", "lock", "safe_files", "checkpoint_files", "manifest", "plain_state", "sealed",
            "atomic",
        )
    ),
    *(
        f"dreamer.runtime.run.{name}"
        for name in ("datasets", "environments", "listening", "run_config", "schedule", "stopping", "verifying")
    ),
    *(f"dreamer.runtime.learning.{name}" for name in ("limiter", "prefetch", "ratio", "writeback")),
    *(f"dreamer.apps.{name}" for name in ("cli", "commands", "flags", "lists", "start", "statistics", "train_help")),
    "dreamer.apps.data", "dreamer.apps.verify",
    "dreamer.apps.imagine.flags", "dreamer.apps.imagine.files", "dreamer.apps.imagine.scores",
    *(module for room in NO_JAX_ROOMS for module, file in modules(f"dreamer/{room}") if file.name != "ray_cluster.py"),
)  # fmt: skip


def imports(source: str, module: str, package: bool = False, top_only: bool = False) -> Iterator[str]:
    """Yields the full dotted names that `source` imports; "from a import b" is a.b. top_only: only on loading."""
    tree = ast.parse(source)
    for node in _loaded(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: None if package and node.level == 1 else -(node.level - package)]
                base = ".".join([*above, *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _loaded(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes that run when the module is loaded: not in functions, not under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _loaded(child)


def imports_of(file: pathlib.Path, top_only: bool = False) -> set[str]:
    return set(imports(file.read_text(), module_name(file), file.name == "__init__.py", top_only))


def room(dotted: str) -> str:
    """Returns the room of a dotted name of dreamer."""
    parts = dotted.split(".")[1:]
    return next((name for name in ("/".join(parts[:2]), *parts[:1]) if name in TABLE), "dreamer")


def strangers(module: str, imported: set[str]) -> list[str]:
    """Returns the imports of `module` that the table does not allow."""
    home = room(module)
    inside = {name for name in imported if name.split(".")[0] == "dreamer"} - {"dreamer.__version__"}
    wrong = {name for name in inside if room(name) not in TABLE[home] | {home}}
    if home == "world_models" or home == "behaviors":  # never each other: each family is independent
        own = (module, f"dreamer.{home}.") if module == f"dreamer.{home}" else (module,)
        wrong |= {name for name in inside if room(name) == home and not name.startswith(own)}
    return sorted(wrong)


@pytest.mark.parametrize("module, file", [pytest.param(*item, id=item[0]) for item in modules("dreamer")])
def test_a_module_imports_only_the_rooms_that_the_table_allows(module, file):
    assert room(module) in TABLE, f"{module} is in no room of the table"
    assert not strangers(module, imports_of(file))


def test_every_top_level_module_and_every_room_of_runtime_has_a_row_in_the_table():
    for _, file in modules("dreamer"):
        parts = file.relative_to(ROOT / "dreamer").with_suffix("").parts
        name = "/".join(parts[:2]) if parts[0] == "runtime" and len(parts) > 2 else parts[0]
        assert name in TABLE or name in ("__init__", "__main__"), f"dreamer/{name} has no row in the table"


@pytest.mark.parametrize("home", sorted(TABLE))
def test_breaking_the_wall_of_a_room_is_noticed(home):
    forbidden = sorted(set(TABLE) - TABLE[home] - {home, "dreamer"})
    assert forbidden
    for other in forbidden:
        assert strangers(f"dreamer.{home.replace('/', '.')}.x", {f"dreamer.{other.replace('/', '.')}.y"}), other


def test_rooms_do_not_import_each_other_in_circles():
    graph = {home: set() for home in TABLE}
    for module, file in modules("dreamer"):
        graph[room(module)] |= {room(name) for name in imports_of(file) if name.split(".")[0] == "dreamer"}
    graph["apps"] -= {"apps/check", "apps/report"}  # the table of commands
    graph["dreamer"] = set()  # it loads its public names lazily
    assert not circle({home: others - {home, "dreamer"} for home, others in graph.items()})


def test_files_do_not_import_each_other_in_circles():
    names = {module for module, file in modules("dreamer") if file.name != "__init__.py"}
    graph = {}
    for module, file in modules("dreamer"):
        found = imports_of(file)
        graph[module] = {name for name in names for one in found if f"{one}.".startswith(f"{name}.")} - {module}
    assert not circle(graph)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Returns the nodes of a graph that are on cycles or lead only to them; empty if there are none."""
    left = {node: set(others) for node, others in graph.items()}
    while leaves := [node for node, others in left.items() if not others & left.keys()]:
        for node in leaves:
            del left[node]
    return sorted(left)


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("module, file", [pytest.param(*item, id=item[0]) for item in modules("dreamer/ops")])
def test_ops_use_jax_only(module, file):
    outside = {name.split(".")[0] for name in imports_of(file)} - {"dreamer"} - sys.stdlib_module_names
    assert outside <= OPS_LIBRARIES


@pytest.mark.parametrize("module", NO_JAX)
def test_a_host_module_names_no_jax_when_it_is_loaded(module):
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert not {name.split(".")[0] for name in imports_of(file, top_only=True)} & JAX_LIBRARIES


def test_host_modules_leave_jax_unloaded_in_a_fresh_process():
    program = (
        "import importlib, sys\n"
        f"for module in {NO_JAX!r}:\n"
        "    importlib.import_module(module)\n"
        f"    loaded = sorted(set({sorted(JAX_LIBRARIES)!r}) & set(sys.modules))\n"
        "    assert not loaded, f'{module} loads {loaded}'\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_library_knows_neither_envs_nor_experiments():
    for module, file in modules("dreamer"):
        first = {name.split(".")[0] for name in imports_of(file)}
        assert not first & {"envs", "experiments", "tests", "benchmarks"}, module


def test_environments_know_neither_the_library_nor_jax():
    for module, file in modules("envs"):
        first = {name.split(".")[0] for name in imports_of(file)}
        ours = {"dreamer", *JAX_LIBRARIES} if module in JAX_SUITES else set()
        assert not first & ({"dreamer", "experiments", "tests"} | JAX_LIBRARIES) - ours, module


@pytest.mark.parametrize("module", JAX_SUITES)
def test_an_environment_in_jax_knows_only_its_contract(module):
    found = {name for name in imports_of(ROOT / f"{module.replace('.', '/')}.py") if name.startswith("dreamer.")}
    assert {room(name) for name in found} <= {"jax_envs", "interfaces", "spaces", "steps", "errors"}


def test_experiments_hold_no_code():
    assert not modules("experiments")


@pytest.mark.parametrize(
    "source",
    [
        "import dreamer.agent",
        "from dreamer import agent",
        "from dreamer.agent import make",
        "from .. import agent",
        "from ..agent import make",
        "def f():\n    from dreamer.agent import make",
        "def f():\n    from ..agent import make",
        "if TYPE_CHECKING:\n    from dreamer.agent import make",
        "try:\n    import dreamer.agent\nexcept ImportError:\n    pass",
    ],
)
def test_no_way_to_write_an_import_escapes(source):
    assert strangers("dreamer.nets.mlp", set(imports(source, "dreamer.nets.mlp")))


@pytest.mark.parametrize("source", ["from . import other", "from .other import make", "import dreamer.behaviors.other"])
def test_a_family_does_not_import_its_neighbour(source):
    assert strangers("dreamer.behaviors.x", set(imports(source, "dreamer.behaviors.x")))


def test_a_relative_import_in_a_package_starts_from_the_package():
    assert set(imports("from . import mlp", "dreamer.nets", package=True)) == {"dreamer.nets.mlp"}
    assert set(imports("from ..agent import x", "dreamer.nets", package=True)) == {"dreamer.agent.x"}
