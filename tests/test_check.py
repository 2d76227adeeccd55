"""`dreamer check` finds each planted fault and names it, and reports nothing on healthy environments."""

from __future__ import annotations

import contextlib
import json
import os

import gymnasium
import numpy as np
import pytest
from faulty_check_envs import Ball, Scene

from dreamer.apps import cli
from dreamer.apps.check import gymnasium_checker, isolation, picture, spaces
from dreamer.apps.check.answers import Answer
from dreamer.apps.check.examine import examine
from dreamer.apps.check.isolation import verdicts_of
from dreamer.apps.check.looks import keys_of
from dreamer.apps.check.verdicts import Settings, Tally, Verdict, wrong
from dreamer.apps.check.walk import Walk, chooser, walk
from dreamer.apps.check.watch import EnvFailed, Watch
from dreamer.errors import UserError
from dreamer.runtime.env.observations import readers
from dreamer.runtime.env.rows import EnvRows
from dreamer.runtime.log.images import read_png
from dreamer.spaces import Space

STEPS = 600
FAULTY = "faulty_check_envs:make"
FAULTS = {
    "WideDtype": {"dtype": "warning"},
    "FloatPicture": {"dtype": "wrong"},
    "Flat": {"shape": "wrong"},
    "Outside": {"range": "wrong"},
    "NotANumber": {"nan": "wrong"},
    "Infinite": {"nan": "wrong"},
    "MissingKey": {"missing-key": "wrong"},
    "Endless": {"never-ends": "warning"},
    "TruncatedWhenItFalls": {"uneven-limit": "warning"},
    "TerminatedByTime": {"time-limit": "warning"},
    "StaleEnd": {"stale-end": "wrong"},
    "StaleCamera": {"stale-end": "wrong"},
    "ResetsInside": {"reset-inside": "wrong"},
    "ReturnsTheFinal": {"reset-inside": "wrong"},
    "Unseeded": {"unseeded": "warning"},
    "Remembers": {"reset-leaks": "warning"},
    "SameEpisode": {"same-episode": "wrong"},
    "HugeReward": {"reward-scale": "warning"},
    "NanReward": {"reward-nan": "wrong"},
    "ArrayReward": {"reward-type": "wrong"},
    "ArrayFlag": {"flags": "wrong"},
    "Blind": {"constant": "wrong"},
    "DeadCamera": {"constant": "warning"},
    "DimPicture": {"picture-range": "warning"},
    "Grows": {"exploding": "warning"},
    "OwnBuffer": {"buffers": "warning"},
    "OneBuffer": {"buffers": "warning", "shared-buffers": "wrong"},
    "ChangingInfo": {"info-keys": "warning"},
    "NoSeed": {"reset-seed": "wrong"},
    "OldStep": {"step-api": "wrong"},
    "OldReset": {"reset-api": "wrong"},
    "Breaks": {"raises": "wrong"},
    "Unmakeable": {"construction": "wrong"},
    "Misshapen": {"construction": "wrong"},
    "OddSpace": {"space": "wrong"},
    "FreeAction": {"action-bounds": "warning"},
}
TAXI = "Taxi-v4" if "Taxi-v4" in gymnasium.registry else "Taxi-v3"
SOUND = [
    "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1", "Pendulum-v1", "FrozenLake-v1", TAXI,
    "probes:observation", "broken_envs:sound", "faulty_check_envs:Ball", "faulty_check_envs:Scene",
    "faulty_check_envs:OddPicture", "Blackjack-v1", "masked_envs:make",
]  # fmt: skip


def found(name: str, steps: int = STEPS, **options) -> list[Verdict]:
    return list(examine(name, Settings(env_options=options, steps=steps), Watch()))


def bad(verdicts: list[Verdict]) -> dict[str, str]:
    return {verdict.key: verdict.level for verdict in verdicts if verdict.level in ("warning", "wrong")}


def one(verdicts: list[Verdict], key: str) -> Verdict:
    (verdict,) = [verdict for verdict in verdicts if verdict.key == key]
    return verdict


# ---- faults and sound environments


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_found_by_its_name_and_nothing_else_is(fault):
    assert bad(found(FAULTY, fault=fault)) == FAULTS[fault]


@pytest.mark.parametrize("name", SOUND)
def test_a_healthy_environment_has_no_faults(name):
    assert bad(found(name)) == {}


def test_the_control_suite_has_no_faults():
    pytest.importorskip("dm_control")
    assert bad(found("dmc:walker-walk", steps=1100)) == {}


def test_a_verdict_names_the_key_the_value_and_the_step():
    text = one(found(FAULTY, fault="NotANumber"), "nan").text
    assert "'vector' at [1] is nan" in text and "episode 1, step 5" in text


def test_a_fault_that_comes_often_is_one_verdict():
    assert "624 times" in one(found(FAULTY, fault="Flat"), "shape").text


