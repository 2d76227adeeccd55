"""The fused loop makes the rows, latents and updates of the host's loop, and resumes from the same checkpoints."""

from __future__ import annotations

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import jax_walks
import numpy as np
import pytest
import tiny
import tiny_runs
from hypothesis import given, settings
from hypothesis import strategies as st

import dreamer
from dreamer import agent as agents
from dreamer.apps.verify import verify
from dreamer.errors import UserError
from dreamer.interfaces import JaxEnv
from dreamer.runtime.fused import envs as environments
from dreamer.runtime.fused import loop as fused
from dreamer.runtime.fused import ring as rings
from dreamer.runtime.fused.ring import Places, Ring, Sizes
from dreamer.runtime.fused.workers import JaxWorkers, programs_of
from dreamer.runtime.learning import moving
from dreamer.runtime.replay import columns
from dreamer.runtime.replay.config import Config
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.workers.interface import WorkerPlan
from dreamer.spaces import Action, Space, Spec
from dreamer.steps import Rows, Step
from envs import jax_probes

SPEC = Spec({"count": Space((), "float32"), "image": Space((2, 2, 3), "uint8")}, Action((3,)))
STORAGE = {"deter": Space((4,), "float32")}
SIZES = Sizes(streams=3, rows=20, context=1, length=5)


# ---- the ring


def host_ring(rows: int, reads: frozenset[str] = frozenset()) -> Replay:
    config = Config(capacity_steps=SIZES.streams * SIZES.rows, batch_size=2, batch_length=SIZES.length)
    replay = Replay(SPEC, STORAGE, config, streams=SIZES.streams, seed=0, env_steps=10_000, reads=reads)
    assert replay.size.rows_per_stream == SIZES.rows
    for number in range(rows):
        replay.add(*row(number))
    return replay


def row(number: int) -> tuple[Step, dict[str, np.ndarray]]:
    """Returns a row of each stream that tells its number and its stream; episodes have seven rows."""
    value = (100 * np.arange(SIZES.streams) + number).astype(np.float32)
    image = np.broadcast_to(value.astype(np.uint8)[:, None, None, None], (SIZES.streams, 2, 2, 3))
    flags = (np.full(SIZES.streams, number % 7 == place) for place in (0, 6, 6))
    step = Step({"count": value, "image": image}, np.eye(3, dtype=np.float32), value + 0.5, *flags)
    return step, {"deter": np.repeat(value[:, None], 4, 1)}


def device_ring(rows: int) -> Ring:
    spaces = columns.columns_of(SPEC, STORAGE)
    held = {k: jnp.zeros((SIZES.streams, SIZES.rows, *s.shape), columns.dtype_of(s)) for k, s in spaces.items()}
    ring = Ring(held, jnp.int32(0), jnp.int32(0))
    add = jax.jit(lambda ring, step, latent: rings.add(ring, fused.columns_of(step, latent, ring)))
    for number in range(rows):
        ring = add(ring, *row(number))
    return ring


@pytest.mark.parametrize("rows", [6, 20, 33])
def test_a_ring_holds_the_rows_of_the_hosts_replay(rows):
    replay, ring = host_ring(rows), device_ring(rows)
    assert {name: np.asarray(x).tobytes() for name, x in ring.columns.items()} == {
        name: x.tobytes() for name, x in replay.columns.items()
    }


@pytest.mark.parametrize("reads", [frozenset(), frozenset(STORAGE)], ids=["context", "all rows"])
@pytest.mark.parametrize("rows", [7, 20, 33])
def test_sequences_of_a_ring_are_those_of_the_hosts_replay(rows, reads, monkeypatch):
    replay, ring = host_ring(rows, reads), device_ring(rows)
    first = max(0, rows - SIZES.rows)
    stream, start = np.array([0, 2, 1]), first + np.array([0, rows - first - SIZES.sequence, 1])
    monkeypatch.setattr(replay, "_choose", lambda *args: (stream, start))
    batch, places = replay.sample(3)
    found, there = rings.gather(ring, SIZES._replace(reads=reads), jnp.array(stream), jnp.array(start))
    assert found.latent["deter"].shape[1] == (SIZES.sequence if reads else 1)
    np.testing.assert_array_equal(there.number, places.number)
    jax.tree.map(np.testing.assert_array_equal, dict(found._asdict()), dict(batch._asdict()))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=12))
