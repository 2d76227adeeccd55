"""The page of `dreamer report`: what is on it and in which order, that it needs no network, and what bad input does."""

from __future__ import annotations

import html.parser
import json
import re
import sys

import pytest
from run_dirs import add_pictures, climbing, write_run
from test_report import error_line, output, three_seeds
from test_report import here as here

from dreamer.apps.report import interactive, page

SCRIPT = re.compile(r"<script[^>]*>.*?</script>", re.DOTALL)


LIBRARY = interactive.library


@pytest.fixture(autouse=True)
def small_library(monkeypatch):
    """Stands in for plotly.js, which takes a second to pack."""
    monkeypatch.setattr(interactive, "library", lambda: "cGFja2Vk")


def text_of(folder="report") -> str:
    with open(f"{folder}/index.html") as file:
        return file.read()


def panels_of(text: str) -> list[dict]:
    return json.loads(re.search(r'id="panels">(.*?)</script>', text, re.DOTALL).group(1))


def test_the_page_holds_everything_and_the_runs_are_left_alone(here, capsys):
    for folder in three_seeds(here / "runs"):
        add_pictures(folder, 100)
        add_pictures(folder, 200)
    three_seeds(here / "runs" / "fast", **{"agent.optimizer.learning_rate": 3e-4})
    before = {file: file.stat().st_mtime_ns for file in (here / "runs").rglob("*")}
    out = output(capsys, "runs", "--metrics", "loss/*", "--out", "page")
    assert {file: file.stat().st_mtime_ns for file in (here / "runs").rglob("*")} == before
    files = {str(file.relative_to(here / "page")) for file in (here / "page").rglob("*.*")}
    names = ("CartPole_v1_eval_return", "CartPole_v1_episode_return", "CartPole_v1_loss_dyn")
    assert files == {"index.html", *(f"panels/{name}.{kind}" for name in names for kind in ("svg", "pdf"))}
    assert "page: page/index.html" in out
    text = text_of("page")
    assert text.count("data:image/png;base64,") == 3 and text.count("data:video/mp4;base64,") == 3
    assert "at 200 env steps" in text and "at 100 env steps" not in text
    for words in ("learning_rate=0.0003", "runs/fast/seed2", "stratified"):
        assert words in text
    assert re.search(r"learning_rate=0.0003 +last evaluation, at 1,000 env steps +3 +15 +201.0 +0.58 +201.0", out)
    assert output(capsys, "runs", "--out", "page")  # its own page is overwritten


def test_a_page_begins_with_names_date_version_and_command(here, capsys):
    write_run(here / "mine")
    write_run(here / "other run", env="probes:both")
    output(capsys, "mine", "other run", "--bin", "50")
    text = text_of()
    assert "<h1>CartPole-v1, probes:both</h1>" in text and "<p>2 runs: mine, other run</p>" in text
    assert re.search(r"<p>Made on \d{4}-\d\d-\d\d \d\d:\d\d \w+ by dreamer [\d.]+\.</p>", text)
    assert "dreamer report mine &#x27;other run&#x27; --bin 50</code>" in text


def test_scores_and_videos_come_before_curves_and_notes_last(here, capsys):
    add_pictures(write_run(here / "a", climbing(0, 500)), 100)
    output(capsys, "a")
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", text_of()) == [
        "Scores", "Newest videos and pictures", "Curves", "Settings", "Runs", "Notes",
    ]  # fmt: skip


def test_the_table_of_scores_holds_levels_steps_and_time(here, capsys):
    for seed in range(2):
        write_run(here / f"s{seed}", seed=seed, env="probes:both")
    output(capsys, ".")
    row = re.search(r'<tr><td class=short data-label="group">all runs.*?</tr>', text_of()).group(0)
    cells = dict(re.findall(r'data-label="([^"]*)">(.*?)</td>', row))
    assert cells == {
        "group": "all runs", "final": "200.5 ± 0.50", "IQM": "200.5", "95 % interval": "200.0 to 201.0",
        "random": "4.00", "best or published": "8.00 (best)", "env steps": "1,000", "wall-clock": "2 min",
        "seeds": "2", "episodes": "10", "score of": "last evaluation, at 1,000 env steps",
    }  # fmt: skip


