"""Copies into and out of rings, for narrow and wide rows, compared with plain indexing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamer.runtime.replay.columns import WIDE, gather, scatter

WIDTHS = (1, WIDE)


@st.composite
def sequences(draw):
    """Draws (column, stream [B], number [B], length) with random sequences, some across the wrap."""
    envs, rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.sampled_from(WIDTHS))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    column = rng.integers(0, 256, (envs, rows, width), dtype=np.uint8)
    count = draw(st.integers(0, 5))
    return column, rng.integers(0, envs, count), rng.integers(0, 40, count), draw(st.integers(0, rows))


@given(sequences())
def test_gathered_sequences_are_the_rows_one_by_one(given):
    column, stream, number, length = given
    out = gather(column, stream, number, length)
    assert out.shape == (len(stream), length, column.shape[2]) and not np.shares_memory(out, column)
    for b in range(len(stream)):
        for t in range(length):
            np.testing.assert_array_equal(out[b, t], column[stream[b], (number[b] + t) % column.shape[1]])


@given(sequences(), st.data())
def test_scattered_sequences_land_in_their_rows_the_last_one_on_top(given, data):
    column, stream, number, length = given
    skip = np.array([data.draw(st.integers(0, length)) for _ in stream], np.int64)
    value = np.random.default_rng(length).integers(0, 256, (len(stream), length, column.shape[2]), dtype=np.uint8)
    expected = column.copy()
    for b in range(len(stream)):
        for t in range(skip[b], length):
            expected[stream[b], (number[b] + t) % column.shape[1]] = value[b, t]
    scatter(column, stream, number, value, skip)
    np.testing.assert_array_equal(column, expected)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_was_gathered_scatters_back_unchanged(width):
    column = np.random.default_rng(0).integers(0, 256, (2, 9, width), dtype=np.uint8)
    before, stream, number = column.copy(), np.array([0, 1, 1]), np.array([3, 5, 14])
    scatter(column, stream, number, gather(column, stream, number, 7), np.zeros(3, np.int64))
    np.testing.assert_array_equal(column, before)
