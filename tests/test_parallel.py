"""Several agents in one environment: each has its own stream of rows, which are never mixed."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from teams import AGENTS, Kept, Team
from test_loop import timeless
from test_resume import rows_by_place, stopped
from tiny_runs import lines, plain_agent, recording_agent, tiny

import dreamer
from dreamer import agent as agents
from dreamer.apps.check.examine import examine
from dreamer.apps.check.verdicts import Settings
from dreamer.apps.check.watch import Watch
from dreamer.errors import UserError
from dreamer.interfaces import Variables
from dreamer.runtime.devices import programs
from dreamer.runtime.env.parallel import ParallelRows, is_parallel, seed_of
from dreamer.runtime.env.rows import empty_step
from dreamer.runtime.run import evaluation
from dreamer.runtime.run.loop import Run
from dreamer.runtime.workers import Config, make_workers

BACKENDS = [
    Config("inline", envs=3), Config("processes", envs=3, processes=1), Config("processes", envs=3, timeout=0.5),
]  # fmt: skip
backends = pytest.mark.parametrize("config", BACKENDS, ids=["inline", "threads", "processes"])
ENDS = (5, 2, 3)


def crew_of(config, name="team", seed=10, **options):
    return make_workers(config, f"teams:{name}", options, seed=seed)


def chosen(ready):
    """Returns actions that differ between streams and steps."""
    return (ready.streams * 3 + ready.step.obs["vector"][:, 1].astype(int)) % 4


def answer(crew, ready):
    crew.send(ready.streams, np.eye(4, dtype=np.float32)[chosen(ready)])


class Auditor:
    """Checks that each row is the next of its stream, for environments that never fail."""

    def __init__(self, seed=10):
        self.seed = seed
        self.at: dict[int, tuple[int, int]] = {}  # game and step of the previous row, by stream
        self.sent: dict[int, int] = {}
        self.rows = 0

    def take(self, ready):
        step = ready.step
        for row, stream in enumerate(ready.streams.tolist()):
            env, agent = divmod(stream, 3)
            game, time, action = step.obs["vector"][row].astype(int).tolist()
            before = self.at.get(stream)
            first = before is None or before[1] == ENDS[agent]
            expected = ((before[0] + 1 if before else 1), 0) if first else (before[0], before[1] + 1)
            assert (game, time) == expected and step.is_first[row] == first
            assert step.obs["seed"][row, 0] == seed_of(self.seed + env, game)
            assert step.obs["who"][row] == step.obs["agent"][row] == agent
            assert step.reward[row] == (0 if first else 100 * agent + time)
            assert action == (0 if first else self.sent[stream] + 1)
            assert step.is_last[row] == (time == ENDS[agent])
            assert step.is_terminal[row] == (step.is_last[row] and AGENTS[agent] != "blue")
            self.at[stream] = game, time
        self.sent |= dict(zip(ready.streams.tolist(), chosen(ready).tolist(), strict=True))
        self.rows += len(ready.streams)


@backends
@pytest.mark.parametrize("min_ready", [None, 1, 2])
def test_every_row_is_the_next_of_its_own_agent(config, min_ready):
    auditor = Auditor()
    with crew_of(config) as crew:
        assert (crew.envs, crew.streams, crew.spec.agents) == (3, 9, 3)
        assert "3 environments of 3 agents" in crew.describe()
        while auditor.rows < 400:
            ready = crew.receive(min_ready)
            auditor.take(ready)
            answer(crew, ready)
    assert len(auditor.at) == 9


def played(config, turns, name="team", **options):
    out = []
    with crew_of(config, name, **options) as crew:
        for _ in range(turns):
            out.append(crew.receive())
            answer(crew, out[-1])
    return out


def equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.streams, b.streams)
        np.testing.assert_equal(a.step._asdict(), b.step._asdict())


@pytest.mark.parametrize("options", [{}, {"enters": (0, 1, 0)}, {"ends": (3,)}, {"mask": "in info"}], ids=str)
def test_sets_are_interchangeable_to_the_bit(options):
    inline, *others = [played(config, 25, **options) for config in BACKENDS]
    for other in others:
        equal(inline, other)


def test_an_agent_that_has_ended_adds_no_row_until_the_game_is_over():
    turns = played(Config("inline", envs=1), 8)
    assert [ready.streams.tolist() for ready in turns] == [[0, 1, 2]] * 3 + [[0, 2], [0], [0], [0, 1, 2], [0, 1, 2]]
    assert [ready.step.is_first.all() for ready in turns] == [True] + [False] * 5 + [True, False]


def test_an_agent_that_enters_later_begins_there():
    turns = played(Config("inline", envs=1), 8, enters=(0, 0, 1))
    assert [ready.streams.tolist() for ready in turns[:3]] == [[0, 1], [0, 1, 2], [0, 1, 2]]
    assert turns[1].step.is_first.tolist() == [False, False, True] and turns[1].step.reward[2] == 0
    assert turns[6].streams.tolist() == [0, 1] and turns[6].step.is_first.all()


@backends
def test_all_agents_of_an_environment_are_answered_together(config):
    with crew_of(config) as crew:
        crew.receive()
        with pytest.raises(RuntimeError, match="all agents of an environment together"):
            crew.send(np.array([3, 4]), np.eye(4, dtype=np.float32)[:2])
        crew.send(np.array([3, 4, 5]), np.eye(4, dtype=np.float32)[:3])
        assert crew.receive(min_ready=1).streams.tolist() == [3, 4, 5]


# ---- faults


@pytest.mark.parametrize(
    "config, fault, kind",
    [
        (BACKENDS[0], "raise", "raised"), (BACKENDS[1], "raise", "raised"), (BACKENDS[2], "raise", "raised"),
        (BACKENDS[2], "exit", "exited"), (BACKENDS[2], "kill", "killed"), (BACKENDS[2], "hang", "hung"),
    ],
)  # fmt: skip
def test_a_failed_environment_is_replaced_with_all_of_its_agents(config, fault, kind):
    with crew_of(config, fault=fault, at=4, only=11) as crew:
        for _ in range(4):
            ready = crew.receive()
            answer(crew, ready)
        assert ready.streams.tolist() == [0, 2, 3, 5, 6, 8]
        ready = crew.receive()
        (incident,) = crew.incidents()
        assert incident.envs == (1,) and incident.kind == kind and "team #1'" in incident.text
        assert ready.streams.tolist() == [0, 3, 4, 5, 6]
        assert ready.step.is_first.tolist() == [False, True, True, True, False]
        assert ready.step.obs["seed"].ravel().tolist() == [10, 14, 14, 14, 12]


# ---- saving and restoring


@backends
@pytest.mark.parametrize("turns", [2, 4, 6, 12])
def test_restored_workers_continue_bit_for_bit(config, turns):
    def go(crew, turns):
        out = []
        for _ in range(turns):
            out.append(crew.receive())
            answer(crew, out[-1])
        return out

    with crew_of(config, "kept") as crew:
        go(crew, turns)
        snapshot = crew.states()
        later = go(crew, 20)
    with crew_of(config, "kept", seed=77) as crew:
        assert crew.restore(*snapshot) == {}
        equal(go(crew, 20), later)


def test_environments_that_cannot_be_restored_are_reported_and_start_a_new_episode():
    with crew_of(BACKENDS[0]) as crew:
        answer(crew, crew.receive())
        snapshot = crew.states()
    with crew_of(BACKENDS[0]) as crew:
        assert crew.restore(*snapshot) == dict.fromkeys(range(3), "Team has no get_state and set_state")
        ready = crew.receive()
        assert ready.step.is_first.all() and sorted(set(ready.step.obs["seed"].ravel())) == [13, 14, 15]


# ---- one environment


def rows_of(env, **options):
    rows = ParallelRows(env, name="it", seed=4, **options)
    return rows, empty_step(rows.spec, rows.spec.agents)


def test_action_repeat_ends_early_only_for_an_agent_that_ends():
    rows, out = rows_of(Team(), action_repeat=3)
    rows.turn(out, 0)
    rows.turn(out, 0)
    assert out.reward.tolist() == [1 + 2 + 3, 101 + 102, 201 + 202 + 203]
    assert out.is_last.tolist() == [False, True, True] and out.is_terminal.tolist() == [False, True, False]
    rows.turn(out, 0)
    assert out.reward[0] == 4 + 5 and np.isnan(out.reward[1:]).all() and out.is_last[0]


def test_seeds_of_games_follow_from_the_first():
    env = Team(ends=(1,))
    rows, out = rows_of(env)
    for _ in range(6):
        rows.turn(out, 0)
    assert env.seeds == [4, seed_of(4, 2), seed_of(4, 3)] and len(set(env.seeds)) == 3


def test_a_mask_in_info_is_each_agents_own():
    rows, out = rows_of(Team(mask="in info"))
    rows.turn(out, 0)
    assert rows.spec.masked and out.obs["action_mask"].tolist() == np.eye(4)[:3].tolist()


class Odd(Team):
    """A team with one violation of the interface."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def observation_space(self, agent):
        space = super().observation_space(agent)
        if self.what == "sees more" and agent == "blue":
            space.spaces["vector"] = gymnasium.spaces.Box(0, 1, (4,), np.float32)
        return gymnasium.spaces.Dict({"agent": space["who"]}) if self.what == "takes the key" else space

    def action_space(self, agent):
        return gymnasium.spaces.Discrete(5 if self.what == "does more" and agent == "green" else 4)

    def reset(self, seed=None, options=None):
        observations, infos = super().reset(seed)
        return ({}, {}) if self.what == "is empty" else (observations, infos)

    def step(self, actions):
        observations, rewards, dead, cut, infos = super().step(actions)
        if self.what == "forgets one":
            del rewards["green"]
        if self.what == "loses one":
            self.agents.remove("blue")
        if self.what == "shows nan":
            observations["blue"]["vector"][1] = np.nan
        return (observations, rewards, dead) if self.what == "answers" else (observations, rewards, dead, cut, infos)


