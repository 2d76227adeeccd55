"""What follows an update: in order, one at a time, and no error is lost."""

from __future__ import annotations

import threading

import pytest

from dreamer.runtime.run.writeback import Following


def test_items_are_handled_in_their_order_by_one_thread():
    handled = []
    following = Following(lambda item: handled.append((item, threading.current_thread().name)), threaded=True)
    for item in range(20):
        following.put(item)
    following.settle()
    assert handled == [(item, "following") for item in range(20)]
    following.close()


def test_an_item_waits_until_the_one_before_is_done():
    started, go_on, handled = threading.Event(), threading.Event(), []

    def handle(item):
        started.set()
        assert go_on.wait(10)
        handled.append(item)

    following = Following(handle, threaded=True)
    following.put(1)
    assert started.wait(10) and not handled  # the first did not make its caller wait
    other = threading.Thread(target=following.put, args=(2,))
    other.start()
    other.join(0.05)
    assert other.is_alive()
    go_on.set()
    other.join(10)
    following.close()
    assert handled == [1, 2]


def fail(item):
    raise ValueError(f"item {item}")


@pytest.mark.parametrize("ask", [Following.settle, lambda following: following.put(2)])
def test_an_error_is_raised_once_by_who_asks_next(ask):
    following = Following(fail, threaded=True)
    following.put(1)
    with pytest.raises(ValueError, match="item 1"):
        ask(following)
    following.settle()
    following.close()


def test_after_an_error_the_next_items_are_handled():
    handled = []
    following = Following(lambda item: handled.append(item) if item else fail(item), threaded=True)
    following.put(0)
    with pytest.raises(ValueError, match="item 0"):
        following.settle()
    following.put(1)
    following.close()
    assert handled == [1]


def test_without_a_thread_the_caller_handles_the_item_itself():
    handled = []
    following = Following(lambda item: handled.append(threading.current_thread()), threaded=False)
    following.put(1)
    assert handled == [threading.current_thread()]
    with pytest.raises(ValueError, match="item 1"):
        Following(fail, threaded=False).put(1)


def test_closing_waits_for_the_item_under_way_and_may_be_repeated():
    go_on, handled = threading.Event(), []
    following = Following(lambda item: (go_on.wait(10), handled.append(item)), threaded=True)
    following.put(1)
    threading.Timer(0.05, go_on.set).start()
    following.close()
    assert handled == [1]
    following.close()
    with pytest.raises(RuntimeError, match="closed"):
        following.put(2)