def test_new_sequences_are_drawn_in_the_order_of_the_hosts_queue(turns):
    """turns: rows to add, and updates to draw for."""
    replay, added, taken = host_ring(0), 0, 0
    draw = jax.jit(functools.partial(rings.draw, sizes=SIZES, batch_size=2))
    for rows, updates in turns:
        for number in range(added, added + rows):
            replay.add(*row(number))
        added += rows
        for _ in range(updates if added >= SIZES.sequence else 0):
            queued = [pair for pair in replay.queue if pair[1] >= added - SIZES.rows][:2]
            _, places = replay.sample(2)
            ring = Ring({}, jnp.int32(added), jnp.int32(taken))
            ring, stream, start = draw(ring, key=jax.random.key(added))
            taken = int(ring.taken)
            assert [*zip(stream.tolist(), start.tolist(), strict=True)][: len(queued)] == queued
            assert moving.queue(ring, SIZES) == [p for p in replay.queue if p[1] >= added - SIZES.rows]


def test_uniform_draws_reach_every_item_about_equally_often():
    sizes = SIZES._replace(online=False)
    ring = Ring({}, jnp.int32(33), jnp.int32(0))
    _, stream, start = jax.jit(functools.partial(rings.draw, sizes=sizes, batch_size=9000))(ring, key=jax.random.key(0))
    items, counts = np.unique(np.stack([stream, start]), axis=1, return_counts=True)
    assert items[1].min() == 13 and items[1].max() == 33 - sizes.sequence
    assert len(counts) == 3 * 15 and abs(counts - 200).max() < 75  # five standard deviations


def test_a_row_of_several_sequences_keeps_the_latent_of_the_last(monkeypatch):
    replay, ring = host_ring(33), device_ring(33)
    stream, start = np.array([1, 1, 0, 1]), np.array([20, 23, 20, 21])
    number = start[:, None] + np.arange(1, SIZES.sequence)
    latent = {"deter": np.arange(4 * 5 * 4, dtype=np.float32).reshape(4, 5, 4)}
    replay.refresh(Rows(stream, number), latent)
    ring = jax.jit(rings.refresh)(ring, Places(jnp.array(stream), jnp.array(number)), latent)
    np.testing.assert_array_equal(ring.columns["latent/deter"], replay.columns["latent/deter"])


# ---- the environments


def test_environments_follow_the_rows_of_episodes():
    env = jax_probes.make("counter", steps=3)
    functions = environments.make(env)
    envs = functions.begin(environments.env_keys(jnp.arange(2, dtype=jnp.uint32)))
    rows = [envs.row]
    for _ in range(8):
        envs = jax.jit(functions.turn)(envs, jnp.tile(jnp.eye(4)[2], (2, 1)), jnp.ones(2, bool))
        rows.append(envs.row)
    assert [int(x.is_first[0]) for x in rows] == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert [int(x.is_last[1]) for x in rows] == [0, 0, 0, 1, 0, 0, 0, 1, 0]
    assert [float(x.reward[0]) for x in rows][:6] == [0, 2, 2, 2, 0, 2]


def test_an_environment_that_is_not_asked_stays_as_it_is():
    functions = environments.make(jax_probes.make("both"))
    before = functions.begin(environments.env_keys(jnp.arange(3, dtype=jnp.uint32)))
    after = functions.turn(before, jnp.zeros((3, 2)), jnp.array([True, False, True]))
    assert after.turns.tolist() == [2, 1, 2]
    leaves = (jax.tree.leaves(envs._replace(key=())) for envs in (after, before))
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_array_equal(one[1], other[1])


# ---- the loop


SETTINGS = {
    "env": "jax_probes:both", "env_steps": 160, "eval__episodes": 0, "eval__video": "off",
    "replay__capacity_steps": 60, "log__tensorboard": False,
}  # fmt: skip


