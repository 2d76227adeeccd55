import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dreamer
from dreamer.errors import UserError
from dreamer.runtime.replay import columns, memory
from dreamer.runtime.replay.replay import Config, Replay, size_replay
from dreamer.spaces import Action, Space, Spec
from dreamer.steps import Step

SPEC = Spec({"id": Space((2,), "int32"), "image": Space((4, 4, 3), "uint8")}, Action(continuous=2))
STORAGE = {"deter": Space((3,), "float32"), "stoch": Space((2,), "uint8"), "half": Space((2,), "bfloat16")}


def build(envs=2, rows=10, length=3, context=1, online=False, seed=0, reads=frozenset(), **settings):
    """Makes a replay with rings of `rows` rows."""
    config = Config(capacity_steps=envs * rows, batch_length=length, context=context, online=online, **settings)
    return Replay(SPEC, STORAGE, config, streams=envs, seed=seed, env_steps=10**9, reads=reads)


def collected(envs, numbers, first=False, last=False, seed=0):
    """Makes row `number` of each listed environment. Some values identify ring and number; others are random."""
    rng = np.random.default_rng([seed, *envs, *numbers])
    count = len(envs)
    flags = [np.broadcast_to(np.asarray(flag, bool), count).copy() for flag in (first, last, False)]
    obs = {
        "id": np.stack([envs, numbers], 1).astype(np.int32),
        "image": rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8),
    }
    step = Step(obs, rng.normal(size=(count, 2)).astype(np.float32), rng.normal(size=count).astype(np.float32), *flags)
    latent = {
        "deter": np.stack([envs, numbers, np.zeros(count)], 1).astype(np.float32),
        "stoch": rng.integers(0, 256, (count, 2), dtype=np.uint8),
        "half": rng.normal(size=(count, 2)).astype(ml_dtypes.bfloat16),
    }
    return step, latent


def fill(replay, rows, first=(), last=()):
    """Appends `rows` rows to every ring. first, last: numbers of the rows with the flag."""
    envs = list(range(len(replay.counts)))
    for _ in range(rows):
        number = int(replay.counts[0])
        step, latent = collected(envs, [number] * len(envs), number in first, number in last)
        replay.add(step, latent)


def flat(step, latent, index):
    """Returns one row as a plain dictionary."""
    return {
        **{f"obs/{key}": value[index] for key, value in step.obs.items()},
        **{name: getattr(step, name)[index] for name in step._fields if name != "obs"},
        **{f"latent/{name}": value[index] for name, value in latent.items()},
    }


@st.composite
def histories(draw):
    """Draws a replay filled by random subsets of environments, and for each a list of all rows ever added."""
    envs, length, context = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(0, 1))
    rows = length + context + draw(st.integers(0, 6))
    replay = build(envs, rows, length, context, online=draw(st.booleans()), seed=draw(st.integers(0, 99)))
    model: list[list[dict]] = [[] for _ in range(envs)]
    turns = draw(st.lists(st.sets(st.integers(0, envs - 1), min_size=1), min_size=1, max_size=30))
    for turn in turns:
        chosen = draw(st.permutations(sorted(turn)))
        flags = draw(st.lists(st.booleans(), min_size=2 * len(chosen), max_size=2 * len(chosen)))
        first, last = flags[: len(chosen)], flags[len(chosen) :]
        step, latent = collected(chosen, [len(model[env]) for env in chosen], first, last)
        replay.add(step, latent, np.array(chosen))
        for index, env in enumerate(chosen):
            model[env].append(flat(step, latent, index))
    return replay, model


@settings(max_examples=150, deadline=None)
@given(histories())
def test_sequences_are_the_rows_as_added(history):
    replay, model = history
    config, sequence = replay.config, replay.sequence
    ring = replay.size.rows_per_stream
    assert replay.steps == sum(map(len, model))
    assert replay.rows == sum(min(len(rows), ring) for rows in model)
    assert len(replay) == sum(max(0, min(len(rows), ring) - sequence + 1) for rows in model)
    if not len(replay):
        with pytest.raises(ValueError, match="too few for one sequence"):
            replay.sample(1)
        return
    batch, rows = replay.sample(8)
    for b in range(8):
        env, start = int(rows.stream[b]), int(rows.number[b, 0]) - config.context
        assert rows.number[b].tolist() == list(range(start + config.context, start + sequence))
        assert max(0, len(model[env]) - ring) <= start <= len(model[env]) - sequence
        for t in range(sequence):
            expected = model[env][start + t]
            after = model[env][start + t + 1] if start + t + 1 < len(model[env]) else None
            for key, value in batch.obs.items():
                np.testing.assert_array_equal(value[b, t], expected[f"obs/{key}"])
            np.testing.assert_array_equal(batch.action[b, t], expected["action"])
            assert batch.reward[b, t] == expected["reward"]
            assert batch.is_terminal[b, t] == expected["is_terminal"]
            assert batch.is_first[b, t] == (expected["is_first"] or t == 0)
            assert batch.is_last[b, t] == (expected["is_last"] or bool(after and after["is_first"]))
        for name, value in batch.latent.items():
            assert value.shape[1] == 1
            np.testing.assert_array_equal(value[b, 0], model[env][start][f"latent/{name}"])
    assert set(batch.latent) == (set(STORAGE) if config.context else set())


