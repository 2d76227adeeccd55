"""`dreamer.train(sinks=, callbacks=)`: sinks receive the metrics, and callbacks can make requests."""

from __future__ import annotations

import pytest
import tiny
import tiny_runs

import dreamer
from dreamer import agent as agents
from dreamer.errors import UserError
from dreamer.runtime.run import resume
from dreamer.runtime.run.ending import RunFailed
from dreamer.runtime.run.listening import Line, ask

QUICK = {
    "env": "tiny:Diary", "env_options": {"steps": 5}, "env_steps": 64, "eval__episodes": 1, "eval__video": "off",
    "log__tensorboard": False,
}  # fmt: skip
LINE = Line(100, 3, {"train/loss": 1.5}, "runs/x")


class Notebook:
    """A sink that records its arguments. fails: the method that raises."""

    def __init__(self, fails: str = ""):
        self.lines, self.pictures, self.closed, self.fails = [], [], False, fails

    def scalars(self, step, values):
        if self.fails == "scalars":
            raise ZeroDivisionError("no page is left")
        self.lines.append((step, dict(values)))

    def image(self, step, name, image):
        self.pictures.append((step, name, image.shape))

    def video(self, step, name, frames, fps):
        self.pictures.append((step, name, frames.shape))

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True, scope="module")
def quick_agent():
    """Uses an agent that compiles fast, because these tests do not depend on the agent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agents, "make", lambda config, spec, **_: tiny.echo_agent(spec))
        yield


@pytest.fixture(scope="module")
def listened(tmp_path_factory, quick_agent):
    """Makes a run with a sink and a callback; returns (run directory, sink, lines of the callback)."""
    sink, seen = Notebook(), []
    config = tiny_runs.tiny(tmp_path_factory.mktemp("listened") / "run", **QUICK)
    return dreamer.train(config, sinks=[sink], callbacks=[seen.append]), sink, seen


def test_a_callback_sees_each_line_that_is_written(listened):
    run_dir, _, seen = listened
    written = tiny_runs.lines(run_dir)
    assert [(line.env_steps, line.updates) for line in seen] == [(row["env_steps"], row["updates"]) for row in written]
    assert seen[-1].run_dir == str(run_dir)
    assert seen[-1].values["eval/return"] == pytest.approx(written[-1]["eval/return"])


def test_a_sink_takes_metrics_and_pictures_and_stays_open(listened):
    run_dir, sink, _ = listened
    assert [step for step, _ in sink.lines] == [row["env_steps"] for row in tiny_runs.lines(run_dir)]
    assert [name for _, name, _ in sink.pictures] == ["openloop/plot"] and not sink.closed


@pytest.mark.parametrize("lockstep", [True, False])
def test_a_callback_stops_a_run_that_can_be_resumed(tmp_path, lockstep, capsys):
    config = tiny_runs.tiny(tmp_path / "run", **QUICK, lockstep=lockstep)
    run_dir = dreamer.train(config, callbacks=[lambda line: "stop" if line.env_steps >= 32 else None])
    last = tiny_runs.lines(run_dir)[-1]
    assert 32 <= last["env_steps"] < 64 and "eval/return" not in last
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line.startswith("stopped by a callback at")
    assert last_line.endswith(f"to continue: dreamer train --resume --run-dir {run_dir}")
    dreamer.train(config, resume="yes")
    *_, done, evaluate, report, board = capsys.readouterr().out.splitlines()
    assert done == f"done: {run_dir}"
    assert f"dreamer eval {run_dir}" in evaluate and f"dreamer report {run_dir}" in report
    assert f"tensorboard --logdir {run_dir}" in board
    assert tiny_runs.lines(run_dir)[-1]["env_steps"] == 64


def test_updates_between_two_environment_steps_are_saved(tmp_path):
    """An evaluation saves first, so a checkpoint with these env_steps exists when the callback stops the run."""
    seen = []

    def callback(line):
        seen.append(line)
        evaluated = [one for one in seen if "eval/return" in one.values]
        if not evaluated:
            return "evaluate" if line.updates else None
        return "stop" if line.updates > evaluated[0].updates else None

    config = tiny_runs.tiny(tmp_path / "run", lockstep=False, replay_ratio=2000, eval__episodes=1)
    run_dir = dreamer.train(config, callbacks=[callback])
    evaluation = next(line for line in seen if "eval/return" in line.values)
    assert evaluation.env_steps == seen[-1].env_steps and evaluation.updates < seen[-1].updates
    found = resume.find(run_dir)
    assert found.manifest.updates >= seen[-1].updates
    assert found.step == seen[-1].env_steps + 1 and found.env_steps == seen[-1].env_steps
    dreamer.train(config, resume="yes", callbacks=[lambda line: seen.append(line) or "stop"])
    assert seen[-1].updates >= found.manifest.updates


def test_a_callback_asks_for_an_evaluation(tmp_path):
    asked = []

    def once(line):
        if line.env_steps >= 24 and not asked:
            asked.append(line.env_steps)
            return "evaluate"

    run_dir = dreamer.train(tiny_runs.tiny(tmp_path / "run", **QUICK), callbacks=[once])
    evaluated = [row["env_steps"] for row in tiny_runs.lines(run_dir) if "eval/return" in row]
    assert evaluated == [asked[0], 64]


def test_a_callback_that_raises_ends_the_run_in_a_line_and_loses_nothing(tmp_path):
    def broken(line):
        if line.env_steps >= 32:
            raise KeyError("accuracy")

    config = tiny_runs.tiny(tmp_path / "run", **QUICK)
    with pytest.raises(RunFailed) as caught:
        dreamer.train(config, callbacks=[broken])
    text = str(caught.value)
    assert "broken failed: KeyError: 'accuracy'" in text and "test_listening.py" in text and "\n" not in text
    assert "checkpoint 32 and all rows are saved" in text and (tmp_path / "run" / "error.txt").exists()
    dreamer.train(config, resume="yes")
    assert tiny_runs.lines(tmp_path / "run")[-1]["env_steps"] == 64


def test_a_sink_that_raises_ends_the_run_in_a_line(tmp_path):
    with pytest.raises(RunFailed, match="sink Notebook failed in scalars: ZeroDivisionError: no page is left"):
        dreamer.train(tiny_runs.tiny(tmp_path / "run", **QUICK), sinks=[Notebook("scalars")])


def test_requests_of_several_callbacks_are_joined():
    assert ask([lambda line: "stop", lambda line: None, lambda line: "evaluate"], LINE) == {"stop", "evaluate"}


def test_an_unknown_request_is_named_with_the_choices():
    with pytest.raises(UserError, match="callback .* returned 'pause'; it may return 'stop' or 'evaluate', or None"):
        ask([lambda line: "pause"], LINE)