@pytest.mark.parametrize(
    "what, message",
    [
        ("sees more", r"agent 'blue' shows 'vector' as Box\(.*\(4,\).*agent 'red' Box.*must be equal"),
        ("does more", r"agent 'green' takes Discrete\(5\), agent 'red' Discrete\(4\)"),
        ("takes the key", "the observation key 'agent' is reserved for the agent's index; rename it"),
        ("is empty", r"reset\(\) returned an observation for no agent"),
        ("forgets one", r"env 'it', episode 1: step\(\) returned no rewards for agent 'green', which has not ended"),
        ("loses one", "agent 'blue' is no longer in `agents`, but neither terminated nor truncated"),
        ("shows nan", r"env 'it blue', episode 1, step 1: key 'vector' at \[1\] is nan"),
        ("answers", r"step\(\) must return five dicts by agent .* it returned 3 values"),
    ],
)
def test_a_violation_of_the_interface_is_named(what, message):
    with pytest.raises(UserError, match=message):
        rows, out = rows_of(Odd(what))
        rows.turn(out, 0)
        rows.turn(out, 0)


def test_agents_that_take_turns_are_refused():
    turns = Team()
    turns.agent_selection = "red"
    with pytest.raises(UserError, match="take turns; use its parallel form"):
        is_parallel(turns)
    assert is_parallel(Team()) and not is_parallel(gymnasium.make("CartPole-v1"))