def state_of(run_dir) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Returns the replay's columns and the train state of the newest checkpoint."""
    seen = {}

    def look(run):
        seen["columns"] = {name: column.copy() for name, column in run.parts.replay.columns.items()}
        state = run.parts.learner.state._replace(key=None)
        seen["state"] = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        run.stopped = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamer.runtime.run.loop.Run.take_turns", look)
        patch.setattr("dreamer.runtime.run.loop.Run.leave", lambda run: None)
        config = dreamer.load_config(run_dir / "config.yaml", overrides={"env_steps": 10_000, "loop": "host"})
        dreamer.train(config, resume="yes")
    return seen["columns"], seen["state"]


@pytest.fixture(scope="module")
def on_the_device(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("fused") / "device"
    return dreamer.train(tiny_runs.tiny(run_dir, **SETTINGS, loop="device"))


def test_the_host_makes_the_same_run_from_the_same_draws(on_the_device, tmp_path, monkeypatch):
    """The host's loop with the environments as workers, and the sequences that the device draws."""

    def choose(replay, batch_size, online):
        sizes = Sizes(2, replay.size.rows_per_stream, 1, 8)
        ring = Ring({}, jnp.int32(replay.counts[0]), jnp.int32(moving.taken(replay, sizes)))
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), updates.pop(0))
        ring, stream, start = rings.draw(ring, sizes, key, batch_size)
        replay.queue.clear()
        replay.queue.extend(moving.queue(ring, sizes))
        return np.asarray(stream, np.int64), np.asarray(start, np.int64)

    updates = [*range(1000)]
    monkeypatch.setattr(Replay, "_choose", choose)
    host = dreamer.train(tiny_runs.tiny(tmp_path / "host", **SETTINGS, loop="host"))
    monkeypatch.undo()
    (rows, state), (other_rows, other_state) = state_of(host), state_of(on_the_device)
    assert rows.keys() == other_rows.keys()
    for name, column in rows.items():
        if name.startswith("latent/"):
            np.testing.assert_allclose(column, other_rows[name], atol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(column, other_rows[name], err_msg=name)
    for one, other in zip(state, other_state, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_last_bit(on_the_device, tmp_path):
    halves = [line["env_steps"] for line in tiny_runs.lines(on_the_device)]
    assert halves[-1] == 160
    run_dir = tmp_path / "run"
    config = tiny_runs.tiny(run_dir, **SETTINGS, loop="device")
    dreamer.train(config, callbacks=[lambda line: "stop" if line.env_steps >= 70 else None])
    assert tiny_runs.lines(run_dir)[-1]["env_steps"] < 160
    dreamer.train(config, resume="yes")
    for whole, resumed in zip(state_of(on_the_device), state_of(run_dir), strict=True):
        jax.tree.map(np.testing.assert_array_equal, whole, resumed)


@pytest.mark.slow
def test_the_host_resumes_a_run_of_the_device(on_the_device, tmp_path):
    run_dir = tmp_path / "run"
    dreamer.train(
        tiny_runs.tiny(run_dir, **SETTINGS, loop="device"),
        callbacks=[lambda line: "stop" if line.env_steps >= 70 else None],
    )
    dreamer.train(tiny_runs.tiny(run_dir, **SETTINGS, loop="host"), resume="yes")
    assert tiny_runs.lines(run_dir)[-1]["env_steps"] == 160
    assert tiny_runs.lines(run_dir)[-1]["updates"] == tiny_runs.lines(on_the_device)[-1]["updates"]


@functools.cache
def compiled():
    """Returns the compiled loop of a tiny agent, and how often `update` was traced."""
    env, sizes = jax_probes.make("both"), Sizes(4, 64, 1, tiny.LENGTH)
    agent = agents.make(tiny.CONFIG, env.spec)
    plan = fused.Plan(sizes, 2, Fraction(1, 4), 12)
    functions = environments.make(env)
    traces = []

    def update(*args):
        traces.append(args)
        return agent.update(*args)

    run = fused.make_run(agent._replace(update=update), env.spec, functions, plan)
    spaces = columns.columns_of(env.spec, agent.storage)
    held = {k: jnp.zeros((4, 64, *s.shape), columns.dtype_of(s)) for k, s in spaces.items()}
    loop = fused.Loop(
        fused.Keys(jax.random.key(1), jax.random.key(2)), agent.init(jax.random.key(0)),
        Ring(held, jnp.int32(0), jnp.int32(0)),
        functions.begin(environments.env_keys(jnp.arange(4, dtype=jnp.uint32))), agent.initial_carry(4), jnp.int32(0),
        fused.Episodes(jnp.zeros(4), jnp.zeros(4, jnp.int32)), jnp.bool_(False), jnp.int32(0),
    )  # fmt: skip
    return tiny.jit(run, donate_argnums=0).lower(loop, jnp.int32(1)).compile(), loop, len(traces)


def test_the_program_does_not_copy_the_ring():
    text = compiled()[0].as_text()
    assert "[4,64," in text
    assert [line for line in text.splitlines() if " copy(" in line and "[4,64," in line] == []


def test_one_program_makes_any_number_of_turns():
    program, loop, _ = compiled()
    loop, report = program(jax.tree.map(jnp.copy, loop), jnp.int32(3))
    assert (int(loop.ring.added), int(report.updates)) == (3, 0)
    loop, report = program(loop, jnp.int32(37))
    assert int(loop.ring.added) == 40
    # Training starts with the first 12 items: 4 streams with 9 rows each. Then one update is due for 4 rows.
    assert int(report.updates) == 1 + (40 - 9)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"env": "broken_envs:sound"}, "not written in JAX"),
        ({"replay__uniform": 0.5, "replay__recency": 0.5}, "replay.recency"),
        ({"replay__tier": "disk"}, "tier disk"),
    ],
)
def test_a_loop_that_cannot_run_on_the_device_says_why(tmp_path, settings, reason):
    with pytest.raises(UserError, match=reason):
        dreamer.train(tiny_runs.tiny(tmp_path / "run", **{**SETTINGS, **settings}, loop="device"))
    assert not (tmp_path / "run").exists()


