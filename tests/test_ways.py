"""How a run goes: on the device, in turns, or with a thread."""

from __future__ import annotations

import pytest

import dreamer
from dreamer.errors import UserError
from dreamer.runtime.run.ways import Choice, Room, choose

CPU, GPU = ["cpu"], ["gpu"]
SMALL = Room(needed=1, free=2)


def way(backend: str, platforms: list[str], room: Room = SMALL, **overrides) -> Choice:
    return choose(dreamer.load_config(overrides=overrides), backend, platforms, room)


@pytest.mark.parametrize(
    ("backend", "platforms", "overrides", "expected"),
    [
        ("jax", CPU, {}, "device"),
        ("jax", GPU, {"loop": "device"}, "device"),
        ("jax", CPU, {"loop": "host"}, "turns"),
        ("jax", GPU, {"loop": "host"}, "thread"),
        ("jax", CPU * 2, {}, "device"),
        ("jax", CPU * 2, {"workers": {"envs": 3}}, "turns"),
        ("jax", CPU * 2, {"devices": {"fsdp": 2}}, "turns"),
        ("jax", CPU, {"replay": {"uniform": 0.5, "recency": 0.5}}, "turns"),
        ("inline", CPU, {}, "turns"),
        ("inline", CPU, {"replay_ratio": 0}, "thread"),
        ("inline", CPU, {"collect": "thread"}, "thread"),
        ("inline", GPU, {}, "thread"),
        ("inline", GPU, {"collect": "turns"}, "turns"),
        ("inline", GPU, {"lockstep": True}, "turns"),
        ("processes", CPU, {}, "thread"),
        ("ray", CPU, {}, "thread"),
    ],
)
def test_the_way_follows_from_environment_device_and_config(backend, platforms, overrides, expected):
    chosen = way(backend, platforms, **overrides)
    assert chosen.way == expected and chosen.line.startswith("loop: ")


def test_a_run_on_the_host_says_why_it_is_not_on_the_device():
    overrides = {"replay": {"uniform": 0.5, "recency": 0.5}}
    reason = "2 devices cannot share 3 environments evenly; give workers.envs 2 or 4"
    assert reason in way("jax", CPU * 2, workers={"envs": 3}).line
    assert "because replay.recency draws on the host only; collects" in way("jax", CPU, **overrides).line
    assert "because loop is host; " in way("jax", CPU, loop="host").line


@pytest.mark.parametrize(
    ("backend", "overrides", "reason"),
    [
        ("inline", {"loop": "device"}, "loop device: the environment is not written in JAX"),
        ("jax", {"loop": "device", "replay": {"tier": "disk"}}, "loop device: replay.tier disk"),
        ("jax", {"loop": "device", "room": Room(10**10, 10**9)}, "needs 10.0 GB on the device .of 1.0 GB free."),
        ("inline", {"lockstep": True, "collect": "thread"}, "leave out --collect thread"),
    ],
)
def test_a_way_that_is_not_possible_is_refused(backend, overrides, reason):
    with pytest.raises(UserError, match=reason):
        way(backend, CPU, **overrides)


@pytest.mark.parametrize(
    ("backend", "overrides", "words"),
    [
        ("inline", {"lockstep": True}, "loop: collects and trains in turns, because lockstep is set"),
        ("inline", {"collect": "turns"}, "loop: collects and trains in turns, because collect is turns"),
        ("inline", {"collect": "thread"}, "loop: a thread collects while another trains, because collect is thread"),
        ("inline", {"replay_ratio": 0}, "loop: a thread collects; nothing trains at replay_ratio 0"),
        ("inline", {}, "loop: collects and trains in turns, because policy and update share the CPU"),
        ("processes", {}, "loop: a thread collects while another trains"),
        ("jax", {"replay_ratio": 0}, "stores rows; nothing trains at replay_ratio 0; the replay takes 1 B on"),
    ],
)
def test_the_line_says_what_the_run_does_and_why(backend, overrides, words):
    assert words in way(backend, CPU, **overrides).line


def test_a_backend_that_was_asked_for_is_named():
    with pytest.raises(UserError, match="not written in JAX; use loop host"):
        way("inline", CPU, loop="device")
    with pytest.raises(UserError, match="or workers.backend inline runs it elsewhere; use loop host"):
        way("inline", CPU, loop="device", workers={"backend": "inline"})


def test_a_replay_that_does_not_fit_on_the_device_stays_on_the_host():
    assert way("jax", GPU, room=Room(10**10, 10**9)).way == "thread"