def verdicts_of(name, **options):
    return list(examine(name, Settings(steps=200, env_options=options), Watch()))


def test_the_check_reports_the_number_of_agents_and_examines_one():
    first, *others = verdicts_of("teams:team")
    assert (first.level, first.key, first.facts["agents"]) == ("ok", "agents", 3)
    assert "a parallel environment of 3 agents" in first.text and "look at agent 'red'" in first.text
    found = {verdict.key for verdict in others}
    assert {"endings", "reward", "step-time", "throughput"} <= found
    # This environment counts games across resets, and its episodes always have 5 steps.
    assert {verdict.key for verdict in others if verdict.level in ("wrong", "warning")} == {"reset-leaks", "time-limit"}


def test_the_check_names_the_faults_of_the_agents():
    first, second = verdicts_of(f"{__name__}:Odd", what="sees more")
    assert (first.level, first.key, second.key) == ("wrong", "agents", "stopped") and "agent 'blue' shows" in first.text


# ---- training, scoring, acting


def test_rows_of_a_run_are_each_agents_own_with_its_number(tmp_path, monkeypatch):
    """Each stream of a run's replay has complete games of one agent, with its index in every row."""
    held = {}
    monkeypatch.setattr(agents, "make", lambda config, spec, **_: plain_agent(spec))

    def finish(run):
        replay = run.parts.replay
        held.update(replay.columns, counts=replay.counts)

    monkeypatch.setattr(Run, "finish", finish)
    dreamer.train(tiny(tmp_path / "run", env_steps=120, eval__episodes=0), make_env=lambda: Team())
    for stream, count in enumerate(held["counts"].tolist()):
        agent = stream % 3
        numbers = np.arange(count)
        own = {name: column[stream, :count] for name, column in held.items() if name != "counts"}
        times = numbers % (ENDS[agent] + 1)
        assert (own["obs/agent"] == agent).all() and (own["obs/who"] == agent).all()
        assert (own["obs/vector"][:, 1] == times).all()
        assert (own["is_first"] == (times == 0)).all() and (own["is_last"] == (times == ENDS[agent])).all()
        assert (own["reward"] == np.where(times, 100 * agent + times, 0)).all()
    # The agent that lives longest has the most rows; no stream is padded.
    assert held["counts"][0] > held["counts"][2] > held["counts"][1]


