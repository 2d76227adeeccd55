"""The import table: who may import whom, read from the syntax trees."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent

NOUNS = {"errors", "spaces", "steps"}
# room -> the rooms of dreamer that it may import, itself apart. config joins the Configs that runtime declares.
TABLE: dict[str, set[str]] = {
    "errors": set(),
    "spaces": set(),
    "steps": set(),
    "shipped": set(),
    "suites": {"shipped"},
    "plugins": {"errors", "suites"},
    "trust": {"errors"},
    "coerce": {"errors"},
    "fields": set(),
    "hints": {"shipped"},
    "layers": {"errors", "coerce", "hints", "shipped", "trust"},
    "interfaces": {"spaces", "steps"},
    "ops": set(),
    "nets": {"ops", "interfaces", "spaces", "errors"},
    "dreaming": {"ops", "interfaces"},
    "world_models": {"nets", "ops", "interfaces", "plugins"} | NOUNS,
    "behaviors": {"nets", "ops", "dreaming", "interfaces", "plugins"} | NOUNS,
    "contracts": {"interfaces", "plugins"} | NOUNS,
    "agent": {"ops", "dreaming", "interfaces", "plugins", "contracts"} | NOUNS,
    "config": {"coerce", "layers", "plugins", "trust", "runtime", "shipped", "hints", "fields"} | NOUNS,
    "runtime": {"agent", "config", "interfaces", "layers", "ops", "plugins", "trust"} | NOUNS,
    "apps": {"runtime", "agent", "config", "coerce", "layers", "interfaces", "plugins", "shipped"} | NOUNS,
    "dreamer": {"config", "runtime", "apps"},
}
OPS_LIBRARIES = {"jax", "optax", "chex", "numpy"}
JAX_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "chex", "haiku", "orbax"}
NO_JAX = (
    "dreamer", "dreamer.config", "dreamer.coerce", "dreamer.plugins", "dreamer.spaces", "dreamer.errors",
    "dreamer.shipped", "dreamer.fields", "dreamer.hints", "dreamer.suites",
    "dreamer.runtime.steps", "dreamer.runtime.rows", "dreamer.runtime.readers", "dreamer.runtime.env_state",
    "dreamer.runtime.actions", "dreamer.runtime.reading", "dreamer.runtime.interface", "dreamer.runtime.parallel",
    "dreamer.runtime.workers", "dreamer.runtime.workers.child", "dreamer.runtime.workers.processes",
    "dreamer.runtime.replay", "dreamer.runtime.ratio", "dreamer.runtime.samplers", "dreamer.runtime.disk_tier",
    "dreamer.runtime.prefetch", "dreamer.runtime.following", "dreamer.runtime.row_store", "dreamer.runtime.sinks",
    "dreamer.runtime.limiter", "dreamer.runtime.stopping", "dreamer.apps.cli", "dreamer.apps.start",
    "dreamer.trust", "dreamer.layers", "dreamer.apps.flags", "dreamer.runtime.lock", "dreamer.runtime.run_config",
    "dreamer.runtime.safe_files",
    "dreamer.runtime.checkpoint_files", "dreamer.runtime.verifying", "dreamer.runtime.flushing", "dreamer.apps.verify",
    "dreamer.apps.statistics", "dreamer.apps.runs", "dreamer.apps.references", "dreamer.apps.curves",
    "dreamer.apps.scores", "dreamer.apps.plots", "dreamer.apps.page", "dreamer.apps.report", "dreamer.apps.check",
    *(f"dreamer.apps.checks.{file.stem}" for file in sorted((ROOT / "dreamer/apps/checks").glob("[a-z]*.py"))),
)  # fmt: skip


def module_name(file: pathlib.Path) -> str:
    """dreamer/nets/mlp.py -> dreamer.nets.mlp; a package is named as its folder."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(folder: str) -> list[tuple[str, pathlib.Path]]:
    return [(module_name(file), file) for file in sorted((ROOT / folder).rglob("*.py"))]


def imports(source: str, module: str, package: bool = False, top_only: bool = False) -> Iterator[str]:
    """Full dotted names that `source` imports anywhere; "from a import b" gives a.b. `top_only`: when it is loaded."""
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
    """The nodes that run when the module is loaded: not in functions, not under `if TYPE_CHECKING`."""
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
    """The room that a dotted name of dreamer lies in."""
    parts = dotted.split(".")
    if parts[:3] == ["dreamer", "runtime", "steps"]:
        return "steps"
    return parts[1] if len(parts) > 1 and parts[1] in TABLE else "dreamer"


def strangers(module: str, imported: set[str]) -> list[str]:
    """The imports of `module` that the table does not allow."""
    home = room(module)
    inside = {name for name in imported if name.split(".")[0] == "dreamer"} - {"dreamer.__version__"}
    wrong = {name for name in inside if room(name) not in TABLE[home] | {home}}
    if home == "world_models" or home == "behaviors":  # never each other: a file of a family stands alone
        own = (module, f"dreamer.{home}.") if module == f"dreamer.{home}" else (module,)
        wrong |= {name for name in inside if room(name) == home and not name.startswith(own)}
    return sorted(wrong)


@pytest.mark.parametrize("module, file", [pytest.param(*item, id=item[0]) for item in modules("dreamer")])
def test_a_module_imports_only_the_rooms_that_the_table_allows(module, file):
    assert room(module) in TABLE, f"{module} is in no room of the table"
    assert not strangers(module, imports_of(file))


def test_every_top_level_module_has_a_row_in_the_table():
    for _, file in modules("dreamer"):
        name = file.relative_to(ROOT / "dreamer").parts[0].removesuffix(".py")
        assert name in TABLE or name in ("__init__", "__main__"), f"dreamer/{name} has no row in the table"


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
        assert not first & ({"dreamer", "experiments", "tests"} | JAX_LIBRARIES), module


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
