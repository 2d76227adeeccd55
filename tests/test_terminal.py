import io
import math
import re

import pytest
from rich.console import Console

from dreamer.runtime.log.glossary import explain
from dreamer.runtime.log.terminal import Display, State, panel, plain_line

METRICS = {
    "episode/return": 123.4, "eval/return": 200.0, "dream/return": 9.5, "loss/dyn": 1.2, "loss/rep": 1.3,
    "loss/rec/image": 10.0, "loss/rec/position": 0.5, "loss/rew": 0.1, "loss/con": 0.02, "loss/policy": -0.3,
    "loss/value": 2.5, "loss/repval": 7.7, "train/grad_norm": 3.25, "replay/rows": 54321.0,
    "dream/action_entropy": 0.6, "dream/action_entropy_max": 0.6931, "latent/prior_entropy": 9.0,
    "latent/post_entropy": 7.0,
}  # fmt: skip


SCALES = ("dyn", "rep", "rec/image", "rec/position", "rew", "con", "policy", "value")


def state(metrics, losses=("dyn", "rep", "rec", "rew", "con", "policy", "value")) -> State:
    return State("training", 10, 1, 1.0, 1.0, metrics, losses)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(display: Display, clock: Clock) -> None:
    with display:
        display.header(["env CartPole-v1"])
        display.losses(SCALES)
        display.phase("compiling")
        clock.now = 5.0
        display.phase("training")
        for _ in range(30):
            clock.now += 1.0
            display.update(int(clock.now) * 100, int(clock.now), METRICS)


def field(line: str, name: str) -> str:
    fields = dict(part.rsplit(" ", 1) for part in line.split(" | ")[1:] if part.count(" ") == 1)
    return fields[name]


def test_a_file_gets_plain_lines_every_so_many_seconds():
    clock, stream = Clock(), io.StringIO()
    run(Display(10_000, every=10.0, stream=stream, clock=clock), clock)
    text = stream.getvalue()
    assert "\x1b" not in text and "\r" not in text
    header, compiling, training, *lines = text.splitlines()
    assert (header, compiling, training) == ("env CartPole-v1", "[0:00:00] compiling", "[0:00:05] training")
    assert [line.split("]")[0] for line in lines] == ["[0:00:10", "[0:00:20", "[0:00:30", "[0:00:35"]


def names(line: str) -> list[str]:
    return [part.split(" ")[0] for part in line.split(" | ")[1:]]


def test_plain_lines_keep_their_fields_in_order_and_leave_out_those_without_a_value():
    everything, nothing = (names(plain_line(state(metrics), 100, 1.0)) for metrics in (METRICS, {}))
    some = names(plain_line(state({"replay/rows": 3.0, "loss/dyn": 1.0}), 100, 1.0))
    assert everything == names(plain_line(state(dict(reversed(METRICS.items()))), 100, 1.0))
    assert nothing == ["env_steps", "updates", "env_steps/s", "updates/s", "left"]
    assert some == [*nothing, "dyn", "rows"] and [name for name in everything if name in some] == some
    assert " - " not in plain_line(state({}), 100, 1.0)


def test_every_name_on_a_line_but_the_time_left_is_explained():
    shown = [name for name in names(plain_line(state(METRICS), 100, 1.0)) if name != "left"]
    assert len(shown) > 15
    assert all(explain(name) for name in shown)


def test_the_entropy_of_the_policy_stands_beside_its_largest_and_those_of_the_latents_under_their_names():
    line = plain_line(state(METRICS), 100, 1.0)
    assert field(line, "action_entropy") == "0.6000/0.6931"
    assert field(line, "prior_entropy") == "9.000" and field(line, "post_entropy") == "7.000"
    assert field(plain_line(state({"dream/action_entropy": 0.5}), 100, 1.0), "action_entropy") == "0.5000"


@pytest.mark.parametrize(
    "known, needs_updates, env_rate, update_rate",
    [(True, True, 5.0, 1.0), (False, True, 5.0, 0.0), (False, True, 5.0, None), (True, False, 5.0, 0.0),
     (False, False, None, None)],
)  # fmt: skip
def test_the_time_left_is_shown_once_updates_are_made(known, needs_updates, env_rate, update_rate):
    now = state({})._replace(needs_updates=needs_updates, env_rate=env_rate, update_rate=update_rate)
    assert ("left" in names(plain_line(now, 100, 1.0))) == known


def test_the_pace_of_collecting_is_forgotten_when_training_begins():
    clock, stream = Clock(), io.StringIO()
    with Display(1000, every=1.0, stream=stream, clock=clock) as display:
        for phase, seconds in (("collecting", 10), ("compiling", 10), ("training", 0)):
            display.phase(phase)
            for _ in range(seconds):
                clock.now += 1
                display.update(int(clock.now), 0)
        clock.now += 0.5
        display.update(21, 1)
    assert "env_steps/s" not in stream.getvalue().splitlines()[-1]


