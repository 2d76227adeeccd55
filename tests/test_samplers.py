"""Sampling: the sum tree, items by age and priority, and mixtures, compared with simple implementations."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer.runtime.replay.config import Config
from dreamer.runtime.replay.items import existing, rank_sums, recent, uniform
from dreamer.runtime.replay.priorities import NEW, Priorities, slide
from dreamer.runtime.replay.samplers import WAYS, Rings, make_sampler
from dreamer.runtime.replay.sum_tree import BRANCHING, SumTree

WEIGHTS = st.lists(st.sampled_from([0.0, 0.0, 1e-9, 0.5, 1.0, 3.0, 1e6]), min_size=1, max_size=600)
COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=4)


def mixture(uniform=0.0, priority=0.0, recency=0.0):
    return Config(
        uniform=uniform, priority=priority, recency=recency,
        priority_exponent=0.8, priority_maxfrac=0.5, recency_exponent=1.0,
    )  # fmt: skip


def listed(items):
    """Returns all items as (stream, number)."""
    return [(e, n) for e, (first, count) in enumerate(zip(*items, strict=True)) for n in range(first, first + count)]


def pairs(drawn):
    return [(int(stream), int(number)) for stream, number in zip(*drawn, strict=True)]


def unlike(drawn, expected):
    """Returns the chi-square of the draws against the expected shares {item: share}."""
    seen, draws = collections.Counter(drawn), len(drawn)
    assert set(seen) <= {item for item, share in expected.items() if share}
    return sum((seen[item] - draws * share) ** 2 / (draws * share) for item, share in expected.items() if share)


def bound(items):
    """Returns a bound far beyond the 99.99 % point of chi-square for this number of items."""
    return items + 6 * np.sqrt(2 * items) + 10


# --- the sum tree ------------------------------------------------------------------------------------


@given(WEIGHTS, st.integers(0, 99))
def test_the_tree_finds_the_same_leaf_as_a_cumulative_sum(weights, seed):
    weights = np.round(np.array(weights) * 64) / 64  # so that no sum is rounded
    tree = SumTree(len(weights))
    tree.fill(weights[:, None])
    assert tree.total[0] == weights.sum()
    if not weights.sum():
        return
    share = np.append(np.random.default_rng(seed).random(50), [0.0, np.nextafter(1, 0)])
    expected = np.searchsorted(np.cumsum(weights), share * weights.sum(), side="right")
    np.testing.assert_array_equal(tree.find(share), np.minimum(expected, np.flatnonzero(weights)[-1]))


@given(WEIGHTS, st.data())
def test_updated_leaves_give_the_tree_that_filling_gives(weights, data):
    size = len(weights)
    changed = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=20, unique=True)), np.int64)
    new = np.random.default_rng(size).random((len(changed), 1))
    tree, filled = SumTree(size), SumTree(size)
    tree.fill(np.array(weights)[:, None])
    tree.update(changed, new)
    filled.fill(tree.leaves.copy())
    np.testing.assert_array_equal(tree.leaves[changed], new)
    for level, other in zip(tree.levels, filled.levels, strict=True):
        np.testing.assert_array_equal(level, other)


@given(st.integers(1, 5000), st.integers(0, 99))
def test_no_leaf_of_weight_0_is_found_however_sums_are_rounded(size, seed):
    rng = np.random.default_rng(seed)
    weights = rng.random(size) * 10.0 ** rng.integers(-20, 20, size) * (rng.random(size) < 0.3)
    weights[rng.integers(size)] = 1
    tree = SumTree(size)
    tree.fill(weights[:, None])
    share = np.append(rng.random(100), [0.0, np.nextafter(1, 0)])
    assert (weights[tree.find(share)] > 0).all()


def test_levels_of_the_tree_are_logarithmic():
    tree = SumTree(1_000_000, planes=2)
    assert [len(level) for level in tree.levels] == [1_000_000, 62_512, 3_920, 256, 16, 1]
    assert sum(level.nbytes for level in tree.levels) < 18 * 1_000_000
    assert all(len(level) % BRANCHING == 0 for level in tree.levels[:-1])


# --- evenly and by age -------------------------------------------------------------------------------


@given(COUNTS, st.integers(1, 20), st.integers(1, 6), st.integers(0, 99))
def test_only_items_that_exist_are_drawn(counts, spare, sequence, seed):
    items = existing(np.array(counts), sequence + spare - 1, sequence)
    if not items.per_stream.sum():
        return
    rng = np.random.default_rng(seed)
    sums = rank_sums(int(items.per_stream.sum()) + 3, 1.0)
    assert set(pairs(uniform(rng, items, 50))) <= set(listed(items))
    assert set(pairs(recent(rng, items, 50, sums))) <= set(listed(items))


@settings(max_examples=20, deadline=None)
@given(COUNTS)
def test_recency_weighs_items_by_the_inverse_of_their_rank(counts):
    items = existing(np.array(counts), 12, 3)
    total = int(items.per_stream.sum())
    if not total:
        return
    # Oldest last; of equal age, the longer ring first, then the later ring.
    ends = items.first + items.per_stream - 1
    ranked = sorted(listed(items), key=lambda item: (ends[item[0]] - item[1], -items.per_stream[item[0]], -item[0]))
    shares = 1 / np.arange(1, total + 1)
    expected = dict(zip(ranked, shares / shares.sum(), strict=True))
    drawn = pairs(recent(np.random.default_rng(0), items, 4000, rank_sums(100, 1.0)))
    assert unlike(drawn, expected) < bound(total)


def test_an_exponent_of_0_makes_recency_uniform():
    items = existing(np.array([9, 30, 2]), 12, 3)
    drawn = pairs(recent(np.random.default_rng(0), items, 5000, rank_sums(30, 0.0)))
    assert unlike(drawn, {item: 1 / 17 for item in listed(items)}) < bound(17)


# --- by priority -------------------------------------------------------------------------------------


class Twin:
    """Priorities, and a plain list of every row's priority, for rings filled at random."""

    def __init__(self, envs, rows, sequence, maxfrac=0.5):
        self.rows, self.sequence, self.maxfrac = rows, sequence, maxfrac
        self.ours = Priorities(envs, rows, sequence, exponent=0.8, maxfrac=maxfrac)
        self.counts = np.zeros(envs, np.int64)
        self.plain = [[] for _ in range(envs)]

    @property
    def items(self):
        return existing(self.counts, self.rows, self.sequence)

    def add(self, streams):
        streams = np.array(sorted(streams))
        self.ours.added(streams, self.counts[streams])
        self.counts[streams] += 1
        for stream in streams:
            self.plain[stream].append(np.inf)

    def write(self, streams, numbers, priority):
        self.ours.write(self.items, streams, numbers, priority)
        for stream, row, values in zip(streams, numbers, priority, strict=True):
            for number, value in zip(row, values, strict=True):
                if number >= self.counts[stream] - self.rows:
                    self.plain[stream][number] = float(value)

    def draw(self, rng, size):
        streams, numbers = self.ours.draw(rng, self.items, size)
        for stream, number in zip(streams, numbers, strict=True):
            self.plain[stream][number : number + self.sequence] = [0.0] * self.sequence
        return streams, numbers

    def weights(self):
        """Returns {item: weight}, infinite if the item has a new row."""
        result = {}
        for stream, number in listed(self.items):
            powers = np.array(self.plain[stream][number : number + self.sequence]) ** 0.8
            part = np.inf if np.isinf(powers).any() else (1 - self.maxfrac) * powers.mean()
            result[stream, number] = part if np.isinf(part) else self.maxfrac * powers.max() + part
        return result


