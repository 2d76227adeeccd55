import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamer.errors import UserError
from dreamer.runtime.replay import capacity, memory

GB = 10**9


def fit(**changes):
    settings = {
        "streams": 16, "sequence": 65, "env_steps": 10**9, "capacity_steps": 10**6, "capacity_gb": 0,
        "free_bytes": 64 * GB,
    }  # fmt: skip
    return capacity.fit(12_400, **{**settings, **changes})


@given(
    st.integers(1, 64),
    st.integers(100, 10**9),
    st.integers(100, 10**7),
    st.floats(0, 1, allow_subnormal=False),
    st.integers(10**5, 10**11),
)
def test_every_limit_is_kept(streams, env_steps, capacity_steps, share, free_bytes):
    capacity_gb = share * free_bytes / GB
    limits = {"streams": streams, "env_steps": env_steps, "capacity_steps": capacity_steps, "free_bytes": free_bytes}
    try:
        size = fit(**limits, capacity_gb=capacity_gb)
    except UserError:
        return
    assert size.rows_per_stream >= 65
    assert size.steps <= capacity_steps
    assert size.steps < env_steps + streams
    assert size.nbytes <= (capacity_gb * GB if capacity_gb else free_bytes / 2)


@pytest.mark.parametrize(
    ("limits", "steps", "bound"),
    [
        ({}, 1_000_000, "replay.capacity_steps"),
        ({"capacity_gb": 1.24}, 100_000, "replay.capacity_gb"),
        ({"free_bytes": int(2.48 * GB)}, 100_000, "half of the free memory"),
        ({"env_steps": 50_001}, 50_016, "env_steps"),
        ({"free_bytes": None, "capacity_gb": 100}, 1_000_000, "replay.capacity_steps"),
    ],
)
def test_the_tightest_limit_decides_and_is_named(limits, steps, bound):
    size = fit(**limits)
    assert size.steps == steps
    assert size.bound.startswith(bound)


def test_line_names_steps_bytes_and_bound():
    line = "replay: 1,000,000 steps x 12.4 kB = 12.4 GB (of 64.0 GB free), bounded by replay.capacity_steps"
    assert fit().describe() == line


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"capacity_steps": 1000}, "replay.capacity_steps leaves 62 rows for each of 16 .* needs 65"),
        ({"env_steps": 500}, "env_steps leaves 32 rows"),
        ({"free_bytes": 10**6}, "half of the free memory .* leaves 2 rows"),
        ({"capacity_gb": 100, "capacity_steps": 10**8}, "replay.capacity_gb: .* only 64.0 GB are free"),
        ({"free_bytes": None}, "does not report free memory"),
    ],
)
def test_too_little_is_refused_with_its_cause(limits, message):
    with pytest.raises(UserError, match=message):
        fit(**limits)


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Simulates a machine with 8 MB of free memory."""
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=8_000_000))


def test_free_memory_of_a_machine_without_limits(tmp_path):
    assert memory.free_memory(tmp_path) == 8_000_000


def test_limit_of_an_outer_group_counts(tmp_path):
    write(tmp_path, {
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/memory.max": "5000000\n",
        "sys/fs/cgroup/outer/memory.current": "2000000\n",
        "sys/fs/cgroup/outer/memory.stat": "anon 1\ninactive_file 500000\n",
        "sys/fs/cgroup/outer/inner/memory.max": "max\n",
    })  # fmt: skip
    assert memory.free_memory(tmp_path) == 3_500_000


def test_limit_of_a_version_1_group_mounted_at_the_top_counts(tmp_path):
    write(tmp_path, {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000\n",
    })  # fmt: skip
    assert memory.free_memory(tmp_path) == 2_000_000


def test_limit_above_the_machine_does_not_count(tmp_path):
    write(tmp_path, {
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000\n",
    })  # fmt: skip
    assert memory.free_memory(tmp_path) == 8_000_000


def test_the_free_memory_of_this_machine_is_found(monkeypatch):
    monkeypatch.undo()
    assert memory.free_memory() > 0