def test_there_is_no_line_before_the_first_step():
    clock, stream = Clock(), io.StringIO()
    with Display(1000, every=1.0, stream=stream, clock=clock) as display:
        clock.now = 5.0
        display.update(0, 0, {"replay/rows": 0.0})
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_the_last_words_follow_everything_else_and_the_panel_ends_with_the_last_phase(kind):
    clock, stream = Clock(), kind()
    with Display(10_000, every=10.0, stream=stream, clock=clock) as display:
        display.phase("training")
        display.update(100, 1, METRICS)
        display.end("done", ["done: runs/x", "  next"])
        display.message("an environment could not be closed")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    *_, last = text.rstrip().partition("an environment could not be closed")
    assert last.endswith("done: runs/x\n  next") and "100" in last and "training" not in last


def test_a_line_that_was_written_already_is_not_written_again_at_the_end():
    clock, stream = Clock(), io.StringIO()
    with Display(10_000, every=0.0, stream=stream, clock=clock) as display:
        display.update(100, 1, METRICS)
        display.end("done", ["done"])
    assert len(stream.getvalue().splitlines()) == 2


def test_rates_and_time_left_follow_the_steps():
    clock, stream = Clock(), io.StringIO()
    run(Display(10_000, every=10.0, stream=stream, clock=clock), clock)
    last = stream.getvalue().splitlines()[-1]
    assert float(field(last, "env_steps/s")) == 100 and float(field(last, "updates/s")) == 1
    assert field(last, "left") == "0:01:05"


def test_rates_do_not_count_the_time_of_another_phase():
    clock, stream = Clock(), io.StringIO()
    with Display(1000, every=1000.0, stream=stream, clock=clock) as display:
        display.phase("training")
        display.update(0, 0)
        clock.now = 10.0
        display.phase("evaluating")
        display.phase("training")
        display.update(0, 0)
        clock.now = 20.0
        display.update(100, 5)
    assert float(field(stream.getvalue().splitlines()[-1], "env_steps/s")) == 10


def test_reconstruction_is_the_sum_over_observation_keys():
    line = plain_line(state(METRICS), 100, 1.0)
    assert float(field(line, "rec")) == 10.5


def test_the_losses_of_any_family_are_shown_in_the_order_of_its_scales():
    clock, stream = Clock(), io.StringIO()
    with Display(1000, every=1000.0, stream=stream, clock=clock) as display:
        display.losses(["near", "far", "task/policy", "task/value"])
        display.update(2, 0, {"loss/far": 1.0, "loss/near": 2.0, "loss/task/policy": 3.0, "loss/task/value": 4.0})
    shown = names(stream.getvalue().splitlines()[-1])
    assert shown[shown.index("near") :][:3] == ["near", "far", "task"]
    assert float(field(stream.getvalue().splitlines()[-1], "task")) == 7


def test_a_nan_is_shown_and_a_missing_value_is_not():
    line = plain_line(state({"loss/dyn": math.nan}), 100, 1.0)
    assert field(line, "dyn") == "nan" and "rep" not in names(line)


def test_a_metric_that_is_missing_keeps_its_last_value():
    clock, stream = Clock(), io.StringIO()
    with Display(1000, every=1000.0, stream=stream, clock=clock) as display:
        display.update(1, 0, {"eval/return": 200.0})
        display.update(2, 0, {"loss/dyn": 1.0})
    assert float(field(stream.getvalue().splitlines()[-1], "eval")) == 200


def test_a_terminal_gets_a_panel_with_the_same_facts():
    clock, stream = Clock(), Terminal()
    run(Display(10_000, every=10.0, stream=stream, clock=clock), clock)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "env CartPole-v1" in text and "compiling" not in text.split("╭")[-1] and "dreamer training" in text
    assert "123.4" in text.split("╭")[-1] and "3 500 / 10 000 env steps" in text.split("╭")[-1]
    assert stream.getvalue().endswith("\x1b[?25h")  # the cursor is given back


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_panel_cuts_nothing_off(width):
    console = Console(width=width, file=io.StringIO())
    shown = State("training", 1_234_567, 3_456, 1064.2, 33.0, METRICS, ("dyn", "rec", "policy"))
    console.print(panel(shown, 5_000_000, 3723.0, width))
    text = console.file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) == width
    words = ("env_steps/s", "1064", "grad_norm", "3.250", "123.4", "1:02:03", "policy", "-0.300", "54321")
    for word in (*words, "0.6000/0.6931"):
        assert word in text
