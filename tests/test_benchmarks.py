"""Benchmarks: exact counts of operations, a table of rows, and two programs in alternation."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import (
    controller_curve,
    dreamed_return,
    launches,
    measure,
    operations,
    rounds,
    stored_codes,
    table,
    trace,
    train_step,
)
from benchmarks.peers import protocol
from dreamer import agent as agents

A, B = jax.ShapeDtypeStruct((4, 5), "float32"), jax.ShapeDtypeStruct((5, 6), "float32")
SQUARE = jax.ShapeDtypeStruct((6, 6), "float32")
PRODUCT, SQUARED = 2 * 4 * 5 * 6, 2 * 6**3
IMAGES, KERNEL = jax.ShapeDtypeStruct((2, 8, 8, 3), "float32"), jax.ShapeDtypeStruct((5, 5, 3, 7), "float32")
CONVOLVED = 2 * (2 * 8 * 8 * 7) * (5 * 5 * 3)


def product(a, b):
    return a @ b


def convolve(x, k):
    return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def seven(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=7)[0]


def half_dead(x, w):
    """Seven products that are used, and others, also in the loop, that are not."""

    def body(carry, _):
        return (carry[0] @ w, carry[1] @ w), carry[0] @ w.T

    return jax.lax.scan(body, (x, x), None, length=7)[0][0]


def branches(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)


@pytest.mark.parametrize(
    "fun, args, expected",
    [
        (product, (A, B), PRODUCT),
        (jax.jit(product), (A, B), PRODUCT),
        (convolve, (IMAGES, KERNEL), CONVOLVED),
        (seven, (SQUARE, SQUARE), 7 * SQUARED),
        (half_dead, (SQUARE, SQUARE), 7 * SQUARED),
        (branches, (SQUARE, SQUARE), 2 * SQUARED),
        # Gradient of one operand: the value and the product for the other operand are dead code.
        (jax.grad(lambda a, b: product(a, b).sum()), (A, B), PRODUCT),
        (jax.grad(lambda x, k: convolve(x, k).sum()), (IMAGES, KERNEL), CONVOLVED),
        # Forward, and both operands backward.
        (jax.value_and_grad(lambda x, w: seven(x, w).sum(), (0, 1)), (SQUARE, SQUARE), 3 * 7 * SQUARED),
        # Recomputed backward.
        (jax.grad(lambda x, w: jnp.sin(jax.checkpoint(seven)(x, w)).sum(), (0, 1)), (SQUARE, SQUARE), 4 * 7 * SQUARED),
    ],
)  # fmt: skip
def test_operations_are_counted_exactly(fun, args, expected):
    assert operations.of_function(fun, *args).total == expected


def test_kinds_of_operations_are_counted_separately():
    count = operations.of_function(lambda x, w, i, k: (seven(x, w), convolve(i, k)), SQUARE, SQUARE, IMAGES, KERNEL)
    assert count == (7 * SQUARED, CONVOLVED, 7 * SQUARED, 0)


def test_a_loop_of_unknown_length_is_reported():
    def until(x, w):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, x)

    assert operations.of_function(until, SQUARE, SQUARE) == (SQUARED, 0, SQUARED, 1)


TINY = ["deter=16", "hidden=8", "stoch=4", "classes=3", "blocks=2", "units=8", "encoder_layers=1", "bins=15"]


def test_a_tiny_update_becomes_a_row_and_a_table(tmp_path, monkeypatch, capsys):
    import tiny

    measure = pytest.importorskip("benchmarks.measure")
    monkeypatch.setattr(measure.programs, "jit_update", lambda agent, mesh: tiny.jit(agent.update, donate_argnums=0))
    monkeypatch.setattr(measure, "matmul_peak", lambda dtype: 100.0)
    file, changed = tmp_path / "rows.json", [f"agent.world_model.{one}" for one in TINY]
    words = ["--batch", "2", "3", "--steps", "2", "--warmup", "1", "--no-policy", "--json", str(file)]
    train_step.main([*words, "--set", *changed, "agent.behavior.units=8"])
    (row,) = table.read(tmp_path)
    assert row["params"] > 0 and row["flops"] == row["operations"]["matmul"] and len(row["ms"]) == 2
    assert {"ms_median", "ms_min", "compile_s", "matmul_peak_gflops", "rss_mb", "jax", "jaxlib", "python", "device",
            "cores", "platform"} <= set(row)  # fmt: skip
    assert "peak_fraction" in capsys.readouterr().out
    assert table.draw([row]).count("\n") == 4


ROW = {
    "size": "size1m", "obs": "image", "dtype": "bfloat16", "batch": [16, 64], "set": [], "platform": "gpu",
    "device": "Card", "cpu": "Chip", "cores": 16, "jax": "1.2.3", "python": "3.12.1", "ms_median": 12.345,
    "ms_min": 11.0, "flops": 79 * 10**9, "peak_fraction": 0.25, "trace_s": 2.0, "compile_s": 21.5, "rss_mb": 2048,
    "device_peak_mb": 512, "policy1_ms_median": 0.5, "policy16_ms_median": 1.25,
    "ratio": {"median": 1.5, "min": 1.6, "rounds": [1.4, 1.6]},
    "peer": {"name": "someone", "ms_median": 18.5},
}  # fmt: skip


def test_the_table_is_drawn_between_the_marks_and_again(tmp_path, monkeypatch):
    table.write(tmp_path / "results" / "a.json", [ROW])
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["table", "--results", str(tmp_path / "results"), "--readme", str(readme)])
    table.main()
    once = readme.read_text()
    table.main()
    assert readme.read_text() == once and once.startswith("before\n") and once.endswith("after\n") and "old" not in once
    assert (
        "| size1m image bfloat16 | 12.3 (11) | 79 GFLOP | 6.4 TFLOP/s, 25% | 2 + 21.5 | 2.0 GB, 0.5 GB | 0.5, 1.25 |"
        " someone 18.5, **1.50x** (1.40 to 1.60) |" in once
    )


def test_the_kept_results_and_the_readme_agree():
    text = (table.HERE / "README.md").read_text()
    assert table.rewrite(text, table.draw(table.read(table.HERE / "results"))) == text


FAKE = """
import sys, time
sys.path.insert(0, {folder!r})
import protocol
answers = protocol.own_stdout()
print("noise that is no answer")
protocol.serve(answers, {{"params": 7, "words": sys.argv[1:]}}, lambda: time.sleep({seconds}), lambda: {{"last": 1}})
"""


@pytest.fixture
def fake(tmp_path):
    """Writes a peer whose step takes the given seconds, and returns its command."""

    def write(seconds):
        path = tmp_path / f"peer_{seconds}.py"
        path.write_text(FAKE.format(folder=str(table.HERE / "peers"), seconds=seconds))
        return rounds.peer_command(str(path), "", str(tmp_path), ["--size", "size1m"])

    return write


def test_two_programs_take_turns(fake, tmp_path):
    both = rounds.alternate({"ours": fake(0.002), "peer": fake(0.02)}, steps=3, rounds=2)
    for row in both.values():
        assert row["params"] == 7 and row["last"] == 1 and row["rss_mb"] > 0
        assert row["words"] == ["--checkout", str(tmp_path), "--size", "size1m"]
        assert len(row["ms"]) == 6 and len(row["ms_rounds"]) == 2
    assert both["peer"]["ms_min"] >= 20
    assert rounds.ratios(both["ours"], both["peer"])["min"] > 1


def test_a_peer_that_fails_is_reported(tmp_path):
    (tmp_path / "broken.py").write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="peer ended with code 3"):
        rounds.alternate({"peer": rounds.peer_command(str(tmp_path / "broken.py"), "", ".", [])}, 1, 1)


def test_a_peer_without_an_adapter_is_reported():
    with pytest.raises(SystemExit, match="no adapter for 'nobody'"):
        rounds.peer_command("nobody", "", ".", [])


@pytest.mark.parametrize("path", sorted((table.HERE / "peers").glob("*.py")), ids=lambda path: path.stem)
def test_adapters_import_nothing_of_ours(path):
    """Adapters run in interpreters without dreamer."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & {"dreamer", "envs", "benchmarks"}


