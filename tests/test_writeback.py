"""Results of updates are handled in order, one at a time, and no error is lost."""

from __future__ import annotations

import threading

import pytest

from dreamer.runtime.learning.writeback import Writeback


def test_items_are_handled_in_their_order_by_one_thread():
    handled = []
    writeback = Writeback(lambda item: handled.append((item, threading.current_thread().name)), threaded=True)
    for item in range(20):
        writeback.put(item)
    writeback.settle()
    assert handled == [(item, "writeback") for item in range(20)]
    writeback.close()


def test_an_item_waits_until_the_one_before_is_done():
    started, go_on, handled = threading.Event(), threading.Event(), []

    def handle(item):
        started.set()
        assert go_on.wait(10)
        handled.append(item)

    writeback = Writeback(handle, threaded=True)
    writeback.put(1)
    assert started.wait(10) and not handled  # the first call did not wait
    other = threading.Thread(target=writeback.put, args=(2,))
    other.start()
    other.join(0.05)
    assert other.is_alive()
    go_on.set()
    other.join(10)
    writeback.close()
    assert handled == [1, 2]


def fail(item):
    raise ValueError(f"item {item}")


@pytest.mark.parametrize("ask", [Writeback.settle, lambda writeback: writeback.put(2)])
def test_the_next_call_raises_an_error_once(ask):
    writeback = Writeback(fail, threaded=True)
    writeback.put(1)
    with pytest.raises(ValueError, match="item 1"):
        ask(writeback)
    writeback.settle()
    writeback.close()


def test_after_an_error_the_next_items_are_handled():
    handled = []
    writeback = Writeback(lambda item: handled.append(item) if item else fail(item), threaded=True)
    writeback.put(0)
    with pytest.raises(ValueError, match="item 0"):
        writeback.settle()
    writeback.put(1)
    writeback.close()
    assert handled == [1]


def test_without_a_thread_the_caller_handles_the_item_itself():
    handled = []
    writeback = Writeback(lambda item: handled.append(threading.current_thread()), threaded=False)
    writeback.put(1)
    assert handled == [threading.current_thread()]
    with pytest.raises(ValueError, match="item 1"):
        Writeback(fail, threaded=False).put(1)


def test_closing_waits_for_the_item_in_progress_and_may_be_repeated():
    go_on, handled = threading.Event(), []
    writeback = Writeback(lambda item: (go_on.wait(10), handled.append(item)), threaded=True)
    writeback.put(1)
    threading.Timer(0.05, go_on.set).start()
    writeback.close()
    assert handled == [1]
    writeback.close()
    with pytest.raises(RuntimeError, match="closed"):
        writeback.put(2)