def test_an_error_names_file_and_line_of_the_environment():
    verdicts = found(FAULTY, fault="Breaks")
    text = one(verdicts, "raises").text
    assert "episode 1, step 10" in text and "the cable is loose" in text and "faulty_check_envs.py, line" in text
    assert one(verdicts, "stopped").level == "note"


def test_an_error_while_making_names_file_and_line():
    text = one(found(FAULTY, fault="Unmakeable"), "construction").text
    assert "no such licence" in text and "faulty_check_envs.py, line" in text


def test_an_action_that_changes_nothing_is_not_a_stale_observation(monkeypatch):
    class Stopping(Ball):
        def step(self, action):
            if action == 2:
                return self.observe(), 1.0, True, False, self.info()
            obs, reward, _, truncated, info = super().step(action)
            return obs, reward, False, truncated, info

    monkeypatch.setattr("faulty_check_envs.Ball", Stopping)
    assert one(found("faulty_check_envs:Ball"), "stale-end").level == "note"


def test_a_note_says_that_no_episode_terminates():
    verdicts = found(FAULTY, fault="NeverTerminated")
    assert bad(verdicts) == {} and one(verdicts, "no-true-end").level == "note"


def test_a_registered_time_limit_beyond_the_steps_is_not_a_fault():
    verdicts = found("Acrobot-v1", steps=100)
    assert bad(verdicts) == {} and "time limit is 500" in one(verdicts, "endings").text


def test_the_return_of_a_random_policy_is_reported_with_its_standard_error():
    returns = [sum(row.reward for row in rows) for rows in taken(Ball()).episodes()]
    facts = one(found("faulty_check_envs:Ball"), "return").facts
    assert facts["episodes"] == len(returns) and facts["mean"] == pytest.approx(np.mean(returns))


# ---- parts


def taken(env: gymnasium.Env, repeat: int = 1, steps: int = STEPS, episodes: int = 100) -> Walk:
    keys = keys_of(env, readers(env))
    return walk(env, keys, Watch(), steps=steps, episodes=episodes, seed=0, repeat=repeat)