def test_axes_begin_at_no_steps_and_show_random_and_best(here, capsys):
    write_run(here / "a", env="probes:both")
    output(capsys, "a")
    for panel in panels_of(text_of()):
        assert panel["x"] == [0, 1000] and panel["xLabel"] == "env steps" and panel["y"][0] == 0 < panel["y"][1]
        assert [level["text"] for level in panel["levels"]] == ["random 4", "best 8"]


def test_the_script_gets_the_spread_over_seeds_and_over_episodes(here, capsys):
    three_seeds(here / "runs")
    output(capsys, "runs")
    evaluation, training = (panel["lines"][0] for panel in panels_of(text_of()))
    assert evaluation["std"] == [1.0] * 10 and len(evaluation["seeds"]) == 3
    assert evaluation["low"][-1] == 200 and evaluation["high"][-1] == 202 and training["std"] is None


def test_a_page_loads_nothing_from_elsewhere(here, capsys):
    add_pictures(write_run(here / "a"), 100)
    output(capsys, "a")
    text = text_of()
    assert all(link.startswith(("data:", "panels/", "#")) for link in re.findall(r'(?:src|href)="(.*?)"', text))
    assert "http" not in text and not re.search(r"url\((?!#)", text) and "@import" not in text
    for link in re.findall(r'href="(panels/.*?)"', text):
        assert (here / "report" / link).stat().st_size > 1000


def test_a_page_without_media_is_small(here, capsys, monkeypatch):
    monkeypatch.setattr(interactive, "library", LIBRARY)
    three_seeds(here / "runs")
    output(capsys, "runs", "--metrics", "*")
    assert 1_000_000 < (here / "report" / "index.html").stat().st_size < 2_500_000
    output(capsys, "runs", "--metrics", "*", "--static")
    assert (here / "report" / "index.html").stat().st_size < 300_000


def test_a_static_page_has_no_script_and_needs_no_plotly(here, capsys, monkeypatch):
    monkeypatch.setattr(interactive, "library", LIBRARY)
    monkeypatch.setitem(sys.modules, "plotly", None)
    write_run(here / "a")
    assert 'pip install "dreamer-jax[report]"' in error_line(capsys, "a") and not (here / "report").exists()
    output(capsys, "a", "--static")
    text = text_of()
    assert "<script" not in text and text.count("<svg") >= 2


def test_the_formats_of_the_files_are_those_asked_for(here, capsys):
    write_run(here / "a")
    output(capsys, "a", "--format", "png")
    starts = {file.suffix: file.read_bytes()[:4] for file in (here / "report" / "panels").iterdir()}
    assert starts == {".png": b"\x89PNG"}


def test_figures_take_their_colours_from_the_scheme_of_the_reader(here, capsys):
    three_seeds(here / "runs")
    output(capsys, "runs")
    text = text_of()
    assert "prefers-color-scheme: dark" in text
    for plot in re.findall(r'<div class="plot">(<svg.*?</svg>)', text, re.DOTALL):
        assert "var(--ink)" in plot and "var(--c0)" in plot and not re.findall(r"(?:fill|stroke): #\w+", plot)


def test_many_pictures_are_folded(here, capsys):
    for folder in range(4):
        add_pictures(write_run(here / f"a{folder}", seed=folder), 100)
    output(capsys, ".")
    first, rest = text_of().split("<summary>2 more</summary>")
    assert first.count("<video") == 4 and first.count("<img") == 2 and rest.count("<img") == 2