def test_the_cost_of_an_operation_excludes_the_operations_that_it_calls():
    found = [
        trace.Event("outer.1", "outer.1", 0, 10e6, "a"), trace.Event("inner.2", "inner.2", 2e6, 3e6, "a"),
        trace.Event("inner.3", "inner.3", 6e6, 2e6, "a"), trace.Event("inner.2", "inner.2", 8e6, 6e6, "b"),
    ]  # fmt: skip
    result = trace.digest(found, 2, {"inner.2": "jit(update)/dot"})
    assert [(row["name"], row["ms"], row["runs"]) for row in result["operations"]] == [
        ("inner.2", 4.5, 1.0), ("outer.1", 2.5, 0.5), ("inner.3", 1.0, 0.5)
    ]  # fmt: skip
    assert [(row["name"], row["ms"]) for row in result["kinds"]] == [("inner", 5.5), ("outer", 2.5)]
    assert result["operations"][0]["source"] == "jit(update)/dot"
    assert (result["ms"], result["busy_ms"], result["span_ms"]) == (8.0, 7.0, 7.0)


def test_places_in_the_program_are_read_off_its_text():
    hlo = '  ROOT %dot.4 = f32[2]{0} dot(%a, %b), metadata={op_name="jit(update)/core/dot_general" id=3}\n'
    assert trace.sources(hlo) == dict.fromkeys(("dot.4", "dot_4"), "jit(update)/core/dot_general")


def test_peak_memory_is_a_process_own():
    assert protocol.peak_rss_mb() > 10


