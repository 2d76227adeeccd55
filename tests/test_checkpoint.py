import errno
import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dreamer.errors import UserError
from dreamer.interfaces import TrainState
from dreamer.runtime.files import checkpoint
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.files.checkpoint_files import read_meta
from dreamer.runtime.files.manifest import Manifest


class Moments(NamedTuple):
    count: Any
    mu: Any
    nu: Any


class Nothing(NamedTuple):
    """An optimizer state without arrays, like some of optax."""


def arrays(seed: int) -> dict:
    """Makes parameters with names like those of Flax and Haiku, and with special float values."""
    values = np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32)
    values[0] = [np.nan, np.inf, np.float32(1e-40)]
    return {
        "encoder/~/linear_0": {"w": jnp.asarray(values), "b": jnp.asarray(values[1], jnp.bfloat16)},
        "dyn": {"kernel": jnp.asarray(values.T + seed), "empty": {}},
    }


def train_state(seed: int = 0) -> TrainState:
    """Makes a state with all parts that silent bug 20 loses: return normaliser, slow critic, moments, key."""
    params = {"world_model": arrays(seed), "behavior": {"actor": arrays(seed + 1), "critic": arrays(seed + 2)}}
    extra = {
        "world_model": {},
        "behavior": {
            "returns": {"low": jnp.float32(seed - 1.5), "high": jnp.float32(seed + 2.5)},
            "slow_critic": arrays(seed + 3),
            "hyper": {"horizon": jnp.float32(333)},
        },
        "optimizer": {"learning_rate": jnp.float32(4e-5)},
    }
    opt_state = (Nothing(), (Moments(jnp.int32(seed + 7), arrays(seed + 4), arrays(seed + 5)), None), ())
    hyper = {"behavior": {"entropy": jnp.float32(seed)}}
    return TrainState(jnp.int32(seed + 3), jax.random.key(seed), params, extra, hyper, opt_state)


def raw(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def assert_same_bits(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        name = jax.tree_util.keystr(path)
        assert a.dtype == b.dtype and a.shape == b.shape, name
        assert raw(a).tobytes() == raw(b).tobytes(), name


def test_everything_is_restored_bit_for_bit(tmp_path):
    saved = train_state(seed=1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1000, saved, {"updates": 3})
    restored, meta = Checkpoints(tmp_path).restore(train_state(seed=2))
    assert_same_bits(restored, saved)
    assert isinstance(restored, TrainState) and isinstance(restored.opt_state[1][0], Moments)
    assert meta == {"updates": 3}


def test_a_state_is_restored_from_its_shapes_alone(tmp_path):
    saved = train_state(seed=1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved)
        restored, _ = checkpoints.restore(jax.eval_shape(train_state))
    assert_same_bits(restored, saved)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))


def test_numpy_and_python_numbers_keep_their_types(tmp_path):
    state = {"a": np.arange(5), "b": np.ones(2, ml_dtypes.bfloat16), "c": 3, "d": 0.1, "e": np.float64(0.25)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        restored, _ = checkpoints.restore({**state, "c": 0, "d": 0.0})
    assert isinstance(restored["a"], np.ndarray) and np.array_equal(restored["a"], state["a"])
    assert restored["b"].dtype == ml_dtypes.bfloat16
    assert (type(restored["c"]), restored["c"], type(restored["d"]), restored["d"]) == (int, 3, float, 0.1)
    assert float(restored["e"]) == 0.25


def test_meta_keeps_the_state_of_a_random_generator(tmp_path):
    generator = np.random.default_rng(3)
    generator.normal(size=3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)}, {"replay": generator.bit_generator.state})
        _, meta = checkpoints.restore({"x": jnp.ones(2)})
    other = np.random.default_rng(0)
    other.bit_generator.state = meta["replay"]
    assert other.normal() == generator.normal()


