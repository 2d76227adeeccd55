"""A population on several devices: each member is the run that it is on one device, to the last bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from test_devices import environment

from dreamer.runtime.fused import spread

SEEDS = 3  # two on the first device, one on the second, whose second place repeats it
PROGRAM = """
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from test_fused import SETTINGS, state_of

import dreamer
from dreamer.errors import UserError
from dreamer.runtime.fused import loop as fused, population, spread
from dreamer.runtime.fused.ring import Ring

jax.config.update("jax_disable_most_optimizations", True)
folder = Path(sys.argv[1])
pytest.MonkeyPatch().setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))


def config_of(name, count, **overrides):
    given = {**SETTINGS, "env_steps": 96, "population__seeds": 3, "devices__count": count, **overrides}
    return tiny_runs.tiny(folder / name, **given)


def save(name):
    for member in range(3):
        columns, state = state_of(folder / name / f"seed{member}")
        np.savez(folder / f"{name}-{member}.npz", **columns, **{f"state/{i}": x for i, x in enumerate(state)})


def stopped(name, count):
    dreamer.train(config_of(name, count), callbacks=[lambda line: "stop" if line.env_steps >= 50 else None])
    assert tiny_runs.lines(folder / name / "seed2")[-1]["env_steps"] < 96


held, programs = [], spread.programs


def watched(where, run):
    made = programs(where, run)

    def compiled(loop, turns):
        program = made.run.lower(loop, turns).compile()
        (folder / f"{len(where.devices)}.txt").write_text(program.as_text())
        parts = {shard.device: shard.data.shape[0] for shard in loop.train.params["w"].addressable_shards}
        assert set(parts.values()) == {where.each} and len(parts) == len(where.devices)
        held.append(len(parts))
        return made.run.lower(loop, turns)

    return made._replace(run=type("Run", (), {"lower": staticmethod(compiled)}))


with pytest.MonkeyPatch.context() as patch:
    patch.setattr(spread, "programs", watched)
    dreamer.train(config_of("one", 1))
    dreamer.train(config_of("two", 2))
    assert held == [1, 2]
stopped("fewer", 2)
dreamer.train(config_of("fewer", 1), resume="yes")
stopped("more", 1)
dreamer.train(config_of("more", 2), resume="yes")
for name in ("one", "two", "fewer", "more"):
    save(name)

inherits = {"population__exploit_every": 32, "population__exploit_share": 0.34, "eval__every": 32, "eval__episodes": 1}
for name, count in (("heir-one", 1), ("heir-two", 0)):
    dreamer.train(config_of(name, count, **inherits))
    (folder / f"{name}.jsonl").write_text((folder / name / "lineage.jsonl").read_text())
    save(name)

# Inheritance, from each place to each other one, with numbers whose bits are easily lost.
def place(*numbers):
    x = jnp.float32(numbers)
    params, extra, counts = {"w": x, "b": x > 0}, {"h": x.astype(jnp.bfloat16)}, {"n": jnp.int32(x)}
    train = tiny_runs.TrainState(x, x, params, extra, {"lr": x}, counts)
    loop = fused.Loop(x, train, Ring({"reward": x}, 1, 1), x, x, 1, x, 1, 1)
    return jax.tree.map(jnp.array, loop)  # each leaf in a buffer of its own, because they are donated


minus = -0.0
where = spread.spread(4, jax.devices())
inherit, expected = spread.programs(where, None).inherit, jax.jit(population.inherit)
wrong = []
for number, parent in itertools.product(range(4), repeat=2):
    parts = [jax.device_put(place(*x), at) for x, at in zip([(minus, 2), (-3, 4)], where.devices)]
    args = jnp.int32(number), jnp.int32(parent), {"lr": jnp.float32(7)}
    found = jax.tree.leaves(inherit(spread.join(where, parts), *args))
    sound = jax.tree.leaves(expected(place(minus, 2, -3, 4), *args))
    if [np.asarray(x).tobytes() for x in found] != [np.asarray(x).tobytes() for x in sound]:
        wrong.append([number, parent])
print("inherited otherwise:", wrong)

for settings in ({"devices__fsdp": 2}, {"count": 9}, {"population__together": 3}):
    try:
        dreamer.train(config_of("refused", **{"count": 2, **settings}))
    except UserError as error:
        print("refused:", error)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the folder in which a process with two virtual devices trained populations, and its output."""
    folder = tmp_path_factory.mktemp("spread")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], env=environment(2), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.parametrize(
    ("ours", "theirs"), [("two", "one"), ("fewer", "one"), ("more", "one"), ("heir-two", "heir-one")]
)
def test_a_member_is_the_same_to_the_last_bit_on_any_number_of_devices(trained, ours, theirs):
    for member in range(SEEDS):
        files = [np.load(trained[0] / f"{name}-{member}.npz") for name in (ours, theirs)]
        assert {*files[0]} == {*files[1]} and "state/0" in files[0]
        for name in files[0]:
            np.testing.assert_array_equal(files[0][name], files[1][name], err_msg=name)


def test_members_inherit_from_other_devices(trained):
    lineages = [(trained[0] / f"{name}.jsonl").read_text() for name in ("heir-one", "heir-two")]
    assert lineages[0] == lineages[1] and lineages[0].count("\n") >= 2
    assert "inherited otherwise: []" in trained[1]


def test_members_on_several_devices_do_not_communicate(trained):
    text = (trained[0] / "2.txt").read_text()
    assert "num_partitions=2" in text
    assert not [word for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute") if word in text]


def test_the_first_lines_say_how_the_members_are_spread(trained):
    assert "members: 3 on 2 x cpu, at most 2 on each" in trained[1]


def test_settings_that_do_not_fit_a_population_on_several_devices_are_named(trained):
    split, count, together = [line for line in trained[1].splitlines() if line.startswith("refused: ")]
    assert "devices.fsdp 2 splits one agent over several devices" in split
    assert "devices.count is 9, there are 2 (cpu)" in count
    assert "population.together is 3, it must divide the 2 members of a device: one of [1, 2]" in together


@pytest.mark.parametrize(
    ("members", "devices", "expected"),
    [(8, 4, (4, 2)), (5, 4, (3, 2)), (3, 4, (3, 1)), (9, 4, (3, 3)), (1, 4, (1, 1)), (6, 1, (1, 6))],
)
def test_members_are_spread_over_the_fewest_devices_that_are_as_fast_as_all(members, devices, expected):
    found = spread.spread(members, range(devices))
    assert (len(found.devices), found.each) == expected