def test_a_game_of_several_agents_has_the_rows_of_the_host(tmp_path, monkeypatch):
    """Without updates, so that the rows do not depend on what is drawn from the replay."""
    monkeypatch.setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))
    settings = {**SETTINGS, "env": "jax_teams:make", "env_steps": 80, "replay_ratio": 0}
    runs = [dreamer.train(tiny_runs.tiny(tmp_path / loop, **settings, loop=loop)) for loop in ("host", "device")]
    (host, _), (device, _) = map(state_of, runs)
    assert device["reward"].shape[0] == 4
    for name in host:
        if not name.startswith("latent/"):
            np.testing.assert_array_equal(host[name], device[name], err_msg=name)
    ends = np.flatnonzero(device["is_last"][0])
    assert len(ends) > 1 and not device["is_terminal"].any() and not device["action"][:, ends].any()


def test_an_environment_that_restarts_ignores_one_action_and_begins_with_a_new_seed():
    plan = WorkerPlan("jax_probes:counter", {}, 1, 0, None, 2)
    with JaxWorkers(programs_of(jax_probes.make("counter")), plan) as workers:
        everyone, action = np.arange(2), np.tile(np.eye(4, dtype=np.float32)[3], (2, 1))
        assert workers.receive().step.is_first.all()
        workers.send(everyone, action)
        workers.receive()
        workers.restart(1)
        workers.send(everyone, action)
        step = workers.receive().step
        assert step.is_first.tolist() == [False, True] and step.reward.tolist() == [3.0, 0.0]
        assert (workers.seed(0), workers.seed(1)) == (0, 3)


@pytest.mark.parametrize("loop", ["host", "device"])
@pytest.mark.parametrize("agents", [1, 2])
def test_own_metrics_of_episodes_are_logged_on_the_host_and_on_the_device(tmp_path, monkeypatch, agents, loop):
    monkeypatch.setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))
    settings = {**SETTINGS, "env": "jax_walks:measured", "env_options": {"agents": agents}, "replay_ratio": 0}
    settings |= {"env_steps": 80, "eval__episodes": 2}
    lines = tiny_runs.lines(dreamer.train(tiny_runs.tiny(tmp_path / "run", **settings, loop=loop)))
    ended = [line for line in lines if "episode/length" in line]
    assert ended and all(line["episode/steps"] == line["episode/length"] for line in ended)
    assert all(line["episode/more/one"] == 1 for line in ended) and lines[-1]["eval/steps"] == lines[-1]["eval/length"]