def test_a_state_may_be_donated_and_changed_while_it_is_saved(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state, host = {f"w{i}": jnp.zeros((500, 1000)) for i in range(4)}, np.zeros((500, 1000))
    like = jax.eval_shape(lambda: state), np.zeros_like(host)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, (state, host))
        host[:] = 1
        for _ in range(3):
            state = bump(state)
        restored, _ = checkpoints.restore(like)
    assert all(float(np.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(restored))


def test_old_checkpoints_are_deleted_and_any_kept_one_can_be_restored(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (10, 20, 100):
            checkpoints.save(step, {"x": jnp.full(3, step)})
    reader = Checkpoints(tmp_path)
    assert reader.steps() == [20, 100] and reader.latest() == 100
    assert reader.restore({"x": jnp.zeros(3, jnp.int32)})[0]["x"][0] == 100
    assert reader.restore({"x": jnp.zeros(3, jnp.int32)}, step=20)[0]["x"][0] == 20


DELETES = """
import os, signal, sys
from dreamer.runtime.files import checkpoint
from dreamer.runtime.files.checkpoint import Checkpoints
def killed(event, args):
    if event in ("os.remove", "os.rmdir") and "tmp" not in str(args[0]).rpartition("/run/")[2]:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
left = [int(sys.argv[2])]
with Checkpoints(sys.argv[1], keep=1) as checkpoints:
    checkpoints.save(1, {"x": 1}, {"of": 1})
    checkpoints.wait()
    sys.addaudithook(killed)
    checkpoints.save(2, {"x": 2}, {"of": 2})
"""


@pytest.mark.parametrize("files", [0, 1, 3])
def test_a_kill_in_the_middle_of_deleting_leaves_no_half_checkpoint(tmp_path, files):
    folder = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", DELETES, str(folder), str(files)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with Checkpoints(folder, keep=1) as checkpoints:
        assert checkpoints.latest() == 2
        assert all(read_meta(folder, step)["meta"] == {"of": step} for step in checkpoints.steps())
        checkpoints.save(3, {"x": 3})
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["3"]


def test_a_step_that_is_stored_is_left_as_it_is(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(1)})
        checkpoints.save(1, {"x": jnp.ones(1)})
        assert checkpoints.restore({"x": jnp.zeros(1)})[0]["x"] == 0


def test_saving_an_older_step_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"x": jnp.zeros(1)})
        with pytest.raises(UserError, match="the newer checkpoint 5 exists"):
            checkpoints.save(4, {"x": jnp.zeros(1)})


def test_a_later_run_continues_in_the_same_directory(tmp_path):
    for step in (1, 2):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(step, {"x": jnp.zeros(1)})
    assert Checkpoints(tmp_path).steps() == [1, 2]


def test_reading_creates_nothing(tmp_path):
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest() is None
        with pytest.raises(UserError, match="no checkpoint in"):
            checkpoints.restore({"x": jnp.zeros(1)})
    assert not (tmp_path / "run").exists()


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    assert Checkpoints(tmp_path).latest() is None


def test_the_error_for_a_missing_step_lists_the_available_steps(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, {"x": jnp.zeros(1)})
        with pytest.raises(UserError, match="no checkpoint 11 .*available: 10"):
            checkpoints.restore({"x": jnp.zeros(1)}, step=11)


def test_a_checkpoint_of_another_config_is_reported_leaf_by_leaf(tmp_path):
    saved = train_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved)
    wider = {**saved.params, "behavior": {**saved.params["behavior"], "critic": {"w": jnp.zeros((7, 9))}}}
    wider["world_model"] = {**wider["world_model"], "dyn": {"kernel": jnp.zeros((6, 5)), "empty": {}}}
    with pytest.raises(UserError) as error:
        Checkpoints(tmp_path).restore(saved._replace(params=wider))
    text = str(error.value)
    assert "params/world_model/dyn/kernel is float32[3, 5] in the checkpoint, float32[6, 5] in this config" in text
    assert "params/behavior/critic/w is not in the checkpoint" in text
    assert "and 2 more" in text and "\n" not in text


@pytest.mark.parametrize("like", [jnp.zeros(3, jnp.int32), jnp.zeros((3, 1)), jnp.zeros(4)])
def test_a_leaf_of_another_form_is_never_cast_or_cut(tmp_path, like):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(3)})
        with pytest.raises(UserError, match="another config: x is"):
            checkpoints.restore({"x": like})


