"""Evaluation survives the same failures as training: environments that exit or hang, and videos that fail."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import lines, plain_agent, recording_agent, tiny

import dreamer
from dreamer import plugins
from dreamer.errors import UserError
from dreamer.interfaces import Variables
from dreamer.runtime.devices import placement, programs
from dreamer.runtime.env.adapter import spec_of
from dreamer.runtime.log import images
from dreamer.runtime.run import evaluation
from dreamer.runtime.workers import Config, auto, make_workers, remote
from dreamer.runtime.workers.interface import WorkerPlan

INLINE, PROCESSES = Config("inline"), Config("processes", processes=1, timeout=0.5)
everywhere = pytest.mark.parametrize("config", [INLINE, PROCESSES], ids=["inline", "processes"])


def evaluate(env, options, config, *, episodes=2, record=0, report=lambda line: None, **fields):
    agent = recording_agent(spec_of(plugins.make_env(env, options)))
    asked = evaluation.Config(episodes=episodes, **fields)
    variables = placement.first_copy({"behavior": Variables({"w": jnp.zeros(4)})})
    return evaluation.evaluate(
        agent, programs.jit_act(agent), variables, asked, env, options, config, action_repeat=1,
        seed=7, record=record, report=report,
    )  # fmt: skip


# ---- environments that end their process, or hang


@pytest.mark.parametrize(
    "how, text",
    [
        ("exit", "died with exit code 0"), ("hang", "has not answered for 5 s"),
        pytest.param("kill", "died with signal SIGSEGV", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_an_evaluation_outlives_its_environments(tmp_path, how, text):
    config = dataclasses.replace(PROCESSES, timeout=5.0 if how == "hang" else 30.0)
    result = evaluate("reporting_envs:Fails", {"how": how, "note": str(tmp_path / "note")}, config, record=1)
    assert [episode.length for episode in result.episodes] == [5, 5] and len(result.frames) == 6
    assert [text in one.text for one in result.incidents] == [True], [one.text for one in result.incidents]


def test_sys_exit_in_a_step_is_an_incident_inline(tmp_path):
    result = evaluate("reporting_envs:Fails", {"how": "sys.exit", "note": str(tmp_path / "note")}, INLINE)
    assert [episode.length for episode in result.episodes] == [5, 5]
    assert ["failed: SystemExit: 0" in incident.text for incident in result.incidents] == [True]


@everywhere
def test_an_environment_that_fails_again_and_again_ends_the_evaluation_with_its_line(config):
    with pytest.raises(UserError, match=r"failed: SystemExit: 5.*\(incident 4 in a row\)"):
        evaluate("reporting_envs:Exits", {}, config)


@pytest.mark.parametrize("backend, there", [("inline", "inline"), ("processes", "processes"), ("ray", "processes")])
def test_evaluation_runs_where_training_does_and_for_ray_in_processes(backend, there):
    own = evaluation.like_training(Config(backend, timeout=7.0, restarts=1), backend)
    assert own == Config(there, timeout=7.0, restarts=1)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_with_processes_survives_an_exit_in_its_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dreamer.agent.make", lambda config, spec, **_: plain_agent(spec))
    options = {"how": "exit", "note": str(tmp_path / "note")}
    config = tiny(
        tmp_path / "run", env="reporting_envs:Fails", env_options=options, env_steps=24, eval__video="off",
        workers__backend="processes", workers__envs=1, eval__episodes=1,
    )  # fmt: skip
    dreamer.train(config)
    assert lines(tmp_path / "run")[-1]["eval/length"] == 5
    assert "died with exit code 0" in capsys.readouterr().out


# ---- videos


@pytest.mark.parametrize(
    "how, text",
    [
        ("raise", "RuntimeError: the lamp is out"), ("none", "it returned a NoneType"), ("exit", "SystemExit"),
        ("size", r"its frames change from \[16, 16, 3\] to \[8, 8, 3\]"), ("dtype", r"array float64 \[16, 16, 3\]"),
    ],
)  # fmt: skip
def test_a_frame_that_fails_ends_only_its_video_and_is_reported_once(how, text):
    config = PROCESSES if how == "raise" else INLINE  # the same code in both
    result = evaluate("reporting_envs:Drawn", {"how": how}, config, record=1)
    assert [episode.length for episode in result.episodes] == [5, 5] and not result.incidents
    (line,) = result.lines
    assert re.search(f"^the video of environment 0 ends after 2 frames: .*{text}", line)
    assert len(result.frames) == 2


def test_a_frame_that_hangs_ends_its_video_and_does_not_count_as_a_failure():
    config = Config("processes", processes=1, timeout=0.5, restarts=0)
    result = evaluate("reporting_envs:Drawn", {"how": "hang"}, config, episodes=1, record=1)
    assert [episode.length for episode in result.episodes] == [5] and len(result.frames) == 2
    assert "not rendered for 0.5 seconds" in result.lines[0] and [one.kind for one in result.incidents] == ["hung"]


def test_an_environment_that_cannot_be_recorded_is_refused_or_reported_at_the_start():
    options = {"how": "raise", "after": 0}
    assert evaluation.can_record("reporting_envs:Drawn", options, "auto", PROCESSES)[0] is False
    with pytest.raises(UserError, match="cannot be recorded: RuntimeError: the lamp is out"):
        evaluation.can_record("reporting_envs:Drawn", options, "on", PROCESSES)


def test_frames_of_changing_size_are_refused_in_a_line(tmp_path):
    frames = [np.zeros((16, 16, 3), np.uint8), np.zeros((8, 16, 3), np.uint8)]
    with pytest.raises(UserError, match=r"frames change from \[16, 16, 3\] to \[8, 16, 3\]"):
        images.write_episode_video(tmp_path / "x.mp4", frames, 30)


def test_a_picture_with_transparency_loses_that_alone():
    from dreamer.runtime.env.rows import drawn

    class Env:
        render_mode = "rgb_array"

        def render(self):
            return np.arange(16, dtype=np.int64).reshape(2, 2, 4)

    picture = drawn(Env())
    assert picture.dtype == np.uint8 and picture[1, 1].tolist() == [12, 13, 14]


@everywhere
def test_sdl_draws_into_memory_where_a_video_is_made_and_nowhere_else(config, monkeypatch):
    for name in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    before = dict(os.environ)
    with evaluation.make_eval_workers(
        "reporting_envs:drivers", {}, episodes=1, action_repeat=1, seed=0, record=True, config=config
    ) as crew:
        assert crew.spec.action_width == 5
    with make_workers(Config(config.backend, envs=1), "reporting_envs:drivers") as crew:
        assert crew.spec.action_width == 3
    assert dict(os.environ) == before


def test_the_users_own_driver_stays(monkeypatch):
    from dreamer.runtime.workers.screen import without_screen

    assert without_screen({"SDL_VIDEODRIVER": "x11"}, "rgb_array") == {"SDL_AUDIODRIVER": "dummy"}
    assert without_screen({"DISPLAY": ":0"}, None) == without_screen({"WAYLAND_DISPLAY": "w"}, "human") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a screen needs no variable")
def test_sdl_looks_for_no_screen_where_there_is_none():
    from dreamer.runtime.workers.screen import DRIVERS, without_screen

    assert without_screen({}, None) == DRIVERS
    assert without_screen({"SDL_VIDEODRIVER": "kmsdrm"}, None) == {"SDL_AUDIODRIVER": "dummy"}


# ---- close()


@pytest.fixture
def short(monkeypatch):
    """Shortens the wait for close()."""
    from dreamer.runtime.workers import faults, processes

    monkeypatch.setattr(faults, "CLOSE", 0.1)
    for module in (remote, processes):
        monkeypatch.setattr(module, "PATIENCE", 0.5)


@everywhere
def test_a_close_that_hangs_is_abandoned_and_reported(config, short):
    result = evaluate("reporting_envs:NotClosed", {"how": "hang"}, config, episodes=1)
    assert [episode.length for episode in result.episodes] == [5]
    (incident,) = result.incidents
    assert incident.kind == "not closed" and "reporting_envs:NotClosed #0" in incident.line
    assert not incident.line.startswith("environment restarted")


def test_a_close_that_hangs_does_not_hold_the_start_of_a_run(short):
    recorded, line = evaluation.can_record("reporting_envs:NotClosed", {"how": "hang"}, "auto")
    what = "close() of env 'reporting_envs:NotClosed #0'"
    assert recorded and line == f"{what} has not returned for 0.1 seconds; it is abandoned"
    with make_workers(Config("auto", envs=1), "reporting_envs:NotClosed", {"how": "hang"}) as crew:
        assert crew.backend == "processes" and "its close() hung during the measurement" in crew.describe()


@pytest.mark.slow
def test_a_step_that_hangs_does_not_hold_the_measurement():
    with make_workers(Config("auto", envs=1, timeout=0.2), "test_workers:facts", {"hang": True}) as crew:
        assert "its step hung for 0.2 seconds" in crew.describe()


@everywhere
@pytest.mark.parametrize("how", ["raise", "exit"])
def test_a_close_that_fails_neither_ends_a_run_nor_hides_its_error(config, how):
    with pytest.raises(ZeroDivisionError), make_workers(
        Config(config.backend, envs=1), "reporting_envs:NotClosed", {"how": how}
    ) as crew:
        crew.receive()
        raise ZeroDivisionError


def test_sys_exit_while_an_environment_is_made_is_an_error_in_a_line():
    for backend in ("inline", "auto"):  # processes: tests/test_workers.py
        with pytest.raises(UserError, match="failed: SystemExit: 7"):
            make_workers(Config(backend, envs=1), f"{__name__}:never")


def never():
    raise SystemExit(7)


# ---- endless episodes


@everywhere
def test_an_episode_that_never_ends_is_cut_off_and_reported(config):
    result = evaluate("reporting_envs:Endless", {}, config, episodes=18, record=1, max_steps=4)
    assert [(one.length, one.episode_return) for one in result.episodes] == [(4, 4.0)] * 18
    assert [one.env for one in result.episodes] == [0, 0, 1, 1, *range(2, 16)]
    assert len(result.frames) == 5 and not result.incidents
    assert result.lines == ["18 episodes of the evaluation were cut off after 4 steps (eval.max_steps)"]
    first = evaluation.SEED + 7
    assert result.seeds[:4] == [first, first + 16, first + 1, first + 17]


def test_an_episode_that_ends_at_the_limit_is_not_cut():
    result = evaluate("broken_envs:sound", {}, INLINE, max_steps=5)
    assert [one.length for one in result.episodes] == [5, 5] and result.lines == []


def test_an_evaluation_reports_its_progress(monkeypatch):
    monkeypatch.setattr(evaluation, "PROGRESS", 0.0)
    reported: list[str] = []
    evaluate("broken_envs:sound", {}, INLINE, report=reported.append)
    assert reported[5] == "evaluating: 5 steps in each environment, 0 episodes finished"


# ---- threads and folders


def in_thread(function):
    """Returns the result of a function called in another thread, like that of the collector."""
    out: list = []
    thread = threading.Thread(target=lambda: out.append(function()))
    thread.start()
    thread.join()
    return out[0]


def test_an_environment_bound_to_its_thread_is_replaced_only_once(tmp_path):
    note = tmp_path / "note"

    def turn():
        ready = crew.receive()
        crew.send(ready.streams, np.eye(3, dtype=np.float32)[np.zeros(len(ready.streams), int)])

    with make_workers(Config("inline", envs=2), "reporting_envs:Bound", {"note": str(note)}) as crew:
        in_thread(turn)
        in_thread(turn)
        first, second = crew.incidents()
        assert "of another thread (" in first.text and "of another thread (" in second.text
        assert first.text.endswith("from now on all environments run in one separate thread")
        for _ in range(3):
            assert all(isinstance(state, bytes) for state in crew.states().states)
            in_thread(turn)
        assert crew.incidents() == []
    assert note.read_text() == 2 * "closed\n"


def test_an_environment_bound_to_its_thread_is_closed_there(tmp_path):
    with make_workers(Config("inline", envs=1), "reporting_envs:Bound", {"note": str(tmp_path / "note")}) as crew:
        crew.receive()
    assert (tmp_path / "note").read_text() == "closed\n"


@everywhere
def test_an_environment_that_changes_the_folder_is_replaced_in_the_original_folder(config, tmp_path, monkeypatch):
    (tmp_path / "marker").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with make_workers(Config(config.backend, envs=1), "reporting_envs:Wanders", {"marker": "marker"}) as crew:
        for _ in range(6):
            ready = crew.receive()
            crew.send(ready.streams, np.eye(3, dtype=np.float32)[:1])
        assert len(crew.incidents()) == 1 and crew.folder == str(tmp_path)


def test_a_measured_environment_does_not_change_the_folder_of_a_run(tmp_path, monkeypatch):
    (tmp_path / "marker").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    auto.choose(WorkerPlan("reporting_envs:Wanders", {"marker": "marker"}, 1, 0, None, 1, str(tmp_path)))
    assert Path.cwd() == tmp_path


def test_a_process_ends_although_a_thread_of_an_environment_still_runs():
    program = (
        "import threading\n"
        "from dreamer.apps.start import end_in_time\n"
        "threading.Thread(target=threading.Event().wait, name='camera').start()\n"
        "end_in_time(3, 0.1)\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert done.returncode == 3 and "still run: 'camera'; the process ends without them" in done.stdout