PROGRAM = """HloModule update

%add (p: f32[], q: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%p, %q)
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %double = f32[4]{0} fusion(%x), kind=kLoop, calls=%add, metadata={op_name="jit(update)/while/body/core/mul"}
  %called = f32[4]{0} call(%double), to_apply=%graph
  ROOT %out = (s32[], f32[4]{0}) tuple(%i, %called)
}

%graph (g: f32[4]) -> f32[4] {
  ROOT %gemm = (f32[4]{0}, s8[8]{0}) custom-call(%g), custom_call_target="__cublas"
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %loop = (s32[], f32[4]{0}) while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"15"}}
  ROOT %last = f32[4]{0} copy(%a)
}
"""


def test_launches_count_once_per_trip_and_operations_inside_a_fusion_do_not_count():
    found = launches.launches(PROGRAM)
    assert [(one.kind, one.name, one.loop, one.times) for one in found] == [
        ("fusion", "double", "body", 15), ("custom-call", "gemm", "body", 15), ("copy", "last", "", 1),
    ]  # fmt: skip
    assert found[0].source == "jit(update)/while/body/core/mul" and found[1].result == "(f32[4], s8[8])"


def controller_run(path: Path, temperature: float, returns: list[float]) -> Path:
    path.mkdir()
    model = {"name": "vae_mdn_rnn", "temperature": temperature}
    (path / "config.yaml").write_text(json.dumps({"agent": {"world_model": model, "behavior": {"name": "controller"}}}))
    fitness = [(0, 0, 0, 0, 0.1), (1, 50, 70, 20, 0.2), (2, 80, 90, 60, 0.3)]
    names = ["evolution/" + name for name in ("generation", "fitness", "fitness_best", "fitness_worst", "std")]
    lines = [{"env_steps": 9, "updates": 4 + x[0], **dict(zip(names, x, strict=True))} for x in fitness]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "scores.json").write_text(json.dumps({"episodes": [{"return": x} for x in returns]}))
    return path


def test_dreamed_and_real_returns_are_put_side_by_side(tmp_path, monkeypatch, capsys):
    runs = [controller_run(tmp_path / "hot", 1.15, [100, 300]), controller_run(tmp_path / "cold", 0.5, [40, 60])]
    monkeypatch.setattr("sys.argv", ["dreamed_return", *map(str, runs), "--random", "30", "--out", str(tmp_path)])
    dreamed_return.main()
    lines = (tmp_path / "temperatures.csv").read_text().splitlines()
    assert lines[1:] == ["0.5,2,80,90,50,10,50,2", "1.15,2,80,90,200,100,200,2"]
    generations = (tmp_path / "generations.csv").read_text().splitlines()
    assert generations[1:3] == ["0.5,1,50,70,20,0.2", "0.5,2,80,90,60,0.3"]
    assert (tmp_path / "temperatures.png").stat().st_size > 0


def test_a_search_over_several_runs_is_one_curve(tmp_path, monkeypatch):
    """Generations go on from run to run, and frames add up: those of the data, then those of each run."""
    runs = [tmp_path / "one", tmp_path / "two"]
    for run, lines in zip(runs, [[(0, 10, None), (1, 20, None), (2, 30, 7.0)], [(3, 5, 9.0)]], strict=True):
        run.mkdir()
        (run / "config.yaml").write_text("action_repeat: 2")
        found = [
            {
                "env_steps": steps, "evolution/generation": n, "evolution/fitness": 10.0 * n,
                "evolution/fitness_best": 50.0, "evolution/std": 0.1,
            } | ({} if real is None else {"episode/return": real})
            for n, steps, real in lines
        ]  # fmt: skip
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    (tmp_path / "published.csv").write_text("generation,frames,mean_fitness\n1,1000,-50\n2,2000,-40\n")
    arguments = ["--before", "100", "--published", str(tmp_path / "published.csv"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["controller_curve", *map(str, runs), *arguments])
    controller_curve.main()
    dreams = (tmp_path / "out" / "generations.csv").read_text().splitlines()
    assert dreams == [
        "generation,frames,fitness,fitness_best,std", "1,140,10,50,0.1", "2,160,20,50,0.1", "3,170,30,50,0.1",
    ]  # fmt: skip
    assert (tmp_path / "out" / "episodes.csv").read_text().splitlines()[1:] == ["2,160,7", "3,170,9"]
    assert (tmp_path / "out" / "controller.png").stat().st_size > 0


def test_a_random_batch_holds_the_latents_that_the_loss_reads_for_all_rows():
    agent = agents.make(measure.load("world_models_2018", "float32", stored_codes.M_ONLY), stored_codes.SPEC)
    batch = measure.make_batch(stored_codes.SPEC, agent, 2, 3)
    assert {name: batch.latent[name].shape[1] for name in ("encoder", "hidden")} == {"encoder": 4, "hidden": 1}
    state = jax.eval_shape(agent.init, jax.random.key(0))
    after, _ = jax.eval_shape(agent.update, state, batch)
    assert after.params["world_model"].keys() == state.params["world_model"].keys()