def test_a_leaf_missing_in_the_target_is_reported(tmp_path):
    saved = train_state()
    extra = {**saved.extra, "behavior": {k: v for k, v in saved.extra["behavior"].items() if k != "returns"}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved)
        with pytest.raises(UserError, match="extra/behavior/returns/high is only in the checkpoint"):
            checkpoints.restore(saved._replace(extra=extra))


def test_a_damaged_checkpoint_is_reported_in_one_line(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(3)})
    for file in (tmp_path / "checkpoints" / "1" / "state").rglob("d/*"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="checkpoint 1 in .* is damaged: the checksum of d/") as error:
        Checkpoints(tmp_path).restore({"x": jnp.zeros(3)})
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_its_state_is_reported(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(3)})
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "state")
    with pytest.raises(UserError, match="is damaged: state is missing"):
        Checkpoints(tmp_path).restore({"x": jnp.zeros(3)})


FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ValueError(f"RESOURCE_EXHAUSTED: Error writing: {os.strerror(errno.ENOSPC)} [os_error_code='28']"),
]


@pytest.mark.parametrize("failure", FULL, ids=["OSError", "tensorstore"])
def test_a_full_disk_in_the_background_is_reported_and_older_checkpoints_stay(tmp_path, monkeypatch, failure):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": jnp.ones(3)})
    checkpoints.wait()
    checkpoints.save(2, {"x": jnp.zeros(3)})

    def fail(self):
        raise failure

    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    checkpoints._manager.wait_until_finished()
    (tmp_path / "checkpoints" / "2").rename(half)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"no space.*\d+ bytes free"):
        patch.setattr(type(checkpoints._manager), "wait_until_finished", fail)
        checkpoints.save(3, {"x": jnp.zeros(3)})
    assert not half.exists() and checkpoints.steps() == [1]
    assert checkpoints.restore({"x": jnp.zeros(3)})[0]["x"].sum() == 3
    checkpoints.save(4, {"x": jnp.zeros(3)})
    checkpoints.close()
    assert checkpoints.steps() == [1, 4]


@pytest.mark.parametrize("free, files", [(3, 1000), (10**9, 10)], ids=["bytes", "files"])
def test_a_disk_without_room_for_a_save_is_reported_before_orbax_starts_one(tmp_path, monkeypatch, free, files):
    """Otherwise Orbax's threads wait for minutes for a folder that could not be created, and print tracebacks."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(3)})
        checkpoints.wait()
        with monkeypatch.context() as patch, pytest.raises(UserError, match="no space left on the disk"):
            sizes = {"f_bavail": free, "f_bfree": free, "f_blocks": free, "f_frsize": 1}
            disk = types.SimpleNamespace(f_files=files, f_favail=files, **sizes)
            patch.setattr(checkpoint.os, "statvfs", lambda place: disk)
            checkpoints.save(2, {"x": jnp.zeros(3)})
        assert checkpoints.steps() == [1] and not list(tmp_path.rglob("*tmp*"))
        checkpoints.save(3, {"x": jnp.zeros(3)})


def test_errors_of_tasks_of_a_failed_save_are_not_printed():
    quiet = checkpoint._Quiet()
    text = "Task exception was never retrieved future: <Task coro=<run() at orbax/checkpoint/serialization.py>"
    assert not quiet.filter(logging.LogRecord("asyncio", logging.ERROR, "base_events.py", 1, text, (), None))
    assert quiet.filter(logging.LogRecord("asyncio", logging.ERROR, "base_events.py", 1, "of a user", (), None))


LIMITED = """
import resource, sys, time
import jax.numpy as jnp, numpy as np
from dreamer.errors import UserError
from dreamer.runtime.files import checkpoint
from dreamer.runtime.files.checkpoint import Checkpoints

noise = np.random.default_rng(0).normal(size=300_000)
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"x": jnp.ones(3)})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoints.save(2, {"x": jnp.asarray(noise)})
try:
    checkpoints.close()
except UserError as error:
    print(error)