@st.composite
def histories(draw):
    """Draws a twin after rows, priorities and draws in any order."""
    envs, sequence = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    twin = Twin(envs, sequence + draw(st.integers(0, 8)), sequence, draw(st.sampled_from([0.0, 0.5, 1.0])))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    for what in draw(st.lists(st.sampled_from(["add", "add", "add", "write", "draw"]), min_size=10, max_size=60)):
        if what == "add" or not twin.items.per_stream.sum():
            twin.add(draw(st.sets(st.integers(0, envs - 1), min_size=1)))
        elif what == "draw":
            twin.draw(rng, draw(st.integers(0, 4)))
        else:
            # Sequences that existed when they were drawn; rows may have been overwritten since.
            streams = rng.permutation(envs)[: rng.integers(1, envs + 1)]
            streams = streams[twin.counts[streams] >= sequence]
            starts = rng.integers(0, twin.counts[streams] - sequence + 1)
            numbers = starts[:, None] + np.arange(sequence)
            twin.write(streams, numbers, rng.random(numbers.shape).astype(np.float32) * 3)
    return twin


@settings(max_examples=100, deadline=None)
@given(histories())
def test_weights_are_those_of_a_plain_list(twin):
    expected = twin.weights()
    tree, rows = twin.ours.tree, twin.rows
    new = {item for item, weight in expected.items() if np.isinf(weight)}
    assert tree.total[NEW] == len(new)
    for stream in range(len(twin.counts)):
        for slot in range(rows):
            item = next(((e, n) for e, n in expected if e == stream and n % rows == slot), None)
            wanted = [0, 0] if item is None else [1, 0] if item in new else [0, expected[item]]
            np.testing.assert_allclose(tree.leaves[stream * rows + slot], wanted, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(histories(), st.integers(1, 30))
def test_draws_by_priority_exist_and_come_once_and_the_new_ones_first(twin, size):
    weights = twin.weights()
    if not weights:
        return
    new = {item for item, weight in weights.items() if np.isinf(weight)}
    drawn = pairs(twin.draw(np.random.default_rng(0), size))
    assert len(drawn) == size and set(drawn) <= set(weights)
    assert not new or drawn[0] in new
    left = twin.weights()
    if any(left.values()):  # so that no item was drawn without a weight
        assert len(set(drawn)) == size
    if any(np.isinf(list(left.values()))):
        assert set(drawn) <= new


@settings(max_examples=30, deadline=None)
@given(histories(), st.integers(1, 6))
def test_a_loaded_state_draws_and_learns_the_same(twin, size):
    if not twin.items.per_stream.sum():
        return
    other = Priorities(len(twin.counts), twin.rows, twin.sequence, exponent=0.8, maxfrac=twin.maxfrac)
    other.load({name: value.copy() for name, value in twin.ours.state().items()})
    rngs = np.random.default_rng(5), np.random.default_rng(5)
    for _ in range(3):
        ours, theirs = (p.draw(r, twin.items, size) for p, r in zip((twin.ours, other), rngs, strict=True))
        np.testing.assert_array_equal(ours, theirs)
        for priorities in (twin.ours, other):
            number = ours[1][:, None] + np.arange(twin.sequence)
            priorities.write(twin.items, ours[0], number, np.cos(number).astype(np.float32))


def test_frequencies_follow_the_weights():
    twin = Twin(envs=2, rows=9, sequence=3)
    for _ in range(14):
        twin.add({0, 1})
    rng = np.random.default_rng(0)
    numbers = np.tile(np.arange(5, 14), (2, 1))
    priority = (rng.random(numbers.shape) * 4).astype(np.float32)
    drawn = []
    for _ in range(3000):  # one at a time: a drawn item has priority 0 until it is written again
        twin.write(np.array([0, 1]), numbers, priority)
        drawn += pairs(twin.ours.draw(rng, twin.items, 1))
    twin.write(np.array([0, 1]), numbers, priority)
    total = sum(twin.weights().values())
    assert unlike(drawn, {item: weight / total for item, weight in twin.weights().items()}) < bound(14)


def test_without_any_weight_items_are_drawn_uniformly():
    twin = Twin(envs=1, rows=9, sequence=3)
    for _ in range(20):
        twin.add({0})
    twin.write(np.array([0]), np.arange(11, 20)[None], np.zeros((1, 9), np.float32))
    drawn = pairs(twin.draw(np.random.default_rng(0), 3000))
    assert unlike(drawn, {item: 1 / 7 for item in listed(twin.items)}) < bound(7)


@pytest.mark.parametrize("value", [np.nan, -1.0])
def test_an_invalid_priority_counts_as_0(value):
    twin = Twin(envs=1, rows=9, sequence=3)
    for _ in range(3):
        twin.add({0})
    twin.ours.write(twin.items, np.array([0]), np.arange(3)[None], np.full((1, 3), value, np.float32))
    assert not twin.ours.tree.total.any()


def test_an_infinite_loss_does_not_make_a_row_new():
    twin = Twin(envs=1, rows=9, sequence=3)
    for _ in range(3):
        twin.add({0})
    twin.ours.write(twin.items, np.array([0]), np.arange(3)[None], np.full((1, 3), np.inf, np.float32))
    assert twin.ours.tree.total[NEW] == 0 and np.isfinite(twin.ours.tree.total).all()


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 99))
def test_sliding_is_combining_each_window(length, more, seed):
    values = np.random.default_rng(seed).integers(0, 100, (3, length + more)).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(values, length, axis=1)
    np.testing.assert_array_equal(slide(np.maximum, values, length), windows.max(-1))
    np.testing.assert_array_equal(slide(np.add, values, length), windows.sum(-1))


