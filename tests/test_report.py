"""`dreamer report`: turns run directories into curves, scores and one page, and names the faults of runs."""

from __future__ import annotations

import html.parser
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_dirs import add_pictures, climbing, write_curves, write_run

from dreamer.apps import cli
from dreamer.apps.report import command as report
from dreamer.apps.report import curves, plots, references, runs, scores
from dreamer.apps.report.runs import Points


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def three_seeds(folder, **settings):
    return [write_run(folder / f"seed{seed}", seed=seed, **settings) for seed in range(3)]


def output(capsys, *args: str) -> str:
    assert cli.main(["report", *args]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def error_line(capsys, *args: str) -> str:
    assert cli.main(["report", *args]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("dreamer: error: ") and err.count("\n") == 1
    return err


def one_task(*paths, named=()):
    found = runs.tasks([runs.read_run(path) for path in paths], named)
    assert len(found) == 1
    return found[0]


# ---- reading


def test_a_run_is_read_as_it_was_logged(here):
    run = runs.read_run(write_run(here / "a", seed=3))
    assert (run.config.seed, run.env_steps, run.updates, run.seconds) == (3, 1000, 500, 100.0)
    assert run.metrics["episode/return"].x[:3].tolist() == [50, 100, 150]
    assert run.metrics["episode/return"].y[:3].tolist() == [8, 13, 18]
    assert run.notes == ()


def test_runs_are_found_in_folders_and_not_in_runs(here):
    write_run(here / "runs" / "b" / "x")
    write_run(here / "runs" / "a")
    write_run(here / "runs" / "a" / "rows" / "inner")
    assert runs.find_runs("runs") == [here.relative_to(here) / "runs/a", here.relative_to(here) / "runs/b/x"]
    assert [path.name for path in runs.find_runs(here / "runs" / "a")] == ["a"]


def test_a_half_written_last_line_is_left_out_and_said(here):
    path = write_run(here / "a")
    whole = runs.read_run(path)
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"env_steps": 1050, "episode/ret')
    run = runs.read_run(path)
    assert run.env_steps == whole.env_steps and "half written" in run.notes[0]


def test_a_value_that_is_not_finite_is_left_out_and_said(here):
    lines = [*climbing(0), {"env_steps": 1000, "loss/dyn": None, "nonfinite": ["loss/dyn"]}]
    run = runs.read_run(write_run(here / "a", lines))
    assert len(run.metrics["loss/dyn"].x) == 20 and "loss/dyn is not finite in 1 lines" in run.notes[0]


@pytest.mark.parametrize(
    "line, parts",
    [
        ('{"env_steps": 10, "a"', ["damaged"]),
        ("", ["damaged"]),
        ('{"env_steps": 10, "a": NaN}', ["damaged", "NaN"]),
        ("[1, 2]", ["not a line of metrics", "env_steps"]),
        ('{"step": 10}', ["not a line of metrics", "env_steps"]),
        ('{"env_steps": true}', ["not a line of metrics", "env_steps"]),
        ('{"env_steps": 10, "a": "abc"}', ["not a line of metrics", "'a'", "'abc'"]),
        ('{"env_steps": 30}', ["goes back", "from 30 to 20"]),
        (b"\xff\xfe", ["damaged"]),
    ],
)
def test_a_damaged_or_foreign_line_is_named(here, capsys, line, parts):
    path = write_run(here / "a", [])
    text = line if isinstance(line, bytes) else line.encode()
    (path / "metrics.jsonl").write_bytes(b'{"env_steps": 1}\n' + text + b'\n{"env_steps": 20}\n')
    line = error_line(capsys, "a")
    where = "a/metrics.jsonl:3" if "goes back" in parts else "a/metrics.jsonl:2"
    for part in [where, *parts]:
        assert part in line, line


# ---- groups


def test_runs_that_differ_in_seed_and_place_are_one_group(here):
    three_seeds(here / "runs", **{"log.every": 5.0})
    write_run(here / "other", seed=7, **{"workers.backend": "inline", "checkpoint.keep": 9})
    task = one_task(*runs.find_runs("."))
    assert [(group.name, len(group.runs)) for group in task.groups] == [("all runs", 4)]


def test_a_group_is_named_by_what_differs(here):
    three_seeds(here / "slow")
    three_seeds(here / "fast", **{"agent.optimizer.learning_rate": 3e-4})
    task = one_task(*runs.find_runs("."))
    names = {group.name: len(group.runs) for group in task.groups}
    assert names == {"agent.optimizer.learning_rate=0.0003": 3, "agent.optimizer.learning_rate=4e-05": 3}


def test_settings_that_differ_between_tasks_only_name_nothing(here):
    write_run(here / "a", env="probes:both")
    write_run(here / "b", replay_ratio=8)
    found = runs.tasks([runs.read_run(path) for path in runs.find_runs(".")])
    assert [(task.name, task.groups[0].name) for task in found] == [
        ("CartPole-v1", "all runs"), ("probes:both", "all runs"),
    ]  # fmt: skip


def test_options_of_the_environment_make_another_task(here):
    write_run(here / "a", env="dmc:cheetah-run")
    write_run(here / "b", env="dmc:cheetah-run", env_options={"image": True})
    found = runs.tasks([runs.read_run(path) for path in runs.find_runs(".")])
    assert [task.name for task in found] == ["dmc:cheetah-run", "dmc:cheetah-run {image: true}"]


def test_many_settings_are_counted_in_the_name(here):
    write_run(here / "a")
    model = {"agent.world_model.mults": [2, 3], "agent.horizon": 100}
    write_run(here / "b", lockstep=True, **model, **{"replay.batch_size": 8})
    names = [group.name for group in one_task("a", "b").groups]
    assert names == [
        "1: lockstep=false, agent.horizon=333, agent.world_model.mults=[2, 3, 4, 4] and 1 more",
        "2: lockstep=true, agent.horizon=100, agent.world_model.mults=[2, 3] and 1 more",
    ]


def test_groups_of_ones_own_take_runs_and_folders(capsys, here):
    three_seeds(here / "slow")
    write_run(here / "x", seed=5)
    out = output(capsys, "--group", "mine=slow", "x", "--group", "alone=x", "--out", "page")
    assert re.search(r"mine +last evaluation, at 1,000 env steps +4 +20 ", out)
    assert re.search(r"alone +last evaluation, at 1,000 env steps +1 +5 ", out)


# ---- bins and curves


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(-9, 9)), min_size=1, max_size=30), st.integers(1, 50))
@settings(deadline=None)
def test_every_point_lies_in_the_bin_that_ends_at_or_after_it(pairs, width):
    x, y = np.array(sorted(pairs), np.float64).T
    bins = curves.binned(Points(x, y), width)
    for edge, value in zip(*bins, strict=True):
        inside = (x > edge - width) & (x <= edge)
        assert edge % width == 0 and value == pytest.approx(y[inside].mean())
    assert set(bins.x) == {width * -(-int(one) // width) for one in x}


def test_evaluations_stand_where_they_were_due(here):
    run = runs.read_run(write_run(here / "a"))
    assert run.metrics["eval/return"].x.tolist() == [103, 203, 303, 403, 503, 603, 703, 803, 903, 1000]
    assert curves.due(run, run.metrics["eval/return"]).x.tolist() == list(range(100, 1001, 100))


def test_the_last_evaluation_stands_at_the_end_where_nothing_was_due(here):
    lines = [{"env_steps": 400, "eval/return": 1.0}]
    run = runs.read_run(write_run(here / "a", lines, env_steps=399, **{"eval.every": 1000}))
    assert curves.due(run, run.metrics["eval/return"]).x.tolist() == [399]


def test_a_curve_stands_for_its_seeds_where_all_have_a_value():
    x = np.array([1.0, 2, 3])
    found = curves.curve([Points(x, x), Points(x, 3 * x), Points(x[:2], np.array([8.0, 13]))])
    assert found.at.tolist() == [1, 2] and found.x.tolist() == [1, 2, 3]
    assert found.mean.tolist() == [4, 7] == found.iqm.tolist()  # (1 + 3 + 8) / 3, (2 + 6 + 13) / 3
    assert np.isnan(found.seeds[2, 2])
    assert (found.low <= found.iqm).all() and (found.iqm <= found.high).all()


def test_one_seed_has_no_interval_and_says_so(here):
    drawn = curves.panel(one_task(write_run(here / "a")), "episode/return")
    assert drawn.lines[0].curve.low is None and drawn.lines[0].curve.high is None
    assert scores.rows(scores.scores(one_task("a"), drawn))[0][-1] == "none: 1 seed"


def test_seeds_that_share_no_bin_have_no_curve_and_are_drawn_alone(here):
    write_run(here / "a", [{"env_steps": 10, "loss/dyn": 1.0}])
    write_run(here / "b", [{"env_steps": 900, "loss/dyn": 1.0}], seed=1)
    drawn = curves.panel(one_task("a", "b"), "loss/dyn")
    assert len(drawn.lines[0].curve.at) == 0
    assert plots.draw(drawn, {"all runs": 0})[:4] == b"\x89PNG"


def test_bins_that_a_run_has_not_passed_are_left_out(here):
    lines = [{"env_steps": step, "episode/return": float(step)} for step in (40, 100, 150)]
    drawn = curves.panel(one_task(write_run(here / "a", lines)), "episode/return", width=100)
    assert drawn.lines[0].curve.x.tolist() == [100] and drawn.lines[0].curve.mean.tolist() == [70]


def test_x_is_in_frames_where_groups_repeat_actions_differently(here):
    write_run(here / "a")
    write_run(here / "b", action_repeat=2)
    assert not curves.panel(one_task("a"), "episode/return").frames
    drawn = curves.panel(one_task("a", "b"), "episode/return", width=50)
    assert drawn.frames and [line.curve.x[-1] for line in drawn.lines] == [1000, 2000]


# ---- published curves


@pytest.mark.parametrize(
    "env, options, steps, suite",
    [
        ("dmc:cheetah-run", {}, 1000, "x_proprio"),
        ("dmc:cheetah-run", {"image": True}, 1000, "x_vision"),
        ("dmc:cheetah-run", {"image": False}, 100_000, "x_proprio"),
        ("atari:pong", {}, 90_000, "short"),
        ("atari:pong", {}, 40_000_000, "long"),
        ("dmc:walker-walk", {}, 1000, None),
    ],
)
def test_the_suite_that_fits_a_task_is_found(here, env, options, steps, suite):
    for name, ends in (("x_proprio", 1000), ("x_vision", 1000)):
        write_curves(here / "refs", "dmc_cheetah_run", name, ends)
    write_curves(here / "refs", "atari_pong", "short", 400_000)
    write_curves(here / "refs", "atari_pong", "long", 200_000_000)
    task = one_task(write_run(here / "a", env=env, env_options=options, env_steps=steps, action_repeat=4))
    found = references.of_task(references.read(here / "refs"), task)
    assert [one.suite for one in found] == ([suite] if suite else [])


def test_what_was_published_is_read_off_where_the_runs_end(here):
    write_curves(here / "refs", "dmc_cheetah_run", "s", 4000)
    for seed in range(2):
        write_run(here / f"a{seed}", env="dmc:cheetah-run", seed=seed, action_repeat=2)
    task = one_task("a0", "a1")
    behind = references.of_task(references.read(here / "refs"), task)
    drawn = curves.panel(task, "episode/return", behind)
    assert drawn.frames and drawn.width == 400 and drawn.bounds == (0, 2500)
    ours, theirs = scores.scores(task, drawn)
    # 2000 frames are 1000 steps; the last bin holds the lines at 850 to 1000 steps, returns 85 to 100 and the seed.
    assert ours.at == theirs.at == (1600, 2000) and ours.scores.tolist() == [92.5, 93.5]
    assert theirs.scores.tolist() == [0, 1, 2]


def test_a_mean_without_seeds_is_a_line_and_no_score(here):
    (here / "refs").mkdir()
    (here / "refs" / "c.csv").write_text(
        "suite,task,method,seed,env_steps,score\ncrafter,crafter_reward,theirs,all,1000000,11.7\n"
    )
    task = one_task(write_run(here / "a", env="crafter:reward"))
    drawn = curves.panel(task, "episode/return", references.of_task(references.read(here / "refs"), task))
    assert [line.mean_only for line in drawn.lines] == [False, True] and drawn.bounds == (0, 1000)
    assert [score.group for score in scores.scores(task, drawn)] == ["all runs"]
    assert plots.draw(drawn, {"all runs": 0})[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "text, part",
    [
        ("suite,task,seed\na,b,c\n", "no column 'method'"),
        ("suite,task,method,seed,env_steps,score\ns,cartpole_v1,m,0,10\n", "c.csv:2: fewer values"),
        ("suite,task,method,seed,env_steps,score\ns,cartpole_v1,m,0,10,x\n", "c.csv:2: 'x' is no number"),
    ],
)
def test_a_file_that_holds_no_curves_is_named(here, capsys, text, part):
    (here / "refs").mkdir()
    (here / "refs" / "c.csv").write_text(text)
    write_run(here / "a")
    assert part in error_line(capsys, "a", "--references", "refs")


def test_the_shipped_references_hold_the_tasks_of_the_presets(request):
    folder = request.config.rootpath / "experiments" / "references"
    published = references.read(folder)
    ends = references.normalisation(folder)
    suites = {one.suite for ones in published.values() for one in ones}
    assert suites == {"dmc_proprio", "dmc_vision", "atari100k", "atari57", "crafter"}
    for key in ("dmc_walker_walk", "dmc_cheetah_run", "atari_pong", "atari_breakout"):
        assert len(published[key]) == 2 and key in ends
    assert set(published) - set(ends) == {"crafter_reward"}
    cheetah = next(one for one in published["dmc_cheetah_run"] if one.suite == "dmc_vision")
    last = [points.y[points.x > 950_000].mean() for points in cheetah.seeds.values()]
    assert np.mean(last) == pytest.approx(836.3, rel=0.01)  # the value in the files of the reference


# ---- scores


def test_the_table_is_that_of_the_hand(here):
    three_seeds(here / "runs")  # last evaluations 200, 201, 202; last training bins 95 to 100 and the seed
    task = one_task(*runs.find_runs("runs"))
    rows = []
    for metric in ("eval/return", "episode/return"):
        rows += scores.rows(scores.scores(task, curves.panel(task, metric)))
    assert [row[2:8] for row in rows] == [
        ("last evaluation, at 1,000 env steps", "3", "15", "201.0", "0.58", "201.0"),
        ("training, last tenth, at 900 to 1,000 env steps", "3", "-", "98.50", "0.58", "98.50"),
    ]
    assert rows[0][8] == "200.0 to 202.0"


def test_over_tasks_scores_are_normalised_and_drawn_within_each(here):
    (here / "refs").mkdir()
    (here / "refs" / "normalisation.csv").write_text("task,low,high\ncartpole_v1,100,300\nprobes_both,0,400\n")
    for env in ("CartPole-v1", "probes:both"):
        for seed in range(4):
            write_run(here / env / str(seed), env=env, seed=seed)
    found = runs.tasks([runs.read_run(path) for path in runs.find_runs(".")])
    ends = references.normalisation(here / "refs")
    reached = [one for task in found for one in scores.scores(task, curves.panel(task, "eval/return"))]
    (row,) = scores.over_tasks(reached, ends)
    # 200 to 203 become 0.5 to 0.515 in one task and 0.5 to 0.5075 in the other: mean 0.505625.
    assert row[:7] == ("all 2 tasks, normalised", "all runs", "last evaluation", "4", "40", "0.51", "-")
    assert scores.over_tasks(reached, {"cartpole_v1": (0, 1)}) == []
    assert scores.over_tasks(reached[:1], ends) == []


def test_the_score_of_a_running_group_is_where_all_its_seeds_are(here):
    write_run(here / "a", seed=0)
    write_run(here / "b", climbing(1, 500), seed=1)
    task = one_task("a", "b")
    (score,) = scores.scores(task, curves.panel(task, "eval/return"))
    assert score.at == (500, 500) and score.scores.tolist() == [100, 101]


def every(gap: int, end: int) -> list[dict[str, float]]:
    """Returns lines with an episode every `gap` steps whose return is its step; the last line has no episode."""
    lines = [{"env_steps": step, "episode/return": float(step)} for step in range(gap, end, gap)]
    return [*lines, {"env_steps": end}]


def test_the_last_tenth_is_the_true_one_and_the_same_for_groups_of_equal_length(here):
    write_run(here / "a", every(50, 2000), env_steps=2000)
    write_run(here / "b", every(30, 2003), env_steps=2000, **{"agent.horizon": 100.0})
    write_run(here / "c", every(190, 2000), env_steps=2000, **{"agent.horizon": 200.0})
    task = one_task("a", "b", "c")
    drawn = curves.panel(task, "episode/return")
    found = {score.group: score for score in scores.scores(task, drawn)}
    assert {score.at for score in found.values()} == {(1800, 2000)}
    by_horizon = {name.partition("horizon=")[2]: score.scores.item() for name, score in found.items()}
    assert by_horizon == {"333": 1900, "100": np.mean([*range(1830, 2000, 30)]), "200": 1900}


def test_the_span_begins_earlier_for_all_where_one_has_nothing_in_the_last_tenth(here):
    write_run(here / "a", every(50, 2000), env_steps=2000)
    write_run(here / "b", every(1700, 2000), env_steps=2000, **{"agent.horizon": 100.0})
    task = one_task("a", "b")
    first, second = scores.scores(task, curves.panel(task, "episode/return"))
    assert first.at == second.at == (pytest.approx(1700), 2000)
    assert sorted([first.scores.item(), second.scores.item()]) == [1700, np.mean([*range(1700, 2000, 50)])]


def test_groups_of_unequal_length_are_compared_where_both_are(here):
    write_run(here / "a")
    write_run(here / "b", climbing(0, 500), **{"agent.horizon": 100.0})
    task = one_task("a", "b")
    for metric, at in (("eval/return", (500, 500)), ("episode/return", (450, 500))):
        assert [score.at for score in scores.scores(task, curves.panel(task, metric))] == [at, at]


def test_a_last_bin_without_an_episode_is_drawn_once_its_run_has_passed_it(here):
    lines = [{"env_steps": step, "episode/return": float(step)} for step in (40, 100, 150)]
    run = write_run(here / "a", [*lines, {"env_steps": 200}])
    assert curves.panel(one_task(run), "episode/return", width=100).lines[0].curve.x.tolist() == [100, 200]


# ---- the command


def test_the_page_holds_everything_and_the_runs_are_left_alone(here, capsys):
    for folder in three_seeds(here / "runs"):
        add_pictures(folder, 100)
        add_pictures(folder, 200)
    three_seeds(here / "runs" / "fast", **{"agent.optimizer.learning_rate": 3e-4})
    before = {file: file.stat().st_mtime_ns for file in (here / "runs").rglob("*")}
    out = output(capsys, "runs", "--metrics", "loss/*", "--out", "page")
    assert {file: file.stat().st_mtime_ns for file in (here / "runs").rglob("*")} == before
    files = {file.name for file in (here / "page").iterdir()}
    panels = {"CartPole_v1_eval_return.png", "CartPole_v1_episode_return.png", "CartPole_v1_loss_dyn.png"}
    assert files == {"index.html", *panels} and "page: page/index.html" in out
    text = (here / "page" / "index.html").read_text()
    assert text.count("data:image/png;base64,") == 3 + 3 and text.count("data:video/mp4;base64,") == 3
    assert "at 200 env steps" in text and "at 100 env steps" not in text
    assert not re.search(r"(src|href)=.(?!data:)", text) and "http" not in text
    for words in ("agent.optimizer.learning_rate=0.0003", "Final scores", "runs/fast/seed2", "stratified"):
        assert words in text
    assert re.search(r"learning_rate=0.0003 +last evaluation, at 1,000 env steps +3 +15 +201.0 +0.58 +201.0", out)
    assert output(capsys, "runs", "--out", "page")  # its own page is overwritten


def test_every_tag_of_the_page_is_closed(here, capsys):
    add_pictures(write_run(here / "a"), 100)
    output(capsys, "a")
    open_tags: list[str] = []

    class Tags(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Tags().feed((here / "report" / "index.html").read_text())
    assert open_tags == []


def test_pictures_beyond_the_limit_are_left_out_and_named(here, capsys):
    add_pictures(write_run(here / "a"), 100)
    out = output(capsys, "a", "--media-mb", "0.0005")
    assert "left out" in out and "episode_000000100.mp4" in out and "openloop_000000100.png" not in out
    assert "data:video" not in (here / "report" / "index.html").read_text()


def test_names_are_shown_as_they_are_written(here, capsys):
    three_seeds(here / "a")
    out = output(capsys, "--group", "<b>[red]&=a")
    assert "<b>[red]&" in out
    text = (here / "report" / "index.html").read_text()
    assert "&lt;b&gt;[red]&amp;" in text and "<b>" not in text


def test_what_a_reader_must_know_is_said(here, capsys):
    write_run(here / "a")
    write_run(here / "b", climbing(0, 500), **{"agent.horizon": 100.0})
    write_run(here / "begun", [], seed=1)
    out = output(capsys, "--group", "g=a", "b", "begun")
    for part in (
        "group 'g' has seed 0 more than once: a, b", "group 'g' mixes runs of different agent.horizon: 333, 100",
        "b stands at 500 of 1,000 env_steps", "begun has no metrics yet",
        "all scores are those up to 500 env_steps, where b stands",
    ):  # fmt: skip
        assert part in out, out


def test_runs_without_evaluations_are_drawn_by_their_training_episodes(here, capsys):
    for seed in range(2):
        lines = [line for line in climbing(seed) if "eval/return" not in line]
        write_run(here / f"s{seed}", lines, seed=seed)
    write_run(here / "s2", seed=2)
    out = output(capsys, "s0", "s1")
    assert "last evaluation" not in out and "training, last tenth" in out
    out = output(capsys, "s0", "s1", "s2")
    assert "s0 has no eval/return" in out and re.search(r"last evaluation, at 1,000 env steps +1 +5 ", out)


def test_the_same_run_given_twice_counts_once(here, capsys):
    three_seeds(here / "runs")
    assert re.search(r"1,000 env steps +3 +15 ", output(capsys, "runs", "runs/seed0", str(here / "runs" / "seed1")))


@pytest.mark.parametrize(
    "args, parts",
    [
        ([], ["needs runs"]),
        (["nowhere"], ["no run at nowhere", "no such directory"]),
        (["empty"], ["no run in empty", "config.yaml"]),
        (["unlogged"], ["unlogged", "holds no metrics.jsonl"]),
        (["fresh"], ["no metrics were logged yet", "fresh"]),
        (["only"], ["no run has eval/return or episode/return", "loss/dyn"]),
        (["a", "--metrics", "loss/dny"], ["no run has 'loss/dny'", "'loss/dyn'"]),
        (["a", "--metrics", "zzz"], ["no run has 'zzz'", "5 others"]),
        (["a", "--group", "b"], ["--group needs NAME=RUN", "'b'"]),
        (["--group"], ["--group needs NAME=RUN"]),
        (["a", "--out", "a/page"], ["--out a/page lies in the run a"]),
        (["a", "--out", "foreign"], ["foreign/index.html was not made by dreamer report"]),
        (["a", "--out", "file"], ["file"]),
        (["a", "--references", "nowhere"], ["no references at nowhere"]),
        (["a", "--bin", "-1"], ["bin must be at least 0", "--bin"]),
        (["a", "--metric", "x"], ["unknown flag --metric", "'--metrics'"]),
        (["broken"], ["broken/config.yaml", "'agnet'", "'agent'"]),
    ],
)
def test_what_is_wrong_ends_with_one_line_and_code_2(here, capsys, args, parts):
    write_run(here / "a", [line | {"x/y": 1.0} for line in climbing(0)])
    (here / "empty" / "deeper").mkdir(parents=True)
    (write_run(here / "unlogged") / "metrics.jsonl").unlink()
    write_run(here / "fresh", [])
    write_run(here / "only", [{"env_steps": 1, "loss/dyn": 1.0}])
    write_run(here / "broken", agnet=1)
    (here / "foreign").mkdir()
    (here / "foreign" / "index.html").write_text("<html>mine</html>")
    (here / "file").write_text("")
    line = error_line(capsys, *args)
    for part in parts:
        assert part in line, line
    assert (here / "foreign" / "index.html").read_text() == "<html>mine</html>" and not (here / "a" / "page").exists()


def test_the_help_lists_its_flags(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = output(capsys, "--help")
    flags = ("--group", "--metrics", "--out", "--references", "--bin", "--media-mb", "RUN...")
    assert all(flag in out for flag in flags)


def test_a_page_is_strict_about_text():
    section = report.page.Section("<x>", ["a < b", report.page.Table(("<h>",), [("1,234.5",), ("<c>",)])])
    text = report.page.render("t & u", [section])
    assert "<h2>&lt;x&gt;</h2>" in text and "<td class=number>1,234.5</td>" in text and "<td>&lt;c&gt;</td>" in text
    assert "t &amp; u" in text