print(Checkpoints(sys.argv[1]).restore({"x": jnp.zeros(3)})[0]["x"].sum())
"""


def test_a_write_that_the_system_refuses_is_reported_without_a_traceback(tmp_path):
    """A real failure: a file that may not grow, in a separate process."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"cannot write {tmp_path}/checkpoints: File too large", "3.0"]
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_an_error_at_closing_does_not_hide_the_first_one(tmp_path, monkeypatch):
    def fail(self):
        raise FULL[0]

    with pytest.raises(ZeroDivisionError) as error, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(3)})
        checkpoints.wait()
        monkeypatch.setattr(type(checkpoints._manager), "wait_until_finished", fail)
        raise ZeroDivisionError
    assert "no space" in error.value.__notes__[0]


def test_a_directory_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "run").touch()
    with Checkpoints(tmp_path / "run") as checkpoints, pytest.raises(UserError, match="cannot write"):
        checkpoints.save(1, {"x": jnp.zeros(1)})


def test_meta_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError, match="JSON"):
        checkpoints.save(1, {"x": jnp.zeros(1)}, {"bad": np.float32(1)})
    assert not (tmp_path / "checkpoints").exists()


def test_a_leaf_that_is_not_a_number_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError, match="leaf name of the state is a str"):
        checkpoints.save(1, {"name": "rssm"})


def test_logging_is_left_as_it_was(tmp_path):
    before = list(logging.getLogger("absl").filters)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(1)})
        checkpoints.restore({"x": jnp.zeros(1)})
    assert logging.getLogger("absl").filters == before



@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_each_damaged_file_of_a_state_is_named_and_nothing_is_read(tmp_path, damage, capfd):
    state = {f"x{i}": np.arange(3 + i, dtype=np.float32) for i in range(40)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    folder = tmp_path / "checkpoints" / "1" / "state"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "commit_success.txt"]
    assert len(files) > 3
    for path in files:
        data = path.read_bytes()
        if damage == "gone" or not data:
            path.unlink()
        else:
            path.write_bytes(data[:-1] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
        with pytest.raises(UserError, match=f"is damaged: .*{path.relative_to(folder)}") as error:
            Checkpoints(tmp_path).restore(state)
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match=f"is damaged: .*{path.relative_to(folder)}"):
            Checkpoints(tmp_path).leaves()
        path.write_bytes(data)
    gc.collect()  # reads that Orbax abandoned would now print errors
    assert capfd.readouterr().err == ""
    assert_same_bits(Checkpoints(tmp_path).restore(state)[0], state)


def test_a_flipped_byte_is_never_restored_silently(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.arange(5000, dtype=jnp.float32), "y": jnp.ones(3)}, {"updates": 3})
    like = {"x": jnp.zeros(5000), "y": jnp.zeros(3)}
    good, _ = Checkpoints(tmp_path).restore(like)
    found = 0
    for path in sorted(path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()):
        data = path.read_bytes()
        for place in {0, len(data) // 3, len(data) // 2, max(0, len(data) - 20)} if data else ():
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            try:
                state, meta = Checkpoints(tmp_path).restore(like)
                assert_same_bits(state, good)
                assert meta == {"updates": 3}
            except UserError as error:
                assert "checkpoint" in str(error)
                found += 1
            path.write_bytes(data)
    assert found > 3


def test_a_leaf_that_changed_on_the_way_is_named(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(3)})
    monkeypatch.setattr("dreamer.runtime.files.checkpoint.crc_of", lambda leaf: 0)
    with pytest.raises(UserError, match="is damaged: the checksum of x differs"):
        Checkpoints(tmp_path).restore({"x": jnp.zeros(3)})


def test_the_manifest_is_read_without_the_state(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(3)}, {"env_steps": 1, "updates": 3})
        assert checkpoints.manifest(1) == Manifest(1, 3)


def test_old_checkpoints_stay_at_the_distance_asked_for(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=100) as checkpoints:
        for step in (0, 40, 90, 130, 170, 260, 270, 280):
            checkpoints.save(step, {"x": jnp.ones(3)})
        checkpoints.wait()
        assert checkpoints.steps() == [0, 130, 260, 270, 280]
