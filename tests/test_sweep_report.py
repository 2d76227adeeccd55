"""The report of a sweep: its numbers beside others computed from the same files, its page, and the best preset."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from run_dirs import write_run
from scipy import stats
from test_report import error_line, output
from test_report import here as here

import dreamer
from dreamer.apps.report import best, importance, interactive, ranking, sweep_axes, sweep_command, sweep_page
from dreamer.apps.report.sweep import read_sweep
from dreamer.fields import get, keys
from dreamer.runtime.run import run_config

RATE, HORIZON, BATCH = "agent.optimizer.learning_rate", "agent.horizon", "replay.batch_size"
GRID = {RATE: [1e-4, 3e-4], HORIZON: [15.0, 100.0, 333.0]}
DIVERGED = (
    'Traceback (most recent call last):\n  File "x.py", line 3, in y\n    raise UserError("text")\n'
    "dreamer.errors.UserError: the parameters have diverged: they are no longer finite\nsaved: nothing\n"
)


@pytest.fixture(autouse=True)
def small_library(monkeypatch):
    """Stands in for plotly.js, which takes a second to pack."""
    monkeypatch.setattr(interactive, "library", lambda: "cGFja2Vk")


def returns(final: float, end: int = 1000) -> list[dict[str, float]]:
    """Returns lines with an evaluation every 100 steps up to `end`. At step 1000 its return is `final`."""
    lines = []
    for step in range(100, end + 1, 100):
        row = {"env_steps": step, "updates": step // 2, "time": step / 10}
        lines.append({**row, "eval/return": final * step / 1000, "episode/return": final * step / 2000})
    return lines


def name_of(values, seed) -> str:
    return ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items()) + f"-seed{seed}"


def write_sweep(root: Path, axes, settings, seeds=3, score=lambda values, seed: 100.0 + seed, **each) -> Path:
    """Writes a sweep whose trials have finished with score(values, seed). each: settings of all trials."""
    trials = []
    for number, values in enumerate(settings):
        for seed in range(seeds):
            name = name_of(values, seed)
            place = f"pack{number % 2}/{name}"
            trials.append({"name": name, "values": values, "seed": seed, "program": "pack0", "run_dir": place})
            write_run(root / place, returns(score(values, seed)), seed=seed, **{**each, **values})
    write_table(root, {"version": 1, "base": ["quickstart"], "axes": axes, "trials": trials})
    return root


def write_table(root: Path, table) -> None:
    (root / "sweep.json").write_text(json.dumps(table))


def combined(axes) -> list[dict]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def noisy(values, seed: int) -> float:
    """Returns a score that depends on the values and, differently for each setting, on the seed."""
    noise = np.random.default_rng((int(values.get(RATE, 0) * 1e5), int(values.get(HORIZON, 0)), seed)).normal(0, 20)
    return 100 + 40 * (values.get(RATE, 0) > 2e-4) + values.get(HORIZON, 0) / 10 + noise


def last_returns(root: Path) -> dict[str, list[float]]:
    """Reads the last evaluation of each trial from the files. Returns {setting as JSON: the scores of its seeds}."""
    found: dict[str, list[float]] = {}
    for trial in json.loads((root / "sweep.json").read_text())["trials"]:
        text = (root / trial["run_dir"] / "metrics.jsonl").read_text()
        found.setdefault(json.dumps(trial["values"]), []).append(json.loads(text.splitlines()[-1])["eval/return"])
    return found


def ranked(root: Path) -> ranking.Ranking:
    return ranking.rank("task", read_sweep(root))


def folder_of(root: Path, values, seed: int) -> Path:
    trials = json.loads((root / "sweep.json").read_text())["trials"]
    return root / next(one["run_dir"] for one in trials if one["values"] == values and one["seed"] == seed)


def cells(text: str, title: str) -> list[dict[str, str]]:
    """Returns the rows of the first table below a heading of the page, as {column: text}."""
    part = re.split(r"<h[23][^>]*>", text.partition(f">{title}</h")[2])[0]
    rows = re.findall(r"<tr><td.*?</tr>", part, re.DOTALL)
    return [dict(re.findall(r'data-label="([^"]*)">(.*?)</td>', row, re.DOTALL)) for row in rows]


def page_of(root: Path, formats=(), **options) -> str:
    """Writes the page of a sweep without the files beside it, and returns its text."""
    return sweep_command.report_sweep(str(root), formats=formats, **options).read_text()


def drawn(root: Path) -> list[dict]:
    """Returns what the script of the page of a sweep draws, without drawing anything."""
    report = sweep_command.make(read_sweep(root))
    return json.loads(interactive.to_json(report.drawn, report.looks))


# ---- numbers


def test_mean_and_iqm_are_those_computed_from_the_files(here):
    root = write_sweep(here / "s", GRID, combined(GRID), seeds=8, score=noisy)
    raw = last_returns(root)
    results = ranked(root).results
    assert len(results) == 6
    for one in results:
        own = np.sort(raw[json.dumps(one.setting.values)])
        assert one.mean == pytest.approx(own.mean()) and one.iqm == pytest.approx(own[2:6].mean())
        assert one.interval[0] < one.iqm < one.interval[1]
    means = [one.mean for one in results]
    assert means == sorted((float(np.mean(own)) for own in raw.values()), reverse=True)


def test_the_interval_is_a_bootstrap_over_seeds(here):
    root = write_sweep(here / "s", GRID, combined(GRID)[:1], seeds=8, score=noisy)
    (result,) = ranked(root).results
    own = np.array(*last_returns(root).values())
    drawn = np.sort(own[np.random.default_rng(7).integers(8, size=(20_000, 8))], 1)[:, 2:6].mean(1)
    assert result.interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1.5)


def test_probability_of_improvement_is_that_of_mann_whitney(here):
    root = write_sweep(here / "s", GRID, combined(GRID), seeds=6, score=lambda v, s: round(noisy(v, s), -1))
    raw = last_returns(root)
    first, *others = ranked(root).results
    own = raw[json.dumps(first.setting.values)]
    assert first.improvement is None and len(others) == 5
    seen = []
    for one in others:
        other = raw[json.dumps(one.setting.values)]
        expected = stats.mannwhitneyu(own, other).statistic / (len(own) * len(other))
        assert one.improvement == pytest.approx(expected)
        assert one.improvement_interval[0] <= one.improvement <= one.improvement_interval[1]
        seen.append(expected)
    assert 0.5 < min(seen) < 1


def test_one_seed_has_neither_interval_nor_probability(here):
    root = write_sweep(here / "s", GRID, combined(GRID), seeds=1, score=noisy)
    assert {(one.interval, one.improvement) for one in ranked(root).results} == {(None, None)}
    header, rows = sweep_page.ranking_table(sweep_command.make(read_sweep(root)).tasks[0])
    assert [dict(zip(header, row, strict=True))["P(best > this)"] for row in rows] == ["-"] * 6


def test_importance_is_the_share_of_variance_between_values(here):
    root = write_sweep(here / "s", GRID, combined(GRID), seeds=4, score=noisy)
    found = importance.importances(sweep_axes.varied(read_sweep(root)), ranked(root))
    raw = [(json.loads(key), score) for key, own in last_returns(root).items() for score in own]
    assert [one.axis.key for one in found] == [RATE, HORIZON]
    for one in found:
        groups = [[score for values, score in raw if values[one.axis.key] == value] for value in GRID[one.axis.key]]
        between, within = len(groups) - 1, len(raw) - len(groups)
        ratio = stats.f_oneway(*groups).statistic * between / within
        assert one.eta == pytest.approx(ratio / (1 + ratio)) and one.chance == between / (len(raw) - 1)
        assert [mean for _, mean, _ in one.means] == pytest.approx([np.mean(group) for group in groups])


def test_the_share_between_settings_leaves_that_of_the_seeds(here):
    root = write_sweep(here / "s", GRID, combined(GRID), seeds=4, score=noisy)
    own = [*last_returns(root).values()]
    every = np.concatenate(own)
    within = sum(np.var(group) * len(group) for group in own)
    assert importance.between_settings(ranked(root)) == pytest.approx(1 - within / (np.var(every) * len(every)))


def test_drawn_numbers_are_compared_by_quarters(here):
    rates = [10.0**power for power in np.linspace(-5, -2, 12)]
    settings = [{RATE: rate} for rate in reversed(rates)]
    root = write_sweep(here / "s", {RATE: {"loguniform": [1e-5, 1e-2]}}, settings, 1, lambda v, s: rates.index(v[RATE]))
    (one,) = importance.importances(sweep_axes.varied(read_sweep(root)), ranked(root))
    assert one.axis.log and one.axis.drawn
    assert one.means == [
        ("1e-05 to 3.51e-05", 1, 3), ("6.58e-05 to 0.000231", 4, 3), ("0.000433 to 0.00152", 7, 3),
        ("0.00285 to 0.01", 10, 3),
    ]  # fmt: skip
    # Quarters 3 apart have a variance of 11.25; the numbers 0 to 11 have one of 143 / 12.
    assert one.eta == pytest.approx(11.25 / (143 / 12))


@pytest.mark.parametrize("spec", [{"range": [10, 60, 10]}, {"choice": [60, 50, 40, 30, 20, 10]}])
def test_numbers_of_a_list_in_words_are_compared_one_by_one(here, spec):
    root = write_sweep(here / "s", {BATCH: spec}, [{BATCH: value} for value in range(10, 61, 10)], 1)
    (axis,) = sweep_axes.varied(read_sweep(root))
    assert not axis.drawn and [*axis.values] == spec.get("choice", [10, 20, 30, 40, 50, 60])


def test_an_axis_that_changes_nothing_explains_nothing(here):
    root = write_sweep(here / "s", GRID, combined(GRID), 2, lambda values, seed: 5.0 + values[HORIZON])
    found = importance.importances(sweep_axes.varied(read_sweep(root)), ranked(root))
    assert {one.axis.key: one.eta for one in found} == {HORIZON: pytest.approx(1), RATE: pytest.approx(0)}
    write_sweep(here / "t", GRID, combined(GRID), 2, lambda values, seed: 5.0)
    found = importance.importances(sweep_axes.varied(read_sweep(here / "t")), ranked(here / "t"))
    assert all(np.isnan(one.eta) for one in found)


def test_scores_are_of_training_where_nothing_was_evaluated(here):
    root = write_sweep(here / "s", GRID, combined(GRID)[:2], 1)
    for run in root.glob("pack*/*"):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        kept = [{key: value for key, value in line.items() if key != "eval/return"} for line in lines]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert "the scores are those of training episodes" in sweep_command.make(read_sweep(root)).notes[-1]
    assert [one.mean for one in ranked(root).results] == [50.0, 50.0]


@pytest.mark.parametrize(
    "values, spec, log",
    [
        ([1e-4, 3e-4, 1e-3], [], True),
        ([16, 32, 64, 128], [], True),
        ([1, 2, 3, 4], [], False),
        ([8, 16], [], False),
        ([1e-4, 1e-3], [], True),
        ([0.0, 0.1, 1.0], [], False),
        ([1.0, 1.5, 7.0], {"loguniform": [1, 10]}, True),
        ([1.0, 10.0, 100.0], {"uniform": [1, 100]}, False),
        ([1e-4, 1e-3, 1e-2], {"choice": [1e-4, 1e-3, 1e-2]}, True),
    ],
)
def test_a_scale_is_logarithmic_where_the_values_are(here, values, spec, log):
    root = write_sweep(here / "s", {BATCH: spec or values}, [{BATCH: value} for value in values], 1)
    (axis,) = sweep_axes.varied(read_sweep(root))
    assert axis.log == log
    places = sweep_axes.scale(axis, values).at
    assert places[0] == 0 and places[-1] == pytest.approx(1) and places == sorted(places)


# ---- trials without a score


def broken(root: Path) -> Path:
    """Writes a grid of 3 seeds and spoils six trials, each in its own way."""
    write_sweep(root, GRID, combined(GRID), score=noisy)
    first, second, third = combined(GRID)[:3]
    path = folder_of(root, first, 0)
    (path / "error.txt").write_text(DIVERGED)
    path = folder_of(root, first, 1)
    (root / "failed").mkdir()
    (root / "failed" / f"{name_of(first, 1)}.json").write_text('{"cause": "out of\\nmemory", "code": 2}')
    for values, seed in ((first, 0), (second, 0), (third, 0)):
        lines = "".join(json.dumps(line) + "\n" for line in returns(1e6, 400))
        (folder_of(root, values, seed) / "metrics.jsonl").write_text(lines)
    path = folder_of(root, second, 0)
    card = {"token": "t", "host": "elsewhere", "user": "u", "machine": "m", "pid": 1, "started": 1, "since": "-"}
    (path / "lock").write_text(json.dumps(card))
    path = folder_of(root, second, 1)
    path.rename(root / "elsewhere")
    (folder_of(root, third, 1) / "config.yaml").write_text("seed: 1\n]")
    return root


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory) -> tuple[str, list[Path]]:
    """Returns the text of the page of the sweep `broken`, and the files in the sweep that the report has changed."""
    root = broken(tmp_path_factory.mktemp("spoiled") / "s")
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    text = page_of(root, static=True, out=str(root.parent / "page"), best=str(root.parent / "best.yaml"))
    after = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    return text, [file for file in {**before, **after} if before.get(file) != after.get(file)]


def test_nothing_is_written_into_the_sweep(spoiled):
    assert spoiled[1] == []


def test_each_trial_without_a_score_is_listed_with_its_cause(spoiled):
    text, _ = spoiled
    first, second, third = combined(GRID)[:3]
    rows = {row["trial"]: row for row in cells(text, "Trials that have not finished, or have no score")}
    assert {name: (row["status"], row["env steps"]) for name, row in rows.items()} == {
        name_of(first, 0): ("diverged", "400 of 1,000"), name_of(first, 1): ("failed", "1,000"),
        name_of(second, 0): ("running", "400 of 1,000"), name_of(second, 1): ("not started", "-"),
        name_of(third, 0): ("dead", "400 of 1,000"), name_of(third, 1): ("failed", "-"),
    }  # fmt: skip
    assert rows[name_of(first, 0)]["cause"] == "the parameters have diverged: they are no longer finite"
    assert rows[name_of(first, 1)]["cause"] == "out of memory"
    assert "not valid YAML" in rows[name_of(third, 1)]["cause"]
    for words in ("12 finished, 1 running, 1 diverged, 2 failed, 1 dead, 1 not started", "3 trials can still get a"):
        assert words in text
    assert len(cells(text, "All trials")) == 18


def test_trials_that_have_not_finished_do_not_change_the_scores_of_others(here):
    root = broken(here / "s")
    found = ranked(root)
    assert found.at == (1000, 1000)
    for one in found.results:
        seeds = [trial.seed for trial in one.setting.scored]
        assert one.mean == pytest.approx(np.mean([noisy(one.setting.values, seed) for seed in seeds]))
    lost = combined(GRID)[:3]
    assert [len(one.setting.scored) for one in found.results if one.setting.values in lost] == [1, 1, 1]


def test_a_setting_with_a_diverged_seed_ranks_below_those_without(here):
    root = write_sweep(here / "s", GRID, combined(GRID), 2, lambda values, seed: values[HORIZON])
    best_of_all = {RATE: 1e-4, HORIZON: 333.0}
    run = folder_of(root, best_of_all, 1)
    (run / "metrics.jsonl").write_text(json.dumps(returns(1.0)[0]) + "\n")
    (run / "error.txt").write_text(DIVERGED)
    results = ranked(root).results
    assert results[0].setting.values == {RATE: 3e-4, HORIZON: 333.0} and results[-1].setting.values == best_of_all


def test_a_trial_without_its_last_evaluation_has_not_finished(here):
    root = write_sweep(here / "s", GRID, combined(GRID)[:1], 1)
    *lines, last = returns(100.0)
    lines += [{key: value for key, value in last.items() if key != "eval/return"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder_of(root, combined(GRID)[0], 0) / "metrics.jsonl").write_text(text)
    assert [trial.status for trial in read_sweep(root).trials] == ["dead"]


def test_trials_that_the_sweep_no_longer_has_are_left_out(here):
    root = write_sweep(here / "s", GRID, combined(GRID)[:2], 1)
    table = json.loads((root / "sweep.json").read_text())
    write_table(root, {**table, "gone": [table["trials"][0]["name"]]})
    report = sweep_command.make(read_sweep(root))
    assert [trial.name for trial in report.sweep.trials] == [table["trials"][1]["name"]]
    assert any("1 trials that the sweep had before" in note for note in report.notes)


def test_a_trial_whose_last_evaluation_failed_has_failed(here):
    root = write_sweep(here / "s", GRID, combined(GRID)[:1], 2)
    error = "Traceback (most recent call last):\nValueError: x\n"
    (folder_of(root, combined(GRID)[0], 0) / "error.txt").write_text(error)
    assert [(trial.status, trial.cause) for trial in read_sweep(root).trials] == [
        ("failed", "ValueError: x"), ("finished", ""),
    ]  # fmt: skip


def test_a_sweep_in_which_nothing_has_finished_is_compared_where_all_trials_are(here):
    root = write_sweep(here / "s", GRID, combined(GRID)[:2], 1)
    for number, run in enumerate(sorted(root.glob("pack*/*"))):
        (run / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in returns(100.0 + number, 400 + 200 * number))
        )
    (note,) = (one for one in sweep_command.make(read_sweep(root)).notes if "no trial has finished" in one)
    assert "the scores are those up to 400 steps" in note
    assert [one.mean for one in ranked(root).results] == pytest.approx([40.4, 40])


# ---- the page


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> tuple[Path, str]:
    """Returns the folder of a sweep of two axes, and the text of its page in the folder "page" beside it."""
    root = tmp_path_factory.mktemp("grid") / "s"
    write_sweep(root, GRID, combined(GRID), score=noisy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interactive, "library", lambda: "cGFja2Vk")
        return root, page_of(root, ("png",), out=str(root.parent / "page"))


def test_the_page_begins_with_the_ranking(grid):
    root, text = grid
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", text) == [
        "Ranking", "Importance of each axis", "Settings", "Curves", "All trials",
    ]  # fmt: skip
    assert "<h1>Sweep s</h1>" in text and "18 trials of 6 settings: 18 finished" in text and "eta squared" in text
    rows, first = cells(text, "Ranking"), last_returns(root)[json.dumps({RATE: 3e-4, HORIZON: 333.0})]
    assert len(rows) == 6 and [row["rank"] for row in rows] == [*"123456"]
    assert rows[0] == {
        "rank": "1", "learning_rate": "0.0003", "horizon": "333", "seeds": "3", "final": f"{np.mean(first):.1f}",
        "IQM": f"{np.mean(first):.1f}", "95 % interval": f"{min(first):.1f} to {max(first):.1f}",
        "P(best &gt; this)": "-",
    }  # fmt: skip
    assert re.fullmatch(r"[01]\.\d\d \([01]\.\d\d to [01]\.\d\d\)", rows[5]["P(best &gt; this)"])


def panels_of(text: str) -> list[dict]:
    return json.loads(re.search(r'id="panels">(.*?)</script>', text, re.DOTALL).group(1))


def test_each_axis_has_curves_for_each_value_over_all_its_trials(grid):
    root, text = grid
    raw = last_returns(root)
    panels = [panel for panel in panels_of(text) if panel.get("metric") == "eval/return"]
    assert [[line["name"] for line in panel["lines"]] for panel in panels] == [
        ["learning_rate=0.0001", "learning_rate=0.0003"], ["horizon=15", "horizon=100", "horizon=333"],
    ]  # fmt: skip
    for panel, key in zip(panels, GRID, strict=True):
        for line, value in zip(panel["lines"], GRID[key], strict=True):
            own = np.sort([score for one, scores in raw.items() if json.loads(one)[key] == value for score in scores])
            drop = len(own) // 4
            assert len(line["seeds"]) == len(own)
            assert line["main"]["y"][-1] == pytest.approx(own[drop : len(own) - drop].mean(), rel=1e-5)
            assert line["low"][-1] < line["main"]["y"][-1] < line["high"][-1]
    assert "IQM of the trials" in text and text.count('class="controls"') == 1


def test_the_plots_of_the_page_and_of_its_script_are_in_the_same_order(grid):
    root, text = grid
    titles = re.findall(r"<figure><h3>(.*?) </h3>", text)
    assert titles == ["Mean final score", *["Return of evaluation episodes", "Return of training episodes"] * 2]
    panels = panels_of(text)
    assert [panel.get("title", panel.get("metric")) for panel in panels] == [
        "Mean final score", *["eval/return", "episode/return"] * 2,
    ]  # fmt: skip
    files = re.findall(r'href="(panels/.*?)"', text)
    assert len(files) == len(set(files)) == 5
    assert all((root.parent / "page" / file).stat().st_size > 1000 for file in files)


def test_two_axes_give_a_heat_map(here):
    settings = [values for values in combined(GRID) if values != {RATE: 3e-4, HORIZON: 15.0}]
    write_sweep(here / "s", GRID, settings, score=noisy)
    heat = drawn(here / "s")[0]
    raw = last_returns(here / "s")
    assert (heat["kind"], heat["x"], heat["y"]) == ("heat", ["0.0001", "0.0003"], ["15", "100", "333"])
    for row, horizon in zip(heat["means"], GRID[HORIZON], strict=True):
        for mean, rate in zip(row, GRID[RATE], strict=True):
            own = raw.get(json.dumps({RATE: rate, HORIZON: horizon}))
            assert mean == (pytest.approx(np.mean(own)) if own else None)


def test_three_axes_give_parallel_coordinates(here):
    axes = {**GRID, "agent.contdisc": [True, False]}
    write_sweep(here / "s", axes, combined(axes), 1, score=noisy)
    chart = drawn(here / "s")[0]
    assert chart["kind"] == "parallel" and len(chart["lines"]) == 12
    assert [one["name"] for one in chart["scales"]] == ["learning_rate", "horizon", "contdisc", "final score"]
    assert [text for _, text in chart["scales"][2]["ticks"]] == ["true", "false"]
    top = chart["lines"][-1]
    assert top["at"][0] == 1 and top["at"][-1] == 1 and top["name"].startswith("learning_rate=0.0003, ")
    assert chart["lines"][0]["at"][-1] == 0
    middle = next(place for place, text in chart["scales"][1]["ticks"] if text == "100")
    assert middle == pytest.approx(np.log(100 / 15) / np.log(333 / 15))


def test_two_axes_of_drawn_numbers_give_parallel_coordinates_and_scatters(here):
    rng = np.random.default_rng(0)
    settings = [{RATE: float(10 ** rng.uniform(-5, -3)), HORIZON: float(rng.uniform(10, 300))} for _ in range(9)]
    axes = {RATE: {"loguniform": [1e-5, 1e-3]}, HORIZON: {"uniform": [10, 300]}}
    root = write_sweep(here / "s", axes, settings, 1, score=noisy)
    lost = folder_of(root, settings[0], 0)
    (lost / "metrics.jsonl").write_text(json.dumps(returns(5.0)[0]) + "\n")
    (lost / "error.txt").write_text(DIVERGED)
    charts = [panel for panel in drawn(root) if "kind" in panel]
    assert [chart["kind"] for chart in charts] == ["parallel", "scatter", "scatter"]
    assert [chart["log"] for chart in charts[1:]] == [True, False]
    raw = {json.loads(key)[RATE]: own[0] for key, own in last_returns(root).items()}
    assert dict(zip(charts[1]["x"], charts[1]["y"], strict=True)) == pytest.approx(
        {rate: score for rate, score in raw.items() if rate != settings[0][RATE]}
    )
    assert charts[1]["lost"] == [settings[0][RATE]]


def test_trials_inside_the_folders_of_populations_are_counted_once(here):
    root = write_sweep(here / "s", GRID, combined(GRID), 2)
    for pack in ("pack0", "pack1"):
        (root / pack / "population.json").write_text("{}")
    write_run(root / "pack0" / "stranger", seed=99)  # is no trial
    text = page_of(root, static=True)
    assert len(cells(text, "All trials")) == 12 and "stranger" not in text
    assert {row["seeds"] for row in cells(text, "Ranking")} == {"2"}


def test_every_kind_of_chart_is_drawn_without_a_script(here):
    axes = {RATE: {"loguniform": [1e-5, 1e-3]}, HORIZON: [15.0, 100.0], BATCH: [8, 16]}
    settings = [{RATE: 10.0 ** -(3 + n / 4), HORIZON: axes[HORIZON][n % 2], BATCH: 8 + n // 4 * 8} for n in range(8)]
    text = page_of(write_sweep(here / "s", axes, settings, 1, score=noisy), static=True)
    assert "<script" not in text and text.count('<div class="plot"><svg') == 8  # two charts, two panels an axis
    for plot in re.findall(r'<div class="plot">(<svg.*?</svg>)', text, re.DOTALL):
        assert "var(--ink)" in plot


def test_values_of_every_kind_are_shown(here):
    values = [[2, 3], [2, 3, 4, 4], "x<y", None, True, 1]
    trials = []
    for number, one in enumerate({"agent.odd": value} for value in values):
        write_run(here / "s" / "p" / str(number), returns(10.0 + number))
        trials.append({"name": f"t{number}", "values": one, "seed": 0, "program": "p", "run_dir": f"p/{number}"})
    write_table(here / "s", {"version": 1, "base": [], "axes": {"agent.odd": values}, "trials": trials})
    rows = cells(page_of(here / "s", static=True), "Ranking")
    assert [row["odd"] for row in rows] == ["1", "true", "None", "x&lt;y", "[2, 3, 4, 4]", "[2, 3]"]


def test_a_sweep_of_seeds_alone_has_curves(here):
    write_sweep(here / "s", {}, [{}], 3)
    text = page_of(here / "s")
    assert [line["name"] for panel in panels_of(text) for line in panel["lines"]] == ["all trials"] * 2
    assert [row["seeds"] for row in cells(text, "Ranking")] == ["3"]


def test_environments_are_ranked_apart(here, capsys):
    axes = {"env": ["CartPole-v1", "probes:both"], HORIZON: [15.0, 100.0]}
    write_sweep(here / "s", axes, combined(axes), 2, lambda values, seed: len(values["env"]) + values[HORIZON] + seed)
    text = page_of(here / "s", static=True)
    for env, own in (("CartPole-v1", 111.5), ("probes:both", 111.5)):
        rows = cells(text, f"Ranking: env={env}")
        assert [row["horizon"] for row in rows] == ["100", "15"] and rows[0]["final"] == f"{own:.1f}"
    assert "--best" in error_line(capsys, "s", "--best", "best.yaml", "--static")


def test_the_terminal_shows_the_best_twenty(here, capsys):
    axes = {HORIZON: [float(value) for value in range(10, 35)]}
    write_sweep(here / "s", axes, combined(axes), 1, lambda values, seed: values[HORIZON])
    page_of(here / "s", static=True)
    out = capsys.readouterr().out
    shown = re.findall(r"^ +(\d+) +(\d+) +1 ", out, re.MULTILINE)
    assert shown == [(f"{rank}", f"{35 - rank}") for rank in range(1, 21)]
    assert "5 more settings are on the page" in out


# ---- the best setting


def test_the_best_setting_is_a_preset_that_gives_its_config(here, capsys):
    axes = {**GRID, "agent.world_model.mults": [[2, 3], [2, 4]]}
    each = {"env_options": {"sutton_barto_reward": True}, "log.every": 7.0, "population.seeds": 3, "lockstep": True}
    write_sweep(here / "s", axes, combined(axes), 2, noisy, **each)
    out = output(capsys, "s", "--static", "--best", "best.yaml", "--format", "png")
    assert "dreamer train best.yaml" in out
    top = ranked(here / "s").results[0].setting
    assert top.values[RATE] == 3e-4 and top.values[HORIZON] == 333
    ours, theirs = dreamer.load_config("best.yaml"), run_config.load(top.trials[1].path)
    changed = {key for key in keys(ours) if get(ours, key) != get(theirs, key)}
    assert changed == {"seed", "run_dir", "population.seeds"}
    text = Path("best.yaml").read_text()
    assert "run_dir" not in text and "seed:" not in text and "units" not in text  # differences only
    best.check("best.yaml", 1)  # its own file may be written again


@pytest.mark.parametrize(
    "settings, parts",
    [
        ({"agent.world_model.deter": 64}, ["deter: 64"]),
        ({"env": "my_lab.envs:make"}, ["env: my_lab.envs:make"]),
        ({"agent.behavior.name": "my_lab.b", "agent.behavior.power": 3}, ["name: my_lab.b", "power: 3"]),
    ],
)
def test_other_parts_are_compared_with_their_own_defaults(here, settings, parts):
    write_sweep(here / "s", GRID, combined(GRID)[:1], 1, **settings)
    text = best.preset(ranked(here / "s"), "s")
    for part in parts:
        assert part in text, text
    assert text.count("\n") < 15


@pytest.mark.parametrize(
    "args, parts",
    [
        (["alone", "--best", "x.yaml"], ["--best x.yaml needs a sweep"]),
        (["s", "--best", "best.txt"], ["--best best.txt", "ends in .yaml"]),
        (["s", "--best", "mine.yaml"], ["mine.yaml", "is no best setting of a sweep"]),
        (["s", "alone"], ["s is a sweep", "without alone"]),
        (["s", "--group", "a=alone"], ["--group has no use for a sweep"]),
        (["s", "--references", "x"], ["--references has no use for a sweep"]),
        (["s", "--metrics", "zzz"], ["no run has 'zzz'"]),
        (["s", "--out", "s/pack0/horizon=15.0-seed0/page"], ["lies in the run"]),
        (["empty"], ["no trial of the sweep has an evaluation yet: 2 not started"]),
        (["none"], ["no trial has an evaluation yet: it has no trials"]),
        (["unread"], ["sweep.json is damaged"]),
    ],
)
def test_what_is_wrong_ends_with_one_line(here, capsys, args, parts):
    write_sweep(here / "s", {HORIZON: [15.0]}, [{HORIZON: 15.0}], 2)
    write_run(here / "alone")
    (here / "mine.yaml").write_text("seed: 3\n")
    table = json.loads((here / "s" / "sweep.json").read_text())
    for name, content in (("empty", table), ("none", {**table, "trials": []})):
        (here / name).mkdir()
        write_table(here / name, content)
    (here / "unread").mkdir()
    (here / "unread" / "sweep.json").write_text('{"version": 1,')
    line = error_line(capsys, *args, "--static")
    for part in parts:
        assert part in line, line
    assert (here / "mine.yaml").read_text() == "seed: 3\n" and not (here / "best.yaml").exists()


ENTRY = {"name": "t", "values": {HORIZON: 15.0}, "seed": 0, "program": "p", "run_dir": "p/t"}
TABLE = {"version": 1, "base": [], "axes": {HORIZON: [15.0]}, "trials": [ENTRY]}


@pytest.mark.parametrize(
    "change, part",
    [
        ({"version": 2}, "has version 2; this dreamer reads version 1"),
        ({"axes": []}, "axes must be a mapping"),
        ({"axes": {HORIZON: 3}}, "agent.horizon must be a list of values, or a distribution"),
        ({"trials": {}}, "trials must be a list"),
        ({"trials": [3]}, "trial 1 is no mapping"),
        ({"base": "x"}, "base must be a list"),
        ({"trials": [{**ENTRY, "seed": "0"}]}, "trial 1: seed must be int, not '0'"),
        ({"trials": [{**ENTRY, "values": None}]}, "trial 1: values must be dict"),
        ({"trials": [{**ENTRY, "run_dir": "../x"}]}, "trial 1: run_dir '../x' is no path inside the sweep"),
        ({"trials": [{**ENTRY, "run_dir": "/tmp"}]}, "trial 1: run_dir '/tmp' is no path inside the sweep"),
        ({"trials": [{**ENTRY, "name": "../x"}]}, "trial 1: name '../x' is no path inside the sweep"),
        ({"trials": [ENTRY, ENTRY]}, "the name t is given twice"),
        ({"trials": [ENTRY, {**ENTRY, "name": "u"}]}, "p/t is given twice"),
    ],
)
def test_a_damaged_table_is_named_with_what_is_wrong(here, capsys, change, part):
    (here / "s").mkdir()
    write_table(here / "s", {**TABLE, **change})
    line = error_line(capsys, "s")
    assert "s/sweep.json" in line and part in line, line


def test_a_trial_does_not_lead_out_of_the_sweep_through_a_link(here, capsys):
    write_run(here / "secret")
    (here / "s" / "p").mkdir(parents=True)
    (here / "s" / "p" / "t").symlink_to(here / "secret")
    write_table(here / "s", TABLE)
    assert "leads out of the run directory" in error_line(capsys, "s")


def test_the_settings_of_the_base_are_written_in_words(tmp_path):
    base = ["quickstart", {"env": "CartPole-v1", "eval": {"every": 0}}]
    write_table(tmp_path, {"version": 1, "base": base, "axes": {}, "trials": []})
    assert read_sweep(tmp_path).base == ("quickstart", "env CartPole-v1, eval.every 0")