# --- mixtures ----------------------------------------------------------------------------------------


def filled(mix, envs=2, rows=20, sequence=4):
    sampler = make_sampler(mix, Rings(envs, rows, sequence))
    for number in range(rows):
        sampler.added(np.arange(envs), np.full(envs, number))
    return sampler, existing(np.full(envs, rows), rows, sequence)


def test_every_share_of_the_config_has_a_way():
    assert Config().shares.keys() == WAYS.keys()


def test_uniform_alone_spends_no_random_number_on_the_way():
    sampler, items = filled(mixture(uniform=1))
    ours = sampler.draw(np.random.default_rng(3), items, 16)
    np.testing.assert_array_equal(ours, uniform(np.random.default_rng(3), items, 16))


def test_recency_alone_draws_by_age():
    sampler, items = filled(mixture(recency=1))
    ours = sampler.draw(np.random.default_rng(3), items, 16)
    np.testing.assert_array_equal(ours, recent(np.random.default_rng(3), items, 16, rank_sums(34, 1.0)))


def test_the_shares_of_a_mixture_add_up():
    sampler, items = filled(mixture(uniform=0.3, recency=0.7), envs=1)
    drawn = pairs(sampler.draw(np.random.default_rng(0), items, 5000))
    ranks = 1 / np.arange(17, 0, -1)
    shares = 0.3 / 17 + 0.7 * ranks / ranks.sum()
    assert unlike(drawn, {(0, n): share for n, share in enumerate(shares)}) < bound(17)


@pytest.mark.parametrize("mix", [mixture(0.2, 0.5, 0.3), mixture(priority=1), mixture(0.5, 0, 0.5)])
def test_a_loaded_mixture_draws_the_same(mix):
    (ours, items), (other, _) = filled(mix), filled(mix)
    ours.draw(np.random.default_rng(0), items, 5)
    other.load({name: value.copy() for name, value in ours.state().items()})
    rngs = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(5):
        np.testing.assert_array_equal(ours.draw(rngs[0], items, 7), other.draw(rngs[1], items, 7))


@pytest.mark.parametrize("mix", [mixture(0.2, 0.5, 0.3), mixture(0.5, 0.5, 0), mixture(0, 0.5, 0.5)])
def test_mixtures_draw_the_requested_number_of_existing_items(mix):
    sampler, items = filled(mix)
    for size in (0, 1, 16):
        drawn = pairs(sampler.draw(np.random.default_rng(size), items, size))
        assert len(drawn) == size and set(drawn) <= set(listed(items))