@pytest.fixture
def quick(monkeypatch):
    """Makes runs train an agent that compiles fast."""
    monkeypatch.setattr(agents, "make", lambda config, spec, **_: plain_agent(spec))


KEPT = {"env": "teams:kept", "eval__episodes": 0}


def rows_on_disk(run_dir):
    return {
        place: {name: value.tobytes() for name, value in row.items() if not name.startswith("latent/")}
        for place, row in rows_by_place(run_dir).items()
    }


def test_a_run_in_lockstep_is_the_same_in_processes(tmp_path, quick):
    one, other = (
        dreamer.train(tiny(tmp_path / backend, **KEPT, workers__backend=backend)) for backend in ("inline", "processes")
    )
    assert timeless(one) == timeless(other) and rows_on_disk(one) == rows_on_disk(other)
    assert lines(one)[-1]["updates"] >= 5


@pytest.mark.parametrize("turn", [3, 9, 17])
def test_a_resumed_run_is_one_that_was_never_stopped(tmp_path, quick, turn):
    whole = dreamer.train(tiny(tmp_path / "whole", **KEPT))
    run = stopped(tmp_path / "run", turn, **KEPT)
    dreamer.train(tiny(run, **KEPT), resume="yes")
    assert timeless(run) == timeless(whole) and rows_on_disk(run) == rows_on_disk(whole)


def test_a_run_reports_environments_without_state_and_cuts_off_their_episodes(tmp_path, quick, capsys):
    run = stopped(tmp_path / "run", 5, env="teams:team")
    dreamer.train(tiny(run, **KEPT | {"env": "teams:team"}), resume="yes")
    assert "running episodes of all environments, since Team has no get_state and set_state" in capsys.readouterr().out
    rows = rows_by_place(run)
    for stream in range(6):
        own = [rows[place] for place in sorted(rows) if place[0] == stream]
        begins = [row["is_first"] for row in own]
        ends = [row["is_last"] for row in own]
        cut = [first and not last for first, last in zip(begins[1:], ends[:-1], strict=True)]
        assert sum(cut) <= 1 and all(first for first, last in zip(begins[1:], ends[:-1], strict=True) if last)


def test_side_by_side_every_row_is_stored_with_its_own_agent(tmp_path, quick):
    run = dreamer.train(tiny(tmp_path / "run", **KEPT, workers__backend="processes", lockstep=False))
    for (stream, _), row in rows_by_place(run).items():
        assert row["obs/agent"] == row["obs/who"] == stream % 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return dreamer.train(tiny(tmp_path_factory.mktemp("team") / "run", env="teams:kept", env_steps=80))


def test_each_agent_is_scored(run):
    result = dreamer.evaluate(run, episodes=4)
    assert result.agents == 3 and len(result.episodes) == 12
    by_agent = {0: 1 + 2 + 3 + 4 + 5, 1: 101 + 102, 2: 201 + 202 + 203}
    assert all(episode.episode_return == by_agent[episode.env % 3] for episode in result.episodes)
    assert [episode.length for episode in result.episodes[:3]] == list(ENDS)


def test_a_video_is_one_game():
    with evaluation.make_eval_workers("teams:team", {}, episodes=2, action_repeat=1, seed=0, record=True) as workers:
        agent = recording_agent(workers.spec)
        result = evaluation.run_episodes(
            agent, programs.jit_act(agent), {"behavior": Variables({"w": np.zeros(4, np.float32)})}, workers,
            episodes=2, seed=0, mode="sample", record=2,
        )  # fmt: skip
    assert [[int(frame[0, 0, 0]) for frame in video] for video in result.videos] == [[0, 1, 2, 3, 4, 5]] * 2


def test_a_loaded_team_acts_by_name(run):
    loaded, env = dreamer.load(run), Kept()
    observations, _ = env.reset(seed=1)
    actions, state = loaded.act(observations)
    while env.agents:
        assert sorted(actions) == sorted(env.agents) and all(0 <= action < 4 for action in actions.values())
        observations, *_ = env.step(actions)
        observations = {agent: observations[agent] for agent in env.agents}
        if observations:
            actions, state = loaded.act(observations, state)
    with pytest.raises(UserError, match="observations of .*yellow"):
        loaded.act({"yellow": {}})
