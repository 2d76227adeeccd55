"""The fused loop on several devices: each has its own environments, rings and share of the batch."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from test_devices import environment

PROGRAM = """
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from test_fused import SETTINGS, SIZES, SPEC, state_of

import dreamer
from dreamer.errors import UserError
from dreamer.runtime.devices import mesh as meshes, placement
from dreamer.runtime.fused import loop as fused, mesh as on_mesh, ring as rings
from dreamer.runtime.learning import moving, pipeline
from dreamer.runtime.learning.on_device import OnDevice

jax.config.update("jax_disable_most_optimizations", True)
folder = Path(sys.argv[1])
pytest.MonkeyPatch().setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))


def config_of(name, count, **overrides):
    given = {"workers__envs": 4, "replay__batch_size": 4, "replay__capacity_steps": 120, "devices__count": count}
    return tiny_runs.tiny(folder / name, **{**SETTINGS, **given, "loop": "device", **overrides})


def save(name):
    columns, state = state_of(folder / name)
    np.savez(folder / f"{name}.npz", **columns, **{f"state/{i}": x for i, x in enumerate(state)})


def stopped(name, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "SECONDS", 0.0)  # few turns are in flight when the callback asks to stop
        dreamer.train(config_of(name, count), callbacks=[lambda line: "stop" if line.env_steps >= 90 else None])
    assert 90 <= tiny_runs.lines(folder / name)[-1]["env_steps"] < 160


# Runs
compile_run = OnDevice.compile


def watched(self):
    compile_run(self)
    (folder / "program.txt").write_text(self._pipeline._program.as_text())
    (folder / "newest.txt").write_text(self._pipeline._rows.lower(self._pipeline.loop.ring, 4).compile().as_text())
    parts = [shard.data.shape for shard in self._pipeline.loop.ring.columns["reward"].addressable_shards]
    assert parts == [(2, 30)] * 2, parts


with pytest.MonkeyPatch.context() as patch:
    patch.setattr(OnDevice, "compile", watched)
    dreamer.train(config_of("two", 2))
save("two")
stopped("resumed", 2)
dreamer.train(config_of("resumed", 2), resume="yes")
save("resumed")
for name, first, second in (("fewer", 2, 1), ("more", 1, 2)):
    stopped(name, first)
    dreamer.train(config_of(name, second), resume="yes")
    print(name, tiny_runs.lines(folder / name)[-1]["updates"], tiny_runs.lines(folder / "two")[-1]["updates"])
for count in (1, 2):
    dreamer.train(config_of(f"rows-{count}", count, env_steps=80, replay_ratio=0))
    save(f"rows-{count}")
for settings in ({"workers__envs": 3}, {"devices__fsdp": 2}):
    try:
        dreamer.train(config_of("refused", 2, **settings))
    except UserError as error:
        print("refused:", error)
dreamer.train(config_of("host", 2, workers__envs=3, loop="auto", env_steps=40))

# Draws: each row tells its stream and its number.
mesh, sizes = meshes.make_mesh(), SIZES._replace(streams=6)
functions = type("Functions", (), {"turn": None, "metrics": None})
do = on_mesh.operations(mesh, tiny_runs.plain_agent, functions, fused.Plan(sizes, 4, 0, 0))
number = np.tile(np.arange(SIZES.rows, dtype=np.float32), (6, 1))
columns = {"reward": 100 * np.arange(6, dtype=np.float32)[:, None] + number, "action": np.zeros((6, SIZES.rows, 3))}
columns |= {name: np.zeros((6, SIZES.rows), bool) for name in ("is_first", "is_last", "is_terminal")}
ring = jax.device_put(rings.Ring(columns, jnp.int32(13), jnp.zeros(2, jnp.int32)), on_mesh.shardings(mesh).ring)
loop = fused.Loop(*[None] * 9)._replace(keys=fused.Keys(None, jax.random.key(1)))


