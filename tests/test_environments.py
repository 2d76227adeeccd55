"""The environments of a run: replaced and closed as one set, incidents reported, signals passed on."""

from __future__ import annotations

from typing import Any

import pytest

from dreamer.config import Config
from dreamer.runtime.run import environments
from dreamer.runtime.run.environments import Environments
from dreamer.runtime.workers import Incident

LOST = Incident((0,), "killed", "env 'x' #0 died", "")
OPEN = Incident((1,), "not closed", "env 'x' #1 is left open", "")


class Set:
    """The part of a set of workers that `Environments` uses."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.waiting: list[Incident] = []

    def incidents(self) -> list[Incident]:
        reported, self.waiting = self.waiting, []
        return reported

    def shorten_timeouts(self) -> None:
        self.calls.append("shorten_timeouts")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def owned(monkeypatch, lines) -> Any:
    monkeypatch.setattr(environments, "make_workers", lambda *args, **how: Set())
    return Environments(Config(env="x"), "x", lines.append)


def test_a_replaced_set_is_closed_and_the_new_one_is_used(owned):
    first = owned.workers
    second = owned.replace()
    assert owned.workers is second is not first
    assert (first.calls, second.calls) == (["close"], [])


def test_a_signal_reaches_the_set_of_the_evaluation_too(owned):
    evaluated = Set()
    owned.evaluating(evaluated)
    owned.shorten_timeouts()
    assert owned.workers.calls == evaluated.calls == ["shorten_timeouts"]


def test_incidents_of_training_are_reported_once_and_counted(owned, lines):
    owned.workers.waiting = [LOST]
    owned.report_incidents()
    owned.report_incidents()
    assert lines == ["environment restarted: env 'x' #0 died"] and owned.incidents == 1


def test_incidents_of_an_evaluation_are_reported_and_not_counted(owned, lines):
    owned.report([LOST])
    assert lines == [LOST.line] and owned.incidents == 0


def test_incidents_while_closing_are_reported(owned, lines):
    owned.workers.waiting = [OPEN]
    owned.close()
    assert owned.workers.calls == ["close"] and lines == ["env 'x' #1 is left open"]