def test_every_tag_of_the_page_is_closed(here, capsys):
    add_pictures(write_run(here / "a"), 100)
    output(capsys, "a")
    open_tags: list[str] = []

    class Tags(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img", "input"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Tags().feed((here / "report" / "index.html").read_text())
    assert open_tags == []


def test_pictures_beyond_the_limit_are_left_out_and_named(here, capsys):
    add_pictures(write_run(here / "a"), 100)
    out = output(capsys, "a", "--media-mb", "0.0005")
    assert "left out" in out and "episode_000000100.mp4" in out and "openloop_000000100.png" not in out
    assert "data:video" not in text_of()


def test_names_are_shown_as_they_are_written(here, capsys):
    three_seeds(here / "a")
    out = output(capsys, "--group", "<b>[red]&=a")
    assert "<b>[red]&" in out
    text = SCRIPT.sub("", text_of())
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
        (["fresh", "--metrics", "loss"], ["no run has any metrics yet"]),
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
        (["broken"], ["broken is left out", "broken/config.yaml:2: not valid YAML"]),
        (["a", "--format", "gif"], ["'gif'", "--format"]),
    ],
)
def test_what_is_wrong_ends_with_one_line_and_code_2(here, capsys, args, parts):
    write_run(here / "a", [line | {"x/y": 1.0} for line in climbing(0)])
    (here / "empty" / "deeper").mkdir(parents=True)
    write_run(here / "fresh", [])
    (write_run(here / "broken") / "config.yaml").write_text("seed: 1\n]")
    (here / "foreign").mkdir()
    (here / "foreign" / "index.html").write_text("<html>mine</html>")
    (here / "file").write_text("")
    line = error_line(capsys, *args)
    for part in parts:
        assert part in line, line
    assert (here / "foreign" / "index.html").read_text() == "<html>mine</html>" and not (here / "a" / "page").exists()


def test_runs_that_are_damaged_unfinished_or_of_another_version_are_noted_on_the_page(here, capsys):
    write_run(here / "good")
    (write_run(here / "unlogged", seed=1) / "metrics.jsonl").unlink()
    write_run(here / "fresh", [], seed=2)
    write_run(here / "one-row", [{"env_steps": 7, "episode/return": 1.0}], seed=3)
    write_run(here / "losses", [{"env_steps": 9, "loss/dyn": 1.0}], seed=4)
    write_run(here / "older", seed=5, **{"workers.least": 2})
    with open(write_run(here / "damaged", seed=6) / "metrics.jsonl", "a") as file:
        file.write("{broken\n")
    (write_run(here / "no-yaml", seed=7) / "config.yaml").write_text("seed: 1\n]")
    write_run(here / "bad-value", seed=8, env_steps="many")
    out = output(capsys, ".")
    notes = text_of().partition('id="notes"')[2]
    for words in (
        "unlogged: it holds no metrics.jsonl", "fresh has no metrics yet", "one-row stands at 7 of 1,000 env_steps",
        "losses has no episode/return", "older/config.yaml:1: this version of dreamer has no setting workers.least",
        "damaged/metrics.jsonl:31: damaged line", "no-yaml is left out: no-yaml/config.yaml:2: not valid YAML",
        "bad-value is left out: env_steps must be",
    ):  # fmt: skip
        assert words in out and words.replace("'", "&#x27;") in notes, words
    assert re.search(r'<a href="#notes">\d+ notes</a>', text_of())


@pytest.mark.parametrize(
    "lines, words",
    [
        ([], "a has no metrics yet"),
        ([{"env_steps": 1, "loss/dyn": 1.0}], "no run has eval/return or episode/return yet"),
    ],
)
def test_a_run_that_has_just_begun_gets_a_page(here, capsys, lines, words):
    write_run(here / "a", lines)
    assert words in output(capsys, "a") and words in text_of()
    assert [panel["metric"] for panel in panels_of(text_of())] == (["loss/dyn"] if lines else [])


def test_the_help_lists_its_flags(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = output(capsys, "--help")
    flags = ("--group", "--metrics", "--out", "--references", "--bin", "--media-mb", "--format", "--frames", "RUN...")
    assert all(flag in out for flag in flags)


def test_a_page_is_strict_about_text():
    table = page.Table(("<h>",), [("1,234.5",), ("<c>",)])
    text = page.render(page.Head("t & u", ["<l>"], "<m>"), [page.Section("<x>", ["a < b", table])])
    assert "<h2>&lt;x&gt;</h2>" in text and '<td class=number data-label="&lt;h&gt;">1,234.5</td>' in text
    for words in ("&lt;c&gt;</td>", "t &amp; u", "&lt;l&gt;", "&lt;m&gt;"):
        assert words in text


def test_text_for_the_script_cannot_end_it(here, capsys):
    three_seeds(here / "a")
    output(capsys, "--group", "</script><b>=a")
    assert "</script><b>" not in text_of() and panels_of(text_of())[0]["lines"][0]["name"] == "</script><b>"


