"""Strict switches for every test: warnings are errors (setup.cfg), rank promotion is an error, 64 bits stay off."""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

import hypothesis
import jax
import pytest
import thorough

hypothesis.settings.register_profile("dreamer", deadline=None)  # a busy machine makes no test fail
hypothesis.settings.load_profile("dreamer")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_x64", False)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for the processes that tests start
if jax.__version_info__ < (0, 11):  # XLA ends the process for a flag that it does not know
    # On a CPU, the tiny programs of tests compile four times as fast if XLA does not emit fusions through MLIR.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()

# Files whose programs XLA optimizes, because they test numbers or costs as users get them. All others run only briefly
# and compile three times as fast without optimization.
OPTIMIZED = ("test_golden_", "test_learning", "test_step_cost")
LONG = (
    "test_learning_pixels", "test_learning", "test_learning_own_parts", "test_docs", "test_notebook", "test_devices",
    "test_ray_workers", "test_golden_agent", "test_step_cost",
)
CACHE = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def pytest_configure(config: pytest.Config) -> None:
    """Sets up the compilation cache that all processes of the session share, and a key that seals the runs.

    If a cache folder is already set, it is kept after the session, so that the next session can use it.
    """
    if not hasattr(config, "workerinput"):
        folder, state = os.environ.get(CACHE[0].upper()), tempfile.mkdtemp(prefix="state-")
        made = [state]
        if not folder:
            folder = tempfile.mkdtemp(prefix="compiled-")
            made.append(folder)
        for one in made:
            config.add_cleanup(lambda one=one: shutil.rmtree(one, ignore_errors=True))
        os.environ["XDG_STATE_HOME"] = state
        os.environ.update(zip(map(str.upper, CACHE), (folder, "0.2"), strict=True))
    for name, value in zip(CACHE, (str, float), strict=True):
        jax.config.update(name, value(os.environ[name.upper()]))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Returns the number of cores plus one, because tests spend a fifth of the time waiting for processes and disks."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks thorough tests. Files that take minutes come first, so that no core runs one alone at the end."""
    for item in items:
        if thorough.is_thorough(item.path.stem, getattr(item, "originalname", item.name)):
            item.add_marker(pytest.mark.thorough)
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(autouse=True, scope="module")
def optimizations(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sets whether XLA optimizes the programs of a file."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not request.module.__name__.startswith(OPTIMIZED))
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Makes the runs of a file train an agent without networks, which compiles at once."""
    from tiny_runs import plain_agent

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamer.agent.make", lambda config, spec, **_: plain_agent(spec))
        yield


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A new folder, in which the test runs and below which Minari keeps its datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def key() -> jax.Array:
    """A fixed random key."""
    return jax.random.key(0)


@pytest.fixture(autouse=True)
def forget_modules_of_the_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After a test, removes the modules that it wrote into its folder, and the folder from the path."""
    path, folder = list(sys.path), str(tmp_path_factory.getbasetemp())
    yield
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
        if any(str(place).startswith(folder) for place in places):
            del sys.modules[name]