def test_dtypes_stay_as_they_came():
    replay = build()
    fill(replay, 10)
    batch, rows = replay.sample(4)
    assert batch.obs["image"].dtype == np.uint8
    assert batch.obs["id"].dtype == np.int32
    assert batch.action.dtype == batch.reward.dtype == np.float32
    assert batch.is_first.dtype == batch.is_last.dtype == batch.is_terminal.dtype == np.bool_
    assert {name: value.dtype for name, value in batch.latent.items()} == {
        "deter": np.float32, "stoch": np.uint8, "half": ml_dtypes.bfloat16,
    }  # fmt: skip
    assert replay.columns["obs/image"].dtype == np.uint8
    assert rows.number.dtype == np.int64


@pytest.mark.parametrize("added", [4, 10, 13, 37])
def test_every_item_up_to_the_newest_row_is_drawn_and_no_other(added):
    replay = build(envs=2, rows=10, length=3)
    fill(replay, added)
    _, rows = replay.sample(2000)
    drawn = {(int(env), int(number[0]) - 1) for env, number in zip(rows.stream, rows.number, strict=True)}
    assert drawn == {(env, start) for env in (0, 1) for start in range(max(0, added - 10), added - 4 + 1)}
    assert rows.number.max() == added - 1


def test_items_are_drawn_uniformly_over_rings_of_unequal_length():
    replay = build(envs=3, rows=12, length=3)
    for env, count in ((0, 30), (1, 9), (2, 3)):
        for number in range(count):
            replay.add(*collected([env], [number]), np.array([env]))
    draws = 30_000
    _, rows = replay.sample(draws)
    items, seen = np.unique(np.stack([rows.stream, rows.number[:, 0]], 1), axis=0, return_counts=True)
    assert len(items) == len(replay) == 9 + 6
    expected = draws / len(items)
    # The 99.9 % point of chi-square with 14 degrees of freedom is 36.1.
    assert ((seen - expected) ** 2 / expected).sum() < 36.1


def test_same_seed_draws_the_same_batches():
    def numbers(seed):
        replay = build(seed=seed)
        fill(replay, 10)
        return [replay.sample(16)[1].number.tolist() for _ in range(3)]

    assert numbers(7) == numbers(7) != numbers(8)


def test_forced_is_first_stays_out_of_storage():
    replay = build()
    fill(replay, 10)
    batch, _ = replay.sample(16)
    assert batch.is_first[:, 0].all() and not batch.is_first[:, 1:].any()
    assert not replay.columns["is_first"].any()


def test_abandoned_episode_ends_before_the_next_begins():
    replay = build(envs=1, rows=20, length=4, context=0)
    fill(replay, 20, first={0, 6}, last={11})
    batch, rows = replay.sample(200)
    np.testing.assert_array_equal(batch.is_last, np.isin(rows.number, [5, 11]))
    assert 5 in rows.number[:, -1]
    assert np.flatnonzero(replay.columns["is_last"][0]).tolist() == [11]


def test_the_oldest_row_does_not_end_the_newest_episode():
    replay = build(envs=1, rows=10, length=3)
    fill(replay, 10, first={0})
    batch, _ = replay.sample(100)
    assert not batch.is_last.any()


def test_batch_owns_its_memory():
    replay = build()
    fill(replay, 10)
    before = {name: column.copy() for name, column in replay.columns.items()}
    batch, _ = replay.sample(4)
    for value in (*batch.obs.values(), *batch.latent.values(), batch.action, batch.reward, batch.is_last):
        value[...] = 1
    for name, column in before.items():
        np.testing.assert_array_equal(replay.columns[name], column)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(0, 25), st.integers(1, 12))
