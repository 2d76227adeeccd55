"""Sweeps: what a file says, the trials it expands to, their names, and how they are packed into programs."""

from __future__ import annotations

import json
import math

import pytest

from dreamer import shipped
from dreamer.apps.sweep import packing, planning, spec, state
from dreamer.apps.sweep.packing import Program
from dreamer.apps.sweep.trials import Trial, trials_of, written
from dreamer.errors import UserError
from dreamer.runtime.population.plan import Machine, Plan, most_members

RATE, DETER, ENTROPY = "agent.optimizer.learning_rate", "agent.world_model.deter", "agent.behavior.entropy"


def trials(tmp_path, text: str) -> list[Trial]:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    sweep = spec.read(str(file))
    return trials_of(sweep, spec.base_config(sweep))


def names(tmp_path, text: str) -> list[str]:
    return [trial.name for trial in trials(tmp_path, text)]


def refused(tmp_path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        trials(tmp_path, text)
    return str(caught.value)


# ---- trials


def test_a_grid_has_all_combinations_each_with_all_seeds(tmp_path):
    found = trials(tmp_path, f"base: [debug]\naxes: {{{RATE}: [1e-4, 3e-4], {DETER}: [32, 64]}}\nseeds: 2")
    assert [(t.values[RATE], t.values[DETER], t.seed) for t in found] == [
        (rate, deter, seed) for rate in (1e-4, 3e-4) for deter in (32, 64) for seed in (0, 1)
    ]
    assert found[3].name == "learning_rate=0.0001-deter=64-seed1"
    assert found[3].config.agent.world_model.deter == 64 and found[3].config.seed == 1


def test_axes_may_be_nested_as_in_a_preset(tmp_path):
    found = names(tmp_path, "axes: {agent: {world_model: {deter: [32]}, behavior: {entropy: [1, 2]}}}")
    assert found == ["deter=32-entropy=1", "deter=32-entropy=2"]


def test_zipped_axes_advance_together(tmp_path):
    text = f"axes: {{{RATE}: [1, 2], {DETER}: [32, 64], {ENTROPY}: [5, 6]}}\nzip: [[{RATE}, {DETER}]]"
    found = [tuple(t.values.values()) for t in trials(tmp_path, text)]
    assert found == [(1, 32, 5), (1, 32, 6), (2, 64, 5), (2, 64, 6)]


def test_zipped_axes_may_repeat_a_value_but_not_a_whole_trial(tmp_path):
    text = f"axes: {{{RATE}: [1, 1, 2], {DETER}: [32, 64, 64]}}\nzip: [[{RATE}, {DETER}]]"
    assert [tuple(t.values.values()) for t in trials(tmp_path, text)] == [(1, 32), (1, 64), (2, 64)]
    with pytest.raises(UserError, match="two trials of the sweep are equal"):
        trials(tmp_path, text.replace("[32, 64, 64]", "[32, 32, 64]"))


def test_a_range_includes_its_last_value(tmp_path):
    assert [t.values["replay_ratio"] for t in trials(tmp_path, "axes: {replay_ratio: {range: [8, 32, 8]}}")] == [
        8, 16, 24, 32
    ]  # fmt: skip


@pytest.mark.parametrize("seeds, expected", [("3", [5, 6, 7]), ("[2, 9]", [2, 9])])
def test_seeds_are_counted_from_the_base_or_listed(tmp_path, seeds, expected):
    assert [t.seed for t in trials(tmp_path, f"base: [{{seed: 5}}]\nseeds: {seeds}")] == expected


def test_the_seed_may_be_an_axis(tmp_path):
    assert names(tmp_path, "axes: {seed: {range: [0, 2]}}") == ["seed0", "seed1", "seed2"]


DISTRIBUTIONS = {
    "{uniform: [1, 2]}": lambda x: 1 <= x <= 2,
    "{loguniform: [1e-4, 1e-2]}": lambda x: 1e-4 <= x <= 1e-2,
    "{normal: [5, 0.1]}": lambda x: abs(x - 5) < 1,
    "[0.25, 0.5]": lambda x: x in (0.25, 0.5),
}


@pytest.mark.parametrize("values", DISTRIBUTIONS)
def test_a_random_search_draws_from_the_axis(tmp_path, values):
    text = f"search: random\nsamples: 2\naxes: {{{ENTROPY}: {values}}}"
    found = [t.values[ENTROPY] for t in trials(tmp_path, text)]
    assert len(set(found)) == 2 and all(map(DISTRIBUTIONS[values], found))


def test_integers_are_drawn_with_both_ends(tmp_path):
    text = "search: random\nsamples: 3\naxes: {seq: {integers: [31, 33]}}".replace("seq", "replay.batch_length")
    assert {t.values["replay.batch_length"] for t in trials(tmp_path, text)} == {31, 32, 33}


def test_more_samples_keep_the_earlier_ones(tmp_path):
    text = f"search: random\nsamples: {{}}\naxes: {{{{{ENTROPY}: {{{{uniform: [0, 1]}}}}}}}}"
    few, many = names(tmp_path, text.format(3)), names(tmp_path, text.format(6))
    assert many[:3] == few


def test_a_drawn_number_is_said_exactly_by_the_name(tmp_path):
    text = f"search: random\nsamples: 5\naxes: {{{ENTROPY}: {{loguniform: [1e-5, 1]}}}}"
    for trial in trials(tmp_path, text):
        assert float(trial.name.removeprefix("entropy=")) == trial.values[ENTROPY]


def test_log_uniform_draws_spread_over_magnitudes():
    import numpy as np

    one = spec.axis("x", {"loguniform": [1e-4, 1]})
    rng = np.random.default_rng(0)
    tens = [math.floor(math.log10(one.draw(rng))) for _ in range(400)]
    assert all(60 <= tens.count(ten) <= 140 for ten in (-4, -3, -2, -1))


def test_names_of_values_that_no_path_can_hold_stay_different():
    texts = [written(value) for value in ("a/b", "a b", "a_b", [1, 2], [1, 3])]
    assert len(set(texts)) == 5 and not any("/" in text or " " in text for text in texts)


WRONG = {
    "axes: {agent.optimizer.learning_rat: [1]}": "unknown key 'agent.optimizer.learning_rat'.*learning_rate",
    "axes: {replay_rati: [1]}": "unknown key 'replay_rati'; did you mean 'replay_ratio'",
    f"axes: {{{RATE}: [-1]}}": "learning_rate",
    f"axes: {{{RATE}: 3e-4}}": "must be a list of values, or one of choice, range",
    f"axes: {{{RATE}: []}}": "at least one value",
    f"axes: {{{RATE}: [1, 1]}}": "names a value twice",
    f"axes: {{{RATE}: {{uniform: [0, 1]}}}}": "a distribution, which a grid cannot list; set search: random",
    f"axes: {{{RATE}: {{uniform: [1, 0]}}}}\nsearch: random\nsamples: 1": "lower number first",
    f"axes: {{{RATE}: {{loguniform: [0, 1]}}}}\nsearch: random\nsamples: 1": "above 0",
    f"axes: {{{RATE}: [1, 2]}}\nsearch: random": "needs samples",
    f"axes: {{{RATE}: [1, 2]}}\nsearch: random\nsamples: 3": "2 combinations, fewer than samples: 3",
    f"axes: {{{RATE}: [1, 2]}}\nsamples: 3": "samples belongs to a random search",
    "axes: {agent.behavior: [{entropy: 1}], agent.behavior.entropy: [1]}": "both set the same field",
    "axes: {agent: {horizon: [9]}, agent.horizon: [9]}": "agent.horizon is given twice",
    "axes: {seed: [1]}\nseeds: 3": "both set the seeds",
    "seeds: 0": "seeds must be a number of seeds, 1 or more",
    "seeds: [1, 1]": "names a seed twice",
    f"axes: {{{RATE}: [1, 2]}}\nzip: [[{RATE}, {DETER}]]": f"{DETER} is not an axis",
    f"axes: {{{RATE}: [1, 2], {DETER}: [8]}}\nzip: [[{RATE}, {DETER}]]": "lists of one length",
    "axes: {run_dir: [a, b]}": "does not change what is trained",
    "base: [{run_dir: a}]": "base sets run_dir",
    "base: [{population.seeds: 4}]": "base sets population.seeds",
    "base: [3]": "base must list presets and mappings",
    "bases: [debug]": "unknown key 'bases'.*did you mean 'base'",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_sweep_is_refused_in_one_line(tmp_path, text):
    import re

    message = refused(tmp_path, text)
    assert re.search(WRONG[text], message) and "\n" not in message


# ---- packing

CPU, GPU = Machine("cpu", 1, 10**9, 10**9), Machine("gpu", 1, 10**9, 10**10)


def plan_of(program: str = "a", on_device: bool = True, state: int = 10**6, numbers: str = "") -> Plan:
    return Plan(program, numbers, on_device, state, 10**6, 10**6, 1000)


def packed(tmp_path, plans: list, there: Machine = GPU, **options) -> list[tuple[str, ...]]:
    found = trials(tmp_path, f"axes: {{{RATE}: {list(range(1, len(plans) + 1))}}}\nseeds: 2")
    options = {"how": "auto", "jobs": 1, **options}
    plans = [p._replace(numbers=p.numbers or str(i)) if isinstance(p, Plan) else p for i, p in enumerate(plans)]
    needs = planning.Needs(tuple(plans), there)
    return [program.trials for program in packing.pack(found, needs, most_members, **options).programs]


def sizes(programs: list[tuple[str, ...]]) -> list[int]:
    return [len(program) for program in programs]


def test_trials_with_one_program_are_packed_together(tmp_path):
    assert sizes(packed(tmp_path, [plan_of("a"), plan_of("b"), plan_of("a")])) == [4, 2]


def test_trials_that_would_be_the_same_run_are_packed_apart(tmp_path):
    one, other = plan_of(numbers="0.1"), plan_of(numbers="0.2")
    found = packed(tmp_path, [one, one, other, other])
    assert [{name.split("-")[0] for name in program} for program in found] == [
        {"learning_rate=1", "learning_rate=3"}, {"learning_rate=2", "learning_rate=4"},
    ]  # fmt: skip


def test_a_program_has_as_many_trials_as_fit_into_the_memory(tmp_path):
    assert sizes(packed(tmp_path, [plan_of(state=10**8)] * 4)) == [2] * 4  # 0.9 GB hold two of 0.3 GB


def test_trials_that_do_not_fit_at_all_are_programs_of_their_own(tmp_path):
    assert sizes(packed(tmp_path, [plan_of(state=10**10)] * 2)) == [1, 1, 1, 1]


def test_on_a_cpu_trials_are_spread_over_the_programs_that_run_at_once(tmp_path):
    assert sizes(packed(tmp_path, [plan_of()] * 4, CPU, jobs=2)) == [4, 4]


def test_on_a_cpu_trials_of_gymnasium_stand_alone_unless_asked(tmp_path):
    assert sizes(packed(tmp_path, [plan_of(on_device=False)], CPU)) == [1, 1]
    assert sizes(packed(tmp_path, [plan_of(on_device=False)], CPU, how="on")) == [2]
    assert sizes(packed(tmp_path, [plan_of(on_device=False)], GPU)) == [2]


def test_without_packing_each_trial_is_a_program(tmp_path):
    assert sizes(packed(tmp_path, [plan_of()], how="off")) == [1, 1]


def test_a_trial_that_cannot_be_planned_stands_alone(tmp_path):
    assert sizes(packed(tmp_path, ["it raises", plan_of()])) == [1, 1, 2]


def test_a_program_of_several_trials_is_a_population_of_them(tmp_path):
    from dreamer.runtime.population.members import members_of

    found = {t.name: t for t in trials(tmp_path, f"axes: {{{RATE}: [1, 2], {ENTROPY}: [3]}}\nseeds: 2")}
    config = packing.config_of(Program("program0", tuple(found)), found, tmp_path)
    members = {member.name: member for member in members_of(config)}
    assert members.keys() == found.keys()
    for name, trial in found.items():
        assert members[name].config.agent == trial.config.agent and members[name].config.seed == trial.seed
        assert members[name].config.run_dir == str(tmp_path / "program0" / name)


def test_a_packing_is_said_in_words():
    programs = [Program(str(i), tuple("abcd")) for i in range(3)] + [Program("x", ("e",))]
    assert packing.described(programs) == "13 trials: 3 programs of 4, 1 program of 1"


# ---- the directory


def known_of(tmp_path) -> state.Known:
    found = trials(tmp_path, f"axes: {{{RATE}: [1, 2]}}")
    programs = (Program("program0", (found[0].name,)), Program("program1", (found[1].name,)))
    return state.Known({"base": []}, state.entries(found, programs), programs)


def test_the_file_of_a_sweep_is_read_as_it_was_written(tmp_path):
    known = known_of(tmp_path)
    state.write(tmp_path, known)
    assert state.read(tmp_path) == known


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 9}', '{"version":1,"trials":[{}]}'])
def test_a_damaged_file_of_a_sweep_is_refused_in_one_line(tmp_path, text):
    (tmp_path / state.FILE).write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json"):
        state.read(tmp_path)


def test_a_failure_is_remembered_until_it_is_cleared(tmp_path):
    known = known_of(tmp_path)
    name = next(iter(known.trials))
    assert state.standing(tmp_path, known, name, 100) == "waiting"
    state.set_failed(tmp_path, name, state.Failure("it raised", 2))
    assert state.standing(tmp_path, known, name, 100) == "failed"
    assert json.loads((tmp_path / "failed" / f"{name}.json").read_text()) == {"cause": "it raised", "code": 2}
    state.clear_failed(tmp_path, [name])
    assert state.standing(tmp_path, known, name, 100) == "waiting"


@pytest.mark.parametrize("name", sorted(shipped.sweeps()))
def test_a_sweep_that_comes_with_dreamer_can_be_expanded(name):
    sweep = spec.read(name)
    assert trials_of(sweep, spec.base_config(sweep))