def test_the_walk_holds_each_action_as_long_as_the_runtime_does():
    rows = [row for row in taken(Ball(), repeat=4).rows if row.step]
    held = {}
    for row in rows:
        held.setdefault((row.episode, (row.step - 1) // 4), set()).add(int(row.action))
    assert all(len(actions) == 1 for actions in held.values())
    assert len({row.action for row in rows}) == 3


def test_the_walk_ends_after_the_episodes_asked_for():
    done = taken(Ball(), steps=10_000, episodes=3)
    assert len(done.episodes()) == 3 and done.rows[-1].last and done.whole


def test_random_actions_stay_where_the_agents_are():
    env = Scene()
    env.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    choose = chooser(env, 0)
    drawn = np.stack([choose(Answer(None)) for _ in range(200)])
    assert np.abs(drawn).max() <= 1 and drawn.std() > 0.5


@pytest.mark.parametrize(
    "space, words",
    [
        (Space((64, 64, 3), "uint8"), ["64x64x3", "convolutions", "pixels"]),
        (Space((4,), "float32"), ["4 numbers", "symlog", "squared error"]),
        (Space((), "int32", 7), ["one of 7 classes", "one-hot", "cross-entropy"]),
        (Space((2, 3), "int32", 5), ["2x3", "one of 5 classes", "30 numbers"]),
    ],
)
def test_a_key_is_described_by_how_it_is_encoded_and_decoded(space, words):
    assert all(word in spaces.described(space) for word in words)


def test_a_tally_reports_the_first_of_each_kind_and_the_count():
    tally = Tally()
    for step in range(3):
        tally.add(wrong("nan", "it is nan"), "speed", f"step {step}")
    tally.add(wrong("nan", "it is inf"), "place", "step 2")
    first, second = tally.verdicts()
    assert first.text == "it is nan (step 0); 3 times in all" and second.text == "it is inf (step 2)"


def test_a_line_of_gymnasiums_checker_is_reported_if_no_verdict_covers_it():
    assert gymnasium_checker.verdicts(["something new"], []) == [Verdict("warning", "gymnasium", "something new")]
    assert gymnasium_checker.verdicts(["!something new"], [])[0].level == "wrong"


def test_a_line_of_gymnasiums_checker_is_dropped_if_a_verdict_covers_it():
    line = "The obs returned by the `step()` method is not within the observation space."
    assert gymnasium_checker.verdicts([line], [wrong("nan", "it is nan")])[0].level == "ok"
    assert gymnasium_checker.verdicts([line], [])[0].level == "warning"


def test_gymnasiums_checker_is_run():
    class Limited(Ball):
        observation_space = gymnasium.spaces.Box(np.float32([-10, 3]), np.float32([10, 3]))

    lines = gymnasium_checker.lines(Limited(), Watch())
    assert any("maximum and minimum values are equal" in line for line in lines)


def test_errors_of_the_environment_are_distinguished_from_errors_of_the_check():
    watch = Watch()

    def fails():
        raise KeyError("lost")

    with pytest.raises(EnvFailed, match="step.. raised in the attic: KeyError: 'lost'"):
        watch.place = "the attic"
        watch.call("step", fails)


# ---- the separate process


def test_an_environment_that_hangs_is_named_with_its_line():
    settings = Settings(env_options={"fault": "Hangs"}, steps=50, patience=0.5)
    last = list(verdicts_of(FAULTY, settings))[-1]
    assert (last.level, last.key) == ("wrong", "hangs")
    assert "step() has not returned for 0.5 s in episode 1, step 10" in last.text
    assert "faulty_check_envs.py, line" in last.text


def test_a_process_that_does_not_respond_is_given_up(monkeypatch):
    monkeypatch.setattr(isolation, "START", 0.01)
    reading, writing = os.pipe()
    with open(reading, "rb"), open(writing, "wb"):
        os.write(writing, b'{"alive": true}\n{"ali')
        assert list(isolation._messages(reading, 0.01)) == [{"alive": True}, {"silent": 0.01}]


def test_an_environment_that_ends_its_process_is_named():
    last = list(verdicts_of(FAULTY, Settings(env_options={"fault": "Exits"}, steps=50)))[-1]
    assert (last.level, last.key) == ("wrong", "dies")
    assert "exit code 7" in last.text and "episode 1, step 10" in last.text


# ---- the command


def test_output_of_an_environment_stays_out_of_the_json(capfd):
    assert cli.main(["check", FAULTY, "--env-options.fault", "Prints", "--steps", "40", "--json", "-"]) == 0
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert report["sound"] and report["env"] == FAULTY and report["env_options"] == {"fault": "Prints"}
    assert {verdict["key"] for verdict in report["verdicts"]} >= {"observation", "action", "step-time", "throughput"}
    assert "a step" in err


def test_a_wrong_environment_gives_exit_code_1_and_a_line_a_verdict(capfd, tmp_path):
    file = tmp_path / "new" / "check.json"
    code = cli.main(["check", FAULTY, "--env-options.fault", "StaleEnd", "--steps", "400", "--json", str(file)])
    lines = capfd.readouterr().out.splitlines()
    assert code == 1
    report = json.loads(file.read_text())
    assert len(lines) == len(report["verdicts"]) + 2 and lines[-1].startswith("not sound: 1 wrong")
    assert [line for line in lines if line.startswith("wrong    stale-end ")]


@pytest.mark.parametrize(
    "args, words",
    [
        ([], "needs an environment"),
        (["CartPole-v1", "Pendulum-v1"], "stray argument 'Pendulum-v1'"),
        (["CartPole-v1", "--steps", "0"], "steps must be at least 1"),
        (["CartPole-v1", "--stepz", "9"], "did you mean '--steps'?"),
        (["CartPole-v1", "--picture", "a.jpg"], "picture must name a .png file"),
        (["CartPol-v1"], "did you mean 'CartPole-v1'?"),
        (["probes:constan"], "did you mean 'constant'?"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_2(capfd, args, words):
    assert cli.main(["check", *args]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("dreamer: error: ") and err.count("\n") == 1 and words in err


def test_check_help_lists_its_flags(capsys):
    assert cli.main(["check", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(flag in out for flag in ("--steps", "--env-options", "--picture", "--patience", "--action-repeat"))


# ---- the picture


def test_the_picture_shows_the_raw_observation_and_the_agents_row(tmp_path):
    with contextlib.closing(EnvRows(Scene(), seed=0, action_repeat=2)) as rows:
        story = picture.record(rows, seed=0)
    assert story.seen.keys() == story.raw.keys() == {"camera", "speed"}
    assert all((story.raw[key] == story.seen[key]).all() for key in story.raw)
    assert story.starts[0] == 0 and len(story.starts) > 1 and not story.drawn
    (verdict,) = picture.check(Scene(), str(tmp_path / "seen.png"), Watch(), 0, 2)
    image = read_png(tmp_path / "seen.png")
    assert verdict.level == "ok" and image.shape[1] == 1300
    assert (image == 230).all(-1).any(), "the ball is not to be seen"


def test_the_rendered_image_is_in_the_picture(tmp_path):
    settings = Settings(steps=50, picture=str(tmp_path / "pole.png"))
    assert one(list(examine("CartPole-v1", settings, Watch())), "picture").level == "ok"
    assert read_png(settings.picture).std() > 10


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        list(examine("faulty_check_envs:Ball", Settings(steps=20, picture=str(tmp_path / "file" / "a.png")), Watch()))