def test_refresh_lands_in_its_rows_and_spares_overwritten_ones(before, between, batch_size):
    replay = build(envs=2, rows=10, length=3)
    fill(replay, 4 + before)
    _, rows = replay.sample(batch_size)
    fill(replay, between)
    expected = {name: replay.columns[f"latent/{name}"].copy() for name in STORAGE}
    rng = np.random.default_rng(before)
    fresh = {
        "deter": rng.normal(size=(batch_size, 3, 3)).astype(np.float32),
        "stoch": rng.integers(0, 256, (batch_size, 3, 2), dtype=np.uint8),
        "half": rng.normal(size=(batch_size, 3, 2)).astype(ml_dtypes.bfloat16),
    }
    replay.refresh(rows, fresh)
    for b in range(batch_size):
        for t in range(3):
            env, number = rows.stream[b], rows.number[b, t]
            if number >= replay.counts[env] - 10:
                for name in STORAGE:
                    expected[name][env, number % 10] = fresh[name][b, t]
    for name in STORAGE:
        np.testing.assert_array_equal(replay.columns[f"latent/{name}"], expected[name])


def test_refreshed_latent_is_the_context_of_the_next_sample():
    replay = build(envs=1, rows=5, length=4)
    fill(replay, 5)
    _, rows = replay.sample(1)
    latent = {name: np.ones((1, 4, *space.shape), columns.dtype_of(space)) for name, space in STORAGE.items()}
    replay.refresh(rows, latent)
    fill(replay, 1)
    batch, rows = replay.sample(1)
    assert rows.number[0, 0] == 2
    assert (batch.latent["deter"] == 1).all() and (batch.latent["half"] == 1).all()


def test_latents_that_the_model_reads_come_from_all_rows():
    replay = build(envs=2, rows=9, length=3, reads=frozenset({"deter"}))
    fill(replay, 8)
    batch, rows = replay.sample(4)
    assert batch.latent["deter"].shape[:2] == (4, 4) and batch.latent["half"].shape[:2] == (4, 1)
    for b, t in np.ndindex(4, 3):
        own = replay.columns["latent/deter"][rows.stream[b], rows.number[b, t] % 9]
        np.testing.assert_array_equal(batch.latent["deter"][b, 1 + t], own)


def test_online_trains_on_every_row_once_in_the_order_of_collection():
    replay = build(envs=3, rows=16, length=3, online=True)
    seen = []
    for _ in range(10):
        fill(replay, 4)
        batch, _ = replay.sample(3)
        assert not replay.queue
        seen += batch.obs["id"].reshape(-1, 2).tolist()
    collected_rows = [[env, 4 * turn + t] for turn in range(10) for env in range(3) for t in range(4)]
    assert seen == collected_rows


def test_batch_is_filled_up_uniformly_behind_the_queue():
    replay = build(envs=2, rows=16, length=3, online=True)
    fill(replay, 9)
    batch, rows = replay.sample(6)
    assert rows.number[:4, 0].tolist() == [1, 1, 5, 5]
    assert rows.stream[:4].tolist() == [0, 1, 0, 1]
    assert not replay.queue and len(rows.stream) == len(batch.reward) == 6


@pytest.mark.parametrize(("added", "first"), [(10, 0), (11, 4), (14, 4), (15, 8)])
def test_sequences_leave_the_queue_once_their_first_row_is_overwritten(added, first):
    replay = build(envs=1, rows=10, length=3, online=True)
    fill(replay, added)
    _, rows = replay.sample(1)
    assert rows.number[0, 0] - 1 == first


def test_the_queue_stays_bounded_without_training():
    replay = build(envs=2, rows=10, length=3, online=True)
    fill(replay, 200)
    assert len(replay.queue) <= 4


def test_reports_leave_the_queue_alone():
    replay = build(online=True)
    fill(replay, 8)
    queue = list(replay.queue)
    replay.sample(16, online=False)
    assert list(replay.queue) == queue != []


def test_online_can_be_switched_off():
    replay = build(envs=1, rows=100, length=3, online=False)
    fill(replay, 100)
    assert replay.sample(25)[1].number[:, 0].tolist() != list(range(1, 100, 4))


def test_ready_needs_one_item_per_trained_row_of_a_batch():
    replay = build(envs=2, rows=100, length=3)
    fill(replay, 8)
    assert len(replay) == 10 and not replay.ready(4)
    fill(replay, 1)
    assert len(replay) == 12 and replay.ready(4)


