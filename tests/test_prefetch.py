"""Prefetching: order, depth, errors and ends of the thread. Timing is controlled by events, not by a clock."""

from __future__ import annotations

import itertools
import threading

import pytest

from dreamer.runtime.learning.prefetch import Prefetch


class Source:
    """Counts up; `made(n)` waits until n items were started."""

    def __init__(self, fail_at=None):
        self.begun, self.threads, self.fail_at = 0, set(), fail_at
        self.changed = threading.Condition()

    def __call__(self):
        with self.changed:
            number = self.begun
            self.begun += 1
            self.threads.add(threading.current_thread())
            self.changed.notify_all()
        if number == self.fail_at:
            raise OSError("no more")
        return number

    def made(self, count):
        with self.changed:
            return self.changed.wait_for(lambda: self.begun >= count, timeout=20)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_come_in_the_order_in_which_they_are_made(depth):
    ahead = Prefetch(Source(), depth)
    assert [ahead.next() for _ in range(50)] == list(range(50))
    ahead.close()


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_nothing_is_made_before_the_first_is_wanted(depth):
    source = Source()
    Prefetch(source, depth).close()
    assert source.begun == 0


@pytest.mark.parametrize("depth", [1, 3])
def test_exactly_depth_items_are_made_in_advance(depth):
    source = Source()
    ahead = Prefetch(source, depth)
    for taken in range(1, 5):
        ahead.next()
        assert source.made(taken + depth)
    # The thread waits for room now: otherwise the count would exceed the items taken and the items ready.
    ahead.close()
    assert source.begun == 4 + depth


def test_without_depth_the_caller_makes_the_item():
    source = Source()
    Prefetch(source, 0).next()
    assert source.threads == {threading.current_thread()}


def test_with_depth_another_thread_makes_all_items():
    source = Source()
    ahead = Prefetch(source, 2)
    for _ in range(5):
        ahead.next()
    ahead.close()
    assert len(source.threads) == 1 and threading.current_thread() not in source.threads


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_an_error_comes_after_the_items_made_before_it(depth):
    ahead = Prefetch(Source(fail_at=2), depth)
    assert [ahead.next(), ahead.next()] == [0, 1]
    with pytest.raises(OSError, match="no more"):
        ahead.next()
    ahead.close()


def test_an_error_is_raised_again_at_each_call():
    ahead = Prefetch(Source(fail_at=0), 2)
    for _ in range(3):
        with pytest.raises(OSError, match="no more"):
            ahead.next()
    ahead.close()


def test_closing_ends_a_thread_that_waits_for_room():
    source = Source()
    ahead = Prefetch(source, 1)
    ahead.next()
    assert source.made(2)
    ahead.close()
    assert not any(thread.is_alive() for thread in source.threads)


def test_closing_ends_a_thread_in_the_middle_of_an_item():
    started, go = threading.Event(), threading.Event()
    items = itertools.count()
    thread = []

    def produce():
        thread.append(threading.current_thread())
        if next(items) == 1:
            started.set()
            go.wait(20)
        return 0

    ahead = Prefetch(produce, 1)
    ahead.next()
    assert started.wait(20)
    closing = threading.Thread(target=ahead.close)
    closing.start()
    go.set()
    closing.join(20)
    assert not closing.is_alive() and not thread[0].is_alive() and len(thread) == 2


def test_closing_twice_is_closing():
    ahead = Prefetch(Source(), 1)
    ahead.next()
    ahead.close()
    ahead.close()


def test_a_closed_prefetcher_gives_nothing():
    ahead = Prefetch(Source(), 1)
    ahead.next()
    ahead.close()
    with pytest.raises(RuntimeError, match="closed"):
        ahead.next()
