"""`dreamer report`: turns run directories into curves, scores and one page, and names the faults of runs."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_dirs import climbing, write_curves, write_run

from dreamer.apps import cli
from dreamer.apps.report import axes, curves, groups, plots, references, runs, scores
from dreamer.apps.report.runs import Points
from envs.probes import PROBES


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
    found = groups.tasks([runs.read_run(path) for path in paths], named)
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


def test_names_are_sorted_with_their_numbers_in_order():
    names = ["seed10", "seed2", "rate=1e-3-seed1", "b", "10", "9"]
    assert sorted(names, key=runs.by_number) == ["9", "10", "b", "rate=1e-3-seed1", "seed2", "seed10"]


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
        ('{"env_steps": 20}', ["goes back", "from 25 to 20"]),
        (b"\xff\xfe", ["damaged"]),
    ],
)
def test_a_damaged_or_foreign_line_is_left_out_and_named(here, line, parts):
    path = write_run(here / "a", [])
    text = line if isinstance(line, bytes) else line.encode()
    (path / "metrics.jsonl").write_bytes(b'{"env_steps": 25}\n' + text + b'\n{"env_steps": 40}\n')
    run = runs.read_run("a")
    (note,) = run.notes
    for part in ["a/metrics.jsonl:2", "left out", *parts]:
        assert part in note, note
    assert run.env_steps == 40


def test_many_damaged_lines_are_counted(here):
    path = write_run(here / "a", [])
    (path / "metrics.jsonl").write_bytes(b"x\n" * 9 + b'{"env_steps": 40}\n')
    notes = runs.read_run("a").notes
    assert len(notes) == 6 and notes[-1] == "a/metrics.jsonl: 4 more lines are left out"


def test_a_setting_of_another_version_is_left_out_and_named(here):
    path = write_run(here / "a", seed=4)
    text = "seed: 4\nworkers:\n  envs: 3\n  least: 2\nagent:\n  world_model:\n    dreams: {a: 1}\n"
    (path / "config.yaml").write_text(text)
    run = runs.read_run(path)
    assert run.config.seed == 4 and run.config.workers.envs == 3
    assert [note.partition(";")[0] for note in run.notes] == [
        f"{path}/config.yaml:4: this version of dreamer has no setting workers.least (now workers.min_ready?)",
        f"{path}/config.yaml:7: this version of dreamer has no setting agent.world_model.dreams"
        + run.notes[1].partition("dreams")[2].partition(";")[0],
    ]


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
    assert names == {"learning_rate=0.0003": 3, "learning_rate=4e-05": 3}


def test_other_behaviors_are_named_by_their_name_and_not_by_all_their_settings(here):
    three_seeds(here / "clone", **{"agent.behavior.name": "cloning"})
    three_seeds(here / "plain")
    three_seeds(here / "careful", **{"agent.behavior.penalty": 10})
    task = one_task(*runs.find_runs("."))
    assert {group.name for group in task.groups} == {
        "behavior.name=cloning", "penalty=0, behavior.name=actor_critic", "penalty=10, behavior.name=actor_critic",
    }  # fmt: skip


def test_a_run_alone_is_called_by_its_name(here):
    write_run(here / "runs" / "mine")
    assert [group.name for group in one_task("runs/mine").groups] == ["mine"]
    write_run(here / "runs" / "fast", **{"agent.horizon": 100})
    assert [group.name for group in one_task("runs/mine", "runs/fast").groups] == [
        "mine (horizon=333)", "fast (horizon=100)",
    ]  # fmt: skip


def test_runs_of_the_same_name_are_distinguished_by_their_folders(here):
    write_run(here / "a" / "seed0")
    write_run(here / "b" / "seed0", **{"agent.horizon": 100})
    assert [group.name for group in one_task("a/seed0", "b/seed0").groups] == [
        "a/seed0 (horizon=333)", "b/seed0 (horizon=100)",
    ]  # fmt: skip


def test_a_setting_is_named_by_as_much_of_its_key_as_is_unique(here):
    for number in range(4):
        write_run(here / str(number), seed=number, **{"agent.behavior.units": 64 if number < 2 else 128})
    assert [group.name for group in one_task(*"0123").groups] == ["behavior.units=64", "behavior.units=128"]


def test_settings_that_differ_between_tasks_only_name_nothing(here):
    write_run(here / "a", env="probes:both")
    write_run(here / "b", replay_ratio=8)
    found = groups.tasks([runs.read_run(path) for path in runs.find_runs(".")])
    assert [(task.name, task.groups[0].name) for task in found] == [
        ("CartPole-v1", "all runs"), ("probes:both", "all runs"),
    ]  # fmt: skip


def test_options_of_the_environment_make_another_task(here):
    write_run(here / "a", env="dmc:cheetah-run")
    write_run(here / "b", env="dmc:cheetah-run", env_options={"image": True})
    found = groups.tasks([runs.read_run(path) for path in runs.find_runs(".")])
    assert [task.name for task in found] == ["dmc:cheetah-run", "dmc:cheetah-run {image: true}"]


def test_many_settings_are_counted_in_the_name(here):
    model = {"agent.world_model.mults": [2, 3], "agent.horizon": 100}
    for seed in range(2):
        write_run(here / f"a{seed}", seed=seed)
        write_run(here / f"b{seed}", seed=seed, lockstep=True, **model, **{"replay.batch_size": 8})
    names = [group.name for group in one_task("a0", "a1", "b0", "b1").groups]
    assert names == [
        "lockstep=false, horizon=333, mults=[2, 3, 4, 4] and 1 more",
        "lockstep=true, horizon=100, mults=[2, 3] and 1 more",
    ]


def test_settings_of_a_single_run_do_not_lengthen_the_names_of_others(here):
    three_seeds(here / "slow")
    three_seeds(here / "fast", **{"agent.optimizer.learning_rate": 3e-4})
    write_run(here / "odd", lockstep=True, **{"agent.horizon": 9, "replay.batch_size": 8, "agent.contdisc": False})
    names = {group.name for group in one_task(*runs.find_runs(".")).groups}
    assert names == {"learning_rate=0.0003", "learning_rate=4e-05", "odd"}


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
    assert scores.rows(scores.scores(one_task("a"), drawn))[0].interval == "none: 1 seed"


def test_seeds_that_share_no_bin_have_no_curve_and_are_drawn_alone(here):
    write_run(here / "a", [{"env_steps": 10, "loss/dyn": 1.0}])
    write_run(here / "b", [{"env_steps": 900, "loss/dyn": 1.0}], seed=1)
    drawn = curves.panel(one_task("a", "b"), "loss/dyn")
    assert len(drawn.lines[0].curve.at) == 0
    assert plots.on_page(drawn, plots.styles(["all runs"], [drawn])).startswith("<svg")


def test_bins_that_a_run_has_not_passed_are_left_out(here):
    lines = [{"env_steps": step, "episode/return": float(step)} for step in (40, 100, 150)]
    drawn = curves.panel(one_task(write_run(here / "a", lines)), "episode/return", width=100)
    assert drawn.lines[0].curve.x.tolist() == [100] and drawn.lines[0].curve.mean.tolist() == [70]


def test_x_is_in_env_steps_unless_frames_are_asked_for(here):
    write_run(here / "a")
    write_run(here / "b", action_repeat=2)
    for frames, ends in ((False, [1000, 1000]), (True, [1000, 2000])):
        drawn = curves.panel(one_task("a", "b"), "episode/return", width=50, frames=frames)
        assert drawn.frames == frames and [line.curve.x[-1] for line in drawn.lines] == ends


def test_the_spread_over_episodes_is_the_root_mean_square_of_the_seeds(here):
    for seed, std in enumerate((3.0, 4.0)):
        lines = [{"env_steps": 100, "eval/return": 1.0, "eval/return_std": std}]
        write_run(here / f"s{seed}", lines, seed=seed)
    drawn = curves.panel(one_task("s0", "s1"), "eval/return")
    assert drawn.lines[0].curve.std.tolist() == [pytest.approx(12.5**0.5)]


# ---- axes


@pytest.mark.parametrize(
    "values, levels, returns, ends",
    [
        ([100, 200], [], True, (0, 210)),
        ([-200, -100], [], True, (-210, 0)),
        ([100, 200], [500], True, (0, 525)),
        ([100, 200], [-100], True, (-115, 215)),
        ([30, 31], [], False, (29.95, 31.05)),
        ([1, 5], [], False, (0, 5.25)),
        ([-5, -1], [], False, (-5.25, 0)),
        ([2, 2], [], False, (1.8, 2.2)),
        ([0, 0], [], True, (-1, 1)),
    ],
)
def test_an_axis_shows_what_a_reader_expects(values, levels, returns, ends):
    found = axes.y_bounds(np.array(values, float), [references.Level("x", one) for one in levels], returns)
    assert found == pytest.approx(ends)


def test_a_run_of_a_single_row_has_axes(here):
    drawn = curves.panel(one_task(write_run(here / "a", [{"env_steps": 0, "episode/return": 3.0}])), "episode/return")
    assert drawn.bounds == (0, 1) and drawn.y_bounds == pytest.approx((0, 3.15))


def test_words_of_near_levels_stand_apart():
    levels = [references.Level(name, value) for name, value in (("b", 51), ("a", 50), ("c", 90))]
    assert [(one.name, above) for one, above in axes.place_labels(levels, (0, 100))] == [
        ("a", False), ("b", True), ("c", True),
    ]  # fmt: skip


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
    # 4000 frames are 2000 steps; the last bin holds the lines at 850 to 1000 steps, returns 85 to 100 and the seed.
    assert not drawn.frames and drawn.width == 200 and drawn.bounds == (0, 1250)
    assert [level.name for level in drawn.levels] == ["theirs at 2k env steps"]
    ours, theirs = scores.scores(task, drawn)
    assert ours.at == theirs.at == (800, 1000) and ours.scores.tolist() == [92.5, 93.5]
    assert theirs.scores.tolist() == [0, 1, 2]


def test_published_curves_have_no_place_beside_unequal_action_repeats_but_over_frames(here):
    write_curves(here / "refs", "dmc_cheetah_run", "s", 4000)
    for repeat in (1, 2):
        write_run(here / f"a{repeat}", env="dmc:cheetah-run", action_repeat=repeat)
    task = one_task("a1", "a2")
    behind = references.of_task(references.read(here / "refs"), task)
    drawn = curves.panel(task, "episode/return", behind)
    assert not any(line.published for line in drawn.lines) and "action_repeat (1, 2)" in drawn.missing[0]
    assert any(line.published for line in curves.panel(task, "episode/return", behind, frames=True).lines)


def test_a_mean_without_seeds_is_a_level_and_no_score(here):
    (here / "refs").mkdir()
    (here / "refs" / "c.csv").write_text(
        "suite,task,method,seed,env_steps,score\ncrafter,crafter_reward,theirs,all,1000000,11.7\n"
    )
    task = one_task(write_run(here / "a", env="crafter:reward"))
    behind = references.of_task(references.read(here / "refs"), task)
    levels = references.levels({}, behind, task)
    drawn = curves.panel(task, "episode/return", behind, levels=levels)
    assert drawn.levels == [references.Level("theirs, published", 11.7)] and drawn.bounds == (0, 1000)
    (row,) = scores.rows(scores.scores(task, drawn))
    assert (row.group, row.random, row.others) == ("a", "-", "11.70 (theirs, published)")
    assert "theirs, published 11.7" in plots.on_page(drawn, plots.styles(["a"], [drawn]))


def test_the_levels_of_the_probes_are_those_of_the_probes(request):
    ends = references.normalisation(request.config.rootpath / "experiments" / "references")
    for name, probe in PROBES.items():
        if probe.random_return < probe.best_return:
            one = ends[f"probes_{name}"]
            assert (one.low, one.high, one.unless) == (probe.random_return, probe.best_return, "steps")


def test_levels_do_not_hold_with_the_option_that_changes_them(here):
    ends = {"probes_both": references.Ends(4, 8, "random", "best", "steps")}
    plain = one_task(write_run(here / "a", env="probes:both"))
    longer = one_task(write_run(here / "b", env="probes:both", env_options={"steps": 99}))
    assert references.valid_ends(ends, [plain]) == ends and references.valid_ends(ends, [longer]) == {}
    assert references.levels(ends, [], plain) == [("random", 4), ("best", 8)]


def offline_run(path, best: float, **settings):
    """Writes a run that has learned from data only."""
    lines = [row | {"data/return_best": best, "data/return_mean": best / 2} for row in climbing(0, steps=200)]
    return write_run(path, lines, updates=200, **{"data": ["made"], "action_repeat": 4, **settings})


def test_what_the_data_reach_stands_beside_the_evaluations(here):
    task = one_task(offline_run(here / "a", 90.0))
    levels = references.data_levels(task)
    assert levels == [("best return of the data", 90), ("mean return of the data", 45)]
    drawn = curves.panel(task, "eval/return", levels=levels)
    others = scores.rows(scores.scores(task, drawn))[0].others
    assert others == "90.00 (best return of the data); 45.00 (mean return of the data)"
    assert references.data_levels(one_task(write_run(here / "b"))) == []


def test_datasets_that_differ_are_told_apart(here):
    task = one_task(offline_run(here / "a", 90.0), offline_run(here / "b", 8.0, data=["x", "y"]))
    assert [level.name for level in references.data_levels(task)] == [
        "best return of made", "mean return of made", "best return of x, y", "mean return of x, y",
    ]  # fmt: skip


def test_a_run_that_does_not_collect_is_drawn_over_its_updates(here, capsys):
    task = one_task(offline_run(here / "a", 90.0))
    drawn = curves.panel(task, "eval/return", frames=True)
    assert drawn.counted == "updates" and drawn.end == 200  # not times action_repeat
    assert "at 200 updates" in output(capsys, str(here / "a"))
    both = output(capsys, str(here / "a"), str(write_run(here / "b")))
    assert "the x axis counts updates for runs that learn from data only" in both


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
    found = groups.tasks([runs.read_run(path) for path in runs.find_runs(".")])
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
    by_horizon = {name.partition("horizon=")[2].strip(")"): score.scores.item() for name, score in found.items()}
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