def test_ready_is_reached_by_a_replay_smaller_than_that():
    replay = build(envs=2, rows=5, length=3)
    fill(replay, 4)
    assert not replay.ready(16)
    fill(replay, 1)
    assert replay.ready(16)


def change(part, name, value):
    """Makes a row of two environments with one array replaced (None: removed)."""
    step, latent = collected([0, 1], [0, 0])
    if part == "step":
        return step._replace(**{name: value}), latent
    source = dict(step.obs) if part == "obs" else dict(latent)
    source.pop(name, None)
    if value is not None:
        source[name] = value
    return (step._replace(obs=source), latent) if part == "obs" else (step, source)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("obs", "image", np.zeros((2, 4, 4, 3), np.float32), r"'obs/image' must be uint8 \[2, 4, 4, 3\], got float32"),
        ("obs", "image", np.zeros((2, 4, 4, 1), np.uint8), r"'obs/image' .* got uint8 \[2, 4, 4, 1\]"),
        ("obs", "image", None, "'obs/image' is missing"),
        ("obs", "imaeg", np.zeros(2), "unknown column 'obs/imaeg'; did you mean 'obs/image'"),
        ("step", "action", np.zeros((2, 3), np.float32), r"'action' must be float32 \[2, 2\]"),
        ("step", "reward", np.zeros(2), "'reward' must be float32"),
        ("step", "is_last", np.zeros(2, np.int32), "'is_last' must be bool"),
        ("latent", "half", np.zeros((2, 2), np.float32), "'latent/half' must be bfloat16"),
        ("latent", "stoch", None, "'latent/stoch' is missing"),
    ],
)
def test_wrong_row_is_named_and_nothing_is_written(part, name, value, message):
    replay = build()
    with pytest.raises(UserError, match=message):
        replay.add(*change(part, name, value))
    assert replay.steps == 0
    assert not any(column.any() for column in replay.columns.values())


@pytest.mark.parametrize("envs", [[0, 0], [0, 2], [-1, 0], [0.0, 1.0], [[0, 1]]])
def test_wrong_environments_are_named(envs):
    with pytest.raises(UserError, match="streams must be different numbers below 2"):
        build().add(*collected([0, 1], [0, 0]), np.array(envs))


def test_wrong_refresh_is_named():
    replay = build()
    fill(replay, 10)
    _, rows = replay.sample(4)
    latent = {name: np.zeros((4, 3, *space.shape), columns.dtype_of(space)) for name, space in STORAGE.items()}
    with pytest.raises(UserError, match=r"replay.refresh: column 'latent/deter' must be float32 \[4, 3, 3\]"):
        replay.refresh(rows, {**latent, "deter": np.zeros((4, 4, 3), np.float32)})


def test_the_allocated_memory_equals_the_plan():
    config = Config(capacity_steps=1000, batch_length=8)
    size = size_replay(SPEC, STORAGE, config, streams=3, env_steps=10**6)
    replay = Replay(SPEC, STORAGE, config, streams=3, seed=0, env_steps=10**6, size=size)
    per_row = 8 + 48 + 8 + 4 + 3 + (12 + 2 + 4)
    assert size.row_bytes == per_row
    assert replay.nbytes == size.nbytes == 999 * per_row


def test_without_context_no_latent_is_stored():
    replay = build(context=0)
    fill(replay, 10)
    batch, rows = replay.sample(4)
    replay.refresh(rows, {})
    assert batch.latent == {} and rows.number.shape == batch.reward.shape == (4, 3)
    assert not any(name.startswith("latent/") for name in replay.columns)


@pytest.mark.parametrize(
    ("name", "value"),
    [("capacity_steps", 0), ("capacity_gb", -1), ("capacity_gb", float("nan")), ("batch_size", 0),
     ("batch_length", 0), ("context", 2)],
)  # fmt: skip
def test_setting_out_of_range_is_named(name, value):
    with pytest.raises(UserError, match=f"replay.{name} must be"):
        dreamer.Config(replay=Config(**{name: value}))


def test_plan_takes_the_memory_that_is_free(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 91 * 2000)
    size = size_replay(SPEC, STORAGE, Config(), streams=10, env_steps=10**6)
    assert size.rows_per_stream == 2000 * 91 // 2 // (89 * 10)


def test_no_jax_in_a_fresh_process():
    modules = "dreamer.runtime.replay.replay, dreamer.runtime.learning.ratio"
    code = f"import sys; import {modules}; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