@jax.jit
def draw(ring, step):
    ring, stream, start = do.draw(loop._replace(ring=ring, train=tiny_runs.TrainState(step, *[None] * 5)))
    return ring, do.gather(ring, stream, start)[0]


drawn, left = [], []
for step in range(7):
    ring, batch = draw(ring, jnp.int32(step))
    drawn.append([divmod(int(x), 100) for x in batch.reward[:, 0]])
    left.append(moving.queue(placement.to_host(ring._replace(columns={})), sizes))
replay = type("Replay", (), {"queue": left[1], "counts": np.array([13])})
taken = [moving.taken_on(replay, sizes, devices) for devices in (1, 2)]
(folder / "draws.json").write_text(json.dumps([drawn, left, taken]))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the folder in which a process with two virtual devices trained, and the lines that it printed."""
    folder = tmp_path_factory.mktemp("mesh")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], env=environment(2), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout.splitlines()


def equal(folder, ours: str, theirs: str) -> None:
    files = [np.load(folder / f"{name}.npz") for name in (ours, theirs)]
    assert {*files[0]} == {*files[1]} and "state/0" in files[0]
    for name in files[0]:
        np.testing.assert_array_equal(files[0][name], files[1][name], err_msg=name)


def test_a_run_on_two_devices_that_is_resumed_is_the_same_to_the_last_bit(trained):
    equal(trained[0], "resumed", "two")


def test_rows_do_not_depend_on_the_number_of_devices(trained):
    equal(trained[0], "rows-2", "rows-1")


@pytest.mark.parametrize("name", ["fewer", "more"])
def test_a_run_is_resumed_on_another_number_of_devices(trained, name):
    (line,) = [line.split() for line in trained[1] if line.startswith(f"{name} ")]
    assert line[1] == line[2] != "0"


def test_no_device_gathers_or_copies_a_ring(trained):
    text = (trained[0] / "program.txt").read_text()
    assert "num_partitions=2" in text and "[2,30," in text and "[4,30" not in text
    assert [line for line in text.splitlines() if " copy(" in line and "[2,30," in line] == []
    assert "all-reduce" in text and not sent(text)
    assert not sent((trained[0] / "newest.txt").read_text())


def sent(text: str) -> list[str]:
    """Returns the kinds of communication in a program that send more than sums."""
    return [kind for kind in ("all-gather", "all-to-all", "collective-permute") if kind in text]


def test_each_device_draws_its_share_from_its_own_streams_new_sequences_first(trained):
    drawn, left, _ = json.loads((trained[0] / "draws.json").read_text())
    assert all([stream // 3 for stream, _ in batch] == [0, 0, 1, 1] for batch in drawn)
    new = [[stream, start] for start in (0, 6) for stream in range(6)]
    assert drawn[0] == [new[0], new[1], new[3], new[4]]
    assert sorted(sum(drawn[:3], [])) == sorted(new) and left[2] == []
    assert left[1] == [[1, 6], [2, 6], [4, 6], [5, 6]]
    assert {start for batch in drawn[3:] for _, start in batch} - {0, 6}  # the others are drawn from all rows


def test_the_queue_of_a_checkpoint_tells_each_device_what_it_has_taken(trained):
    one, two = json.loads((trained[0] / "draws.json").read_text())[2]
    assert two == [4, 4]
    assert one == 7  # the first that is left; two of those after it are new once more


def test_the_first_lines_say_what_each_device_has(trained):
    assert any("loop: on 2 devices, each with 2 of the environments" in line for line in trained[1])


def test_settings_that_do_not_fit_several_devices_are_named(trained):
    envs, split = [line for line in trained[1] if line.startswith("refused: ")]
    reason = "2 devices cannot share 3 environments evenly; give workers.envs 2 or 4"
    assert reason in envs and "devices.fsdp 2 splits the train state" in split
    assert any(line.startswith(f"loop: on the host, because {reason}") for line in trained[1])
