"""Datasets in HDF5: those of Minari and of D4RL."""

from __future__ import annotations

import gc
import json
import pathlib
import warnings

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from made_data import KINDS, d4rl, faults, held, made

from dreamer.data.converting import convert
from dreamer.data.episodes import Reading
from dreamer.data.opening import open_data
from dreamer.data.vectors import to_vectors
from dreamer.errors import UserError
from dreamer.runtime.env.rows import EnvRows
from dreamer.spaces import Action

pytestmark = pytest.mark.usefixtures("folder")

# --- Minari -----------------------------------------------------------------------------------------


def collected(env_id: str, name: str, episodes: int = 3, **options) -> list[list]:
    """A dataset that Minari's own collector has made, and the rows that the same actions give in our own runtime."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = minari.DataCollector(gymnasium.make(env_id, max_episode_steps=12), **options)
        actions = []
        for seed in range(episodes):
            env.reset(seed=seed)
            env.action_space.seed(seed)
            actions.append([])
            ended = False
            while not ended:
                actions[-1].append(env.action_space.sample())
                _, _, terminal, truncated, _ = env.step(actions[-1][-1])
                ended = terminal or truncated
        env.create_dataset(name)
        env.close()
        del env
        gc.collect()  # its temporary folder warns when it goes
    return actions


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_a_dataset_of_minaris_collector_has_the_rows_of_our_own_environment(env_id):
    actions = collected(env_id, "made/mine-v0")
    data = open_data("minari:made/mine-v0")
    for seed, (taken, episode) in enumerate(zip(actions, data.read(), strict=True)):
        env = gymnasium.make(env_id, max_episode_steps=12)
        rows = EnvRows(env, seed=seed)
        assert data.spec == rows.spec
        vectors = [*to_vectors(env.action_space, np.stack(taken), len(taken), "").array, 0 * episode.action[0]]
        steps = [rows.step(np.zeros(data.spec.action_width, np.float32))]
        steps += [rows.step(vector) for vector in vectors[:-1]]
        assert len(steps) == episode.rows
        for number, step in enumerate(steps):
            np.testing.assert_allclose(episode.obs["vector"][number], step.obs["vector"][0], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(episode.reward[number], step.reward[0], rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(episode.action[number], vectors[number])
            for key in ("is_first", "is_last", "is_terminal"):
                assert getattr(episode, key)[number] == getattr(step, key)[0], (number, key)
        env.close()


def test_a_dataset_that_minari_stores_as_arrow_is_read():
    pytest.importorskip("pyarrow")
    actions = collected("CartPole-v1", "made/arrow-v0", data_format="arrow")
    data = open_data("minari:made/arrow-v0")
    assert [episode.rows - 1 for episode in data.read()] == [len(taken) for taken in actions]
    for taken, episode in zip(actions, data.read(), strict=True):
        assert episode.action[:-1].argmax(1).tolist() == taken


def test_minari_reads_what_we_wrote():
    spec = KINDS["many"][0]
    episodes = made(spec)
    convert(held(spec, episodes), "minari:made/copy-v0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = minari.load_dataset("made/copy-v0")
    assert (found.total_episodes, found.total_steps) == (3, 9)
    for one, other in zip(found, episodes, strict=True):
        np.testing.assert_array_equal(one.rewards, other.reward[1:])
        assert one.terminations[-1] == other.is_terminal[-1] and one.truncations[-1] != one.terminations[-1]
        np.testing.assert_array_equal(one.observations["arm"]["angle"], other.obs["arm/angle"])
        assert found.action_space.contains({key: value[0] for key, value in one.actions.items()})


@pytest.fixture
def mine(folder):
    convert(held(KINDS["vector"][0], made(KINDS["vector"][0])), "minari:mine-v0")
    return folder / "minari" / "mine-v0" / "data"


def in_minari(mine, change):
    with h5py.File(mine / "main_data.hdf5", "a") as file:
        change(file)


def swapped(group, name, array):
    del group[name]
    group.create_dataset(name, data=array)


MINARI_FAULTS = {
    "a nan": (lambda f: f["episode_2/observations"].__setitem__((4, 1), np.nan),
              "episode 2, row 4, observation 'vector': at [1] is nan"),
    "a wrong dtype": (lambda f: swapped(f["episode_1"], "observations", np.zeros((2, 3), "S1")),
                      "episode 1, observation 'vector': is |S1 [3] in each row, its space is float32 [3]"),
    "a wrong shape": (lambda f: swapped(f["episode_1"], "observations", np.zeros((2, 4), np.float32)),
                      "episode 1, observation 'vector': is float32 [4] in each row, its space is float32 [3]"),
    "an action outside": (lambda f: f["episode_0/actions"].__setitem__((1, 0), 1.5),
                          "episode 0, row 1, action: is [ 1.5"),
    "fewer actions": (lambda f: f["episode_0/actions"].resize(2, 0),
                      "episode 0, action: has 2 entries, there are 3 steps"),
    "no true last observation": (lambda f: f["episode_2/observations"].resize(5, 0),
                                 "episode 2, observation 'vector': has 5 entries, it must have 6"),
    "a missing episode": (lambda f: f.__delitem__("episode_1"), "mine-v0: 1 of 3 episodes are missing: 1"),
    "a missing array": (lambda f: f["episode_1"].__delitem__("rewards"), "episode 1: cannot be read, it is damaged"),
    "a reward that is none": (lambda f: swapped(f["episode_1"], "rewards", np.array([True])),
                              "episode 1, reward: is bool [1], it must be one number in each step"),
    "an infinite reward": (lambda f: f["episode_0/rewards"].__setitem__(1, np.inf),
                           "episode 0, row 2, reward: is inf, not a finite float32"),
    "an early end": (lambda f: f["episode_2/terminations"].__setitem__(1, True),
                     "episode 2, row 2, is_last: ends the episode, which has rows after it"),
    "a strange flag": (lambda f: swapped(f["episode_1"], "truncations", np.array([7])),
                       "episode 1, truncations: is int64 [1], it must be 0 or 1 in each step"),
}  # fmt: skip


@pytest.mark.parametrize("what", MINARI_FAULTS)
def test_a_fault_in_minari_is_named_with_its_episode_row_and_key(mine, what):
    change, text = MINARI_FAULTS[what]
    in_minari(mine, change)
    found = faults("minari:mine-v0")
    assert len(found) == 1 and text in found[0], found
    with pytest.raises(UserError, match="mine-v0: "):
        list(open_data("minari:mine-v0").read())


def test_a_duplicate_is_named():
    spec = KINDS["vector"][0]
    one, two, three = made(spec)
    convert(held(spec, [one, two, three, two]), "npz:copy")
    assert "is a duplicate of episode 1 in" in faults("copy")[0]


def test_a_truncated_file_of_minari_is_named(mine):
    file = mine / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:3000])
    assert "main_data.hdf5 cannot be read as HDF5: it is cut short" in faults("minari:mine-v0")[0]


def test_a_dataset_that_names_an_environment_in_place_of_spaces_runs_no_code(mine):
    metadata = json.loads((mine / "metadata.json").read_text())
    del metadata["observation_space"]
    metadata["env_spec"] = json.dumps({"id": "Evil-v0", "entry_point": "tests.evil:make"})
    (mine / "metadata.json").write_text(json.dumps(metadata))
    assert "does not describe its observation_space; its environment is not made" in faults("minari:mine-v0")[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [("minari:mine-v1", "did you mean 'mine-v0'"), ("minari:../x", "is named"), ("minari:", "is named")],
)
def test_a_wrong_name_of_minari_is_refused_with_the_nearest(mine, name, text):
    assert text in faults(name)[0]


# --- D4RL -------------------------------------------------------------------------------------------


def test_transitions_of_d4rl_become_rows():
    d4rl("a.hdf5")
    data = open_data("a.hdf5")
    one, two, three = data.read()
    assert [episode.rows for episode in (one, two, three)] == [4, 3, 2] and (data.episodes, data.rows) == (2, 9)
    assert one.obs["vector"][:, 0].tolist() == [0, 2, 4, 6] and two.obs["vector"][:, 0].tolist() == [8, 10, 12]
    assert one.reward.tolist() == [0, 1, 2, 3] and two.reward.tolist() == [0, 4, 5]
    np.testing.assert_allclose(one.action[:, 0], [-0.9, -0.6, -0.3, 0], atol=1e-6)
    assert one.is_terminal.tolist() == [False] * 3 + [True] and not two.is_terminal.any() and two.is_last[-1]
    assert three.is_first[0] and not three.is_last.any() and not three.whole
    assert three.reward.tolist() == [0, 6] and three.action[-1, 0] == pytest.approx(0.9)
    assert any("assumed: actions are 1 number from -1 to 1" in note for note in data.notes)


def test_without_next_observations_the_missing_last_observation_is_named_and_nothing_guessed():
    d4rl("a.hdf5", next_observations=None)
    found = faults("a.hdf5")
    assert len(found) == 1 and "2 episodes have no true last observation" in found[0]
    with pytest.raises(UserError, match="next_observations: 2 episodes have no true last observation"):
        next(open_data("a.hdf5").read())


def test_the_last_transition_is_left_out_when_asked_for():
    d4rl("a.hdf5", next_observations=None)
    data = open_data("a.hdf5", Reading(missing_last="drop"))
    one, two, three = data.read()
    assert [episode.rows for episode in (one, two, three)] == [3, 2, 2] and data.rows == 7
    assert one.is_last[-1] and not one.is_terminal.any() and one.reward.tolist() == [0, 1, 2]
    assert not one.action[-1].any() and three.action[-1].any() and not three.is_last.any()
    assert any("left out, with its reward and its terminal" in note for note in data.notes)


D4RL_FAULTS = {
    "a time limit without a mark": ({"timeouts": None}, "row 4, next_observations: differs from the observation"),
    "different lengths": ({"rewards": np.zeros(6)}, "rewards has 6 entries, actions have 7"),
    "a missing array": ({"terminals": None}, "it has no array 'terminals'; it holds actions, "),
    "no rows": ({key: np.zeros((0, 2)) if "obs" in key else np.zeros(0)
                 for key in ("observations", "next_observations", "actions", "rewards", "terminals", "timeouts")},
                "it has no rows"),
    "a nan": ({"observations": np.full((7, 2), np.nan, np.float32), "next_observations": None},
              "observation 'vector': at [0] is nan"),
    "an action out of range": ({"actions": np.full((7, 1), 2.0)}, "episode 0, row 0, action: is [2.]"),
    "texts": ({"observations": np.full((7, 2), b"a"), "next_observations": None}, "is |S1, not numbers"),
    "a strange flag": ({"terminals": np.arange(7)}, "terminals is int64 with values other than 0 and 1"),
    "a reward of two": ({"rewards": np.zeros((7, 2))}, "rewards is not an array with one entry"),
    "other next observations": ({"next_observations": np.zeros((7, 3))}, "next_observations are float64 [3]"),
}  # fmt: skip


@pytest.mark.parametrize("what", D4RL_FAULTS)
def test_a_fault_in_hdf5_is_named(what):
    arrays, text = D4RL_FAULTS[what]
    d4rl("a.hdf5", **arrays)
    found = faults("a.hdf5")
    assert found and any(text in line for line in found), found


def test_a_truncated_or_foreign_hdf5_file_is_named(folder):
    d4rl("a.hdf5")
    (folder / "b.hdf5").write_bytes((folder / "a.hdf5").read_bytes()[:900])
    (folder / "c.hdf5").write_text("not HDF5")
    for name in ("b.hdf5", "c.hdf5"):
        assert "cannot be read as HDF5: it is cut short, damaged or another format" in faults(name)[0]


def test_a_link_out_of_an_hdf5_file_is_refused():
    d4rl("a.hdf5")
    d4rl("b.hdf5", rewards=None)
    with h5py.File("b.hdf5", "a") as file:
        file["rewards"] = h5py.ExternalLink("a.hdf5", "rewards")
    assert "b.hdf5: /rewards is a link to another place" in faults("b.hdf5")[0]
    pathlib.Path("secret").write_bytes(bytes(7 * 4))
    with h5py.File("b.hdf5", "a") as file:
        del file["rewards"]
        file.create_dataset("rewards", (7,), np.float32, external=[("secret", 0, h5py.h5f.UNLIMITED)])
    assert "b.hdf5: /rewards is a link to another place" in faults("b.hdf5")[0]


def test_a_link_out_of_a_dataset_of_minari_is_refused(mine):
    d4rl("a.hdf5")
    with h5py.File(mine / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
        file["episode_1/rewards"] = h5py.ExternalLink("a.hdf5", "rewards")
    assert "/episode_1/rewards is a link to another place" in faults("minari:mine-v0")[0]


def test_kinds_of_actions_are_inferred_said_and_overruled():
    onehots, classes = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0]], np.array([0, 1, 2, 0, 1, 2, 0])
    for actions in (onehots, classes, classes[:, None]):
        d4rl("a.hdf5", actions=actions)
        data = open_data("a.hdf5")
        assert data.spec.action == Action((3,)) and any("inferred" in note for note in data.notes)
        np.testing.assert_array_equal(next(data.read()).action[:3], onehots[:3])
    d4rl("a.hdf5", actions=onehots)
    assert open_data("a.hdf5", Reading(actions="numbers")).spec.action == Action((), 3)
    d4rl("a.hdf5", actions=np.full((7, 1), 3.0))
    data = open_data("a.hdf5", Reading(action_range=(-4.0, 4.0)))
    assert next(data.read()).action[0, 0] == 0.75
    with pytest.raises(UserError, match="so it is not discrete"):
        open_data("a.hdf5", Reading(actions="discrete"))