def test_own_metrics_of_a_last_row_survive_a_checkpoint():
    made, action = programs_of(jax_walks.measured()), np.tile(np.eye(2, dtype=np.float32)[0], (2, 1))
    plan, everyone = WorkerPlan("mine", {}, 1, 0, None, 2), np.arange(2)
    with JaxWorkers(made, plan) as workers, JaxWorkers(made, plan) as others:
        step = workers.receive().step
        while not step.is_last.any():
            workers.send(everyone, action)
            saved = workers.states()
            step = workers.receive().step
        assert others.restore(*saved) == {}
        others.receive()
        assert others.finished() == workers.finished() != {}


def faulty(fault: str) -> JaxEnv:
    """Returns an environment whose third row of an episode has a fault that tracing does not show."""

    def row(count, first):
        count = jnp.int32(count)
        no, third = jnp.zeros((), bool), count == 2
        wrong = {name: no | (third & (fault == name)) for name in ("is_first", "is_terminal")}
        flags = dict(is_first=(first & (fault != "begin")) | wrong["is_first"], is_last=count == 4)
        obs = {"vector": jnp.zeros(2), "class": jnp.where(third & (fault == "class"), 3, 0)}
        return Step(obs, jnp.zeros(2), jnp.zeros(()), **flags, is_terminal=wrong["is_terminal"])

    spec = Spec({"vector": Space((2,), "float32"), "class": Space((), "int32", 3)}, Action((2,)))
    begin = lambda key: (jnp.int32(0), row(0, jnp.bool_(True)))  # noqa: E731
    return JaxEnv(spec, begin, lambda key, count, action: (count + 1, row(count + 1, jnp.bool_(False))))


@pytest.mark.parametrize("loop", ["host", "device"])
@pytest.mark.parametrize(("fault", "text"), [
    ("is_first", "it resets itself inside step"), ("is_terminal", "a row has is_terminal, but not is_last"),
    ("class", "obs/class is not one of the classes 0 to 2"), ("begin", "the row of its reset does not have is_first"),
])  # fmt: skip
def test_a_row_that_breaks_the_contract_names_its_environment(tmp_path, monkeypatch, fault, text, loop):
    monkeypatch.setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))
    settings = {**SETTINGS, "env": "test_fused:faulty", "env_options": {"fault": fault}, "replay_ratio": 0}
    with pytest.raises(UserError, match=f"env 'test_fused:faulty #0': {text}"):
        dreamer.train(tiny_runs.tiny(tmp_path / "run", **settings, loop=loop))


def test_states_with_keys_and_short_floats_continue_exactly():
    made, everyone = programs_of(jax_walks.odd_leaves()), np.arange(2)
    plan, action = WorkerPlan("mine", {}, 1, 0, None, 2), np.tile(np.eye(2, dtype=np.float32)[0], (2, 1))
    with JaxWorkers(made, plan) as workers, JaxWorkers(made, plan._replace(seed=7)) as others:
        workers.receive()
        workers.send(everyone, action)
        assert others.restore(*workers.states()) == {}
        for _ in range(2):
            rows = [each.receive().step.obs["vector"] for each in (workers, others)]
            np.testing.assert_array_equal(*rows)
            for each in (workers, others):
                each.send(everyone, action)


def test_an_evaluation_of_endless_episodes_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))
    settings = {**SETTINGS, "env_steps": 40, "eval__episodes": 2, "eval__max_steps": 3}
    run_dir = dreamer.train(tiny_runs.tiny(tmp_path / "run", **settings, loop="device"))
    assert tiny_runs.lines(run_dir)[-1]["eval/length"] == 3


@pytest.mark.parametrize("name", ["reward", "obs/vector"])
def test_a_row_that_is_not_finite_names_its_environment(tmp_path, monkeypatch, name):
    monkeypatch.setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))
    receive = moving.Moving.receive

    def sick(self, rows, report, train):
        column = rows[name].copy()
        column[1] = np.nan
        receive(self, {**rows, name: column}, report, train)

    monkeypatch.setattr(moving.Moving, "receive", sick)
    with pytest.raises(UserError, match=f"env 'jax_probes:both #1': {name} is not finite"):
        dreamer.train(tiny_runs.tiny(tmp_path / "run", **SETTINGS, loop="device"))
    monkeypatch.undo()
    assert verify(tmp_path / "run").whole
