"""Datasets: every format gives the same rows, a conversion is complete or not there, and every fault is named."""

from __future__ import annotations

import gc
import json
import os
import pathlib
import shutil
import subprocess
import sys
import warnings
import weakref

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from any_spaces import action_spaces
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamer.apps import cli
from dreamer.data import describing, forms, npz
from dreamer.data.converting import convert
from dreamer.data.episodes import Data, Episode, Found, Reading
from dreamer.data.filling import fill
from dreamer.data.matching import check_spec
from dreamer.data.opening import AS_IS, open_data
from dreamer.data.pieces import Pieces
from dreamer.data.vectors import to_vectors
from dreamer.errors import UserError
from dreamer.runtime.env.actions import action_reader
from dreamer.runtime.env.rows import EnvRows
from dreamer.runtime.files import checkpoint_files, sealed
from dreamer.runtime.files.manifest import FORMAT, Files, Manifest
from dreamer.runtime.files.sealed import Seal
from dreamer.runtime.replay.config import Config
from dreamer.runtime.replay.replay import Replay
from dreamer.spaces import Action, Space, Spec

KINDS = {
    "vector": (Spec({"vector": Space((3,), "float32")}, Action((), 2)), "numbers"),
    "image": (Spec({"image": Space((8, 8, 3), "uint8")}, Action((4,))), "one choice"),
    "many": (
        Spec(
            {
                "arm/angle": Space((2,), "float64"), "arm/grip": Space((), "int64", 3),
                "depth": Space((6, 6, 1), "float32", bounds=(0.0, 1.0)), "count": Space((1,), "int32"),
            },
            Action((2, 3), 1),
        ),
        "choices and numbers",
    ),
    "masked": (Spec({"action_mask": Space((4,), "int8", 2), "x": Space((1,), "float32")}, Action((4,))), "a mask"),
}  # fmt: skip
ROOT = pathlib.Path(__file__).parents[1]
TARGETS = ("minari:made/copy-v0", "npz:copy", "hdf5:copy.hdf5")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(space: Space, rng: np.random.Generator, rows: int) -> np.ndarray:
    shape = (rows, *space.shape)
    if space.classes:
        return rng.integers(space.classes, size=shape).astype(space.dtype)
    if space.bounds:
        return rng.uniform(*space.bounds, shape).astype(space.dtype)
    if np.dtype(space.dtype).kind == "f":
        return rng.normal(0, 3, shape).astype(space.dtype)
    return rng.integers(256 if space.dtype == "uint8" else 1000, size=shape).astype(space.dtype)


def made(spec: Spec, lengths=(3, 1, 5), seed: int = 0, terminal=(True, False, True)) -> list[Episode]:
    """Episodes with random contents: `lengths` steps each."""
    rng, episodes = np.random.default_rng(seed), []
    for number, (steps, ends) in enumerate(zip(lengths, terminal, strict=True)):
        rows = steps + 1
        first, last, true = np.zeros((3, rows), bool)
        first[0], last[-1], true[-1] = True, True, ends
        parts = [np.eye(n, dtype=np.float32)[rng.integers(n, size=rows)] for n in spec.action.classes]
        action = np.concatenate([*parts, rng.uniform(-1, 1, (rows, spec.action.continuous))], 1).astype(np.float32)
        action[-1] = 0
        reward = rng.normal(size=rows).astype(np.float32)
        reward[0] = 0
        obs = {key: values(space, rng, rows) for key, space in spec.obs.items()}
        episodes.append(Episode(f"episode {number}", obs, action, reward, first, last, true))
    return episodes


def held(spec: Spec, episodes: list[Episode]) -> Data:
    rows = sum(one.rows for one in episodes)
    return Data("made", "made", spec, len(episodes), rows, (), (), lambda: map(Found, episodes))


def same(one: Episode, other: Episode, atol: float = 0.0) -> None:
    assert one.obs.keys() == other.obs.keys()
    for key in one.obs:
        assert one.obs[key].dtype == other.obs[key].dtype
        np.testing.assert_array_equal(one.obs[key], other.obs[key])
    np.testing.assert_allclose(one.action, other.action, rtol=0, atol=atol)
    for left, right in zip(one[3:], other[3:], strict=True):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype


def faults(path, reading: Reading = AS_IS) -> list[str]:
    """Everything that is wrong with a dataset, as lines; what cannot be opened is one line."""
    try:
        return [str(fault) for fault in describing.describe(open_data(path, reading)).faults]
    except UserError as error:
        return [str(error)]


def rewritten(path, change):
    """Changes the arrays of an npz file in place."""
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez_compressed(path, **arrays)


# --- round trips ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_back_the_rows_that_were_written(kind, target, folder):
    spec, episodes = KINDS[kind][0], made(KINDS[kind][0])
    done = convert(held(spec, episodes), target)
    assert (done.episodes, done.left_out) == (3, 0)
    data = open_data(target if target.startswith("minari") else done.path)
    assert data.spec == Spec(dict(sorted(spec.obs.items())), spec.action)
    read = list(data.read())
    assert len(read) == data.episodes == 3 and sum(one.rows for one in read) == data.rows == 12
    for one, other in zip(read, episodes, strict=True):
        same(one, other, atol=1e-7)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_rows_survive_all_formats_one_after_the_other(folder, episodes, seed):
    spec = KINDS["vector"][0]
    lengths, terminal = zip(*episodes, strict=True)
    data = began = held(spec, made(spec, lengths, seed, terminal))
    for target in TARGETS:
        done = convert(data, target)
        data = open_data(done.path)
    for one, other in zip(data.read(), began.read(), strict=True):
        same(one, other, atol=1e-7)
    shutil.rmtree(folder / "minari")
    shutil.rmtree(folder / "copy")
    (folder / "copy.hdf5").unlink()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(action_spaces(), st.integers(0, 2**31 - 1))
def test_an_action_becomes_the_vector_that_chooses_it_again(space, seed):
    space.seed(seed)
    env = type("Env", (), {"action_space": space})()
    reader = action_reader(env)
    rng = np.random.default_rng(seed)
    taken = [reader.to_env(rng.uniform(-1, 1, reader.action.width).astype(np.float32)) for _ in range(4)]
    vectors = to_vectors(space, batched(space, taken), 4, "episode 0")
    assert not vectors.faults and vectors.array.shape == (4, reader.action.width)
    for vector, action in zip(vectors.array, taken, strict=True):
        equal(space, reader.to_env(vector), action)


def batched(space, items):
    if isinstance(space, spaces.Dict):
        return {key: batched(inner, [item[key] for item in items]) for key, inner in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(batched(inner, [item[n] for item in items]) for n, inner in enumerate(space.spaces))
    return np.stack([np.asarray(item) for item in items])


def equal(space, one, other):
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        for key in space.spaces if isinstance(space, spaces.Dict) else range(len(space.spaces)):
            equal(space[key], one[key], other[key])
    elif isinstance(space, spaces.Box) and space.dtype.kind == "f":
        wide = np.maximum(1, np.abs(np.nan_to_num(np.asarray(other, np.float64), posinf=1, neginf=1)).max(initial=1))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * wide)
    else:
        np.testing.assert_array_equal(one, other)


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


def d4rl(path, **arrays) -> None:
    """A file as D4RL has it: an episode of 3 steps to a true end, one of 2 to a time limit, and 2 steps of a third.

    arrays: in place of those; None: left out
    """
    obs = np.arange(20, dtype=np.float32).reshape(10, 2)  # the observations of rows 0-3, 4-6, 7-9
    held = {
        "observations": obs[[0, 1, 2, 4, 5, 7, 8]],
        "actions": np.linspace(-0.9, 0.9, 7, dtype=np.float32)[:, None],
        "rewards": np.arange(1, 8, dtype=np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 1, 0, 0], bool),
        "next_observations": obs[[1, 2, 3, 5, 6, 8, 9]],
    }
    with h5py.File(path, "w") as file:
        for name, values in (held | arrays).items():
            if values is not None:
                file.create_dataset(name, data=values)


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
    assert any("1 number from -1 to 1, assumed" in note for note in data.notes)


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


# --- npz --------------------------------------------------------------------------------------------


def chunk(name: str, action, firsts, lasts, **more) -> None:
    rows = len(action)
    arrays = {
        "image": np.arange(rows * 48, dtype=np.uint8).reshape(rows, 4, 4, 3), "action": np.asarray(action),
        "reward": np.arange(rows, dtype=np.float32), "is_first": np.asarray(firsts, bool),
        "is_last": np.asarray(lasts, bool), "is_terminal": np.asarray(lasts, bool), **more,
    }  # fmt: skip
    np.savez_compressed(f"{name}.npz", **{key: value for key, value in arrays.items() if value is not None})


@pytest.fixture
def chunks(folder, monkeypatch):
    """Two chunks of one stream of DreamerV3: an episode goes over their border, and the last one has no end."""
    (folder / "v3").mkdir()
    monkeypatch.chdir(folder / "v3")
    more = {"reset": np.zeros(4, bool), "log/x": np.zeros(4), "dyn/deter": np.zeros((4, 2), np.float32)}
    chunk("20260101T000000F001-aaaa-bbbb-4", [1, 2, 0, 2], [1, 0, 0, 1], [0, 0, 1, 0], **more)
    chunk("20260101T000000F002-bbbb-0000-4", [1, 0, 1, 2], [0, 0, 1, 0], [0, 1, 0, 0], **more)
    return folder / "v3"


def test_chunks_of_dreamerv3_are_joined_to_episodes(chunks):
    data = open_data(chunks)
    one, two, three = data.read()
    assert (data.episodes, data.rows, data.spec.action) == (2, 8, Action((3,)))
    assert [episode.rows for episode in (one, two, three)] == [3, 3, 2]
    assert one.action.argmax(1)[:2].tolist() == [1, 2] and not one.action[-1].any()
    assert two.action.argmax(1)[:2].tolist() == [2, 1] and two.reward.tolist() == [3, 0, 1]
    assert one.whole and two.whole and not three.whole and three.action.argmax(1).tolist() == [1, 2]
    assert set(data.spec.obs) == {"image"} and any("dyn/deter, log/x" in note for note in data.notes)


def test_a_chunk_that_is_named_but_missing_is_a_fault(chunks):
    next(chunks.glob("*bbbb-0000*")).unlink()
    assert "the chunk bbbb that follows it is missing" in faults(chunks)[0]


def test_episodes_of_dreamerv2_have_the_action_before_their_row(folder):
    onehots = np.eye(3, dtype=np.float32)
    chunk("20260101T000000-a-2", [0 * onehots[0], onehots[1], onehots[2]], [1, 0, 0], [0, 0, 1],
          is_first=None, is_last=None, is_terminal=None, discount=np.array([1, 1, 0], np.float32))  # fmt: skip
    data = open_data(folder)
    (one,) = data.read()
    assert one.action.argmax(1)[:2].tolist() == [1, 2] and not one.action[-1].any() and one.is_terminal[-1]
    assert any("actions led to the observation of their row, inferred" in note for note in data.notes)


def test_an_unclear_row_of_actions_is_refused_and_can_be_said(folder):
    chunk("20260101T000000-a-3", [1, 1, 1], [1, 0, 0], [0, 0, 1])
    with pytest.raises(UserError, match="neither first nor last rows have only zeros; say so with --action-row"):
        open_data(folder)
    (one,) = open_data(folder, Reading(action_row="after")).read()
    assert one.action.argmax(1)[:2].tolist() == [1, 1]


NPZ_FAULTS = {
    "another length": (lambda a: a.update(reward=a["reward"][:2]), "has 2 rows, its name says 4"),
    "lengths that differ": (lambda a: a.update(vector=a["vector"][:2]), "vector: has 2 entries, it must have 4"),
    "a pickle": (lambda a: a.update(reward=np.array([{}, 1, 2, 3], object)), "holds pickled objects, which are never"),
    "a missing key": (lambda a: a.pop("vector"), "vector: is missing, other files have it"),
    "a class that is none": (lambda a: a.update(action=np.full((4, 2), 0.5, np.float64) * np.nan), "no action of"),
    "a missing flag": (lambda a: a.pop("is_last"), "has no array 'is_last'"),
    "nothing about true ends": (lambda a: a.pop("is_terminal"), "has neither is_terminal nor discount"),
    "a terminal row in the middle": (lambda a: a["is_terminal"].__setitem__(1, True),
                                     "row 1, is_terminal: is terminal"),
    "a nan": (lambda a: a["vector"].__setitem__((2, 1), np.nan), "row 2, observation 'vector': at [1] is nan"),
    "a complex reward": (lambda a: a.update(reward=a["reward"] * 1j),
                         "reward: is complex64 [4], it must be one number"),
}  # fmt: skip


@pytest.mark.parametrize("what", NPZ_FAULTS)
def test_a_fault_in_npz_is_named_with_its_file(what, folder):
    convert(held(KINDS["vector"][0], made(KINDS["vector"][0], (3, 3, 3))), "npz:copy")
    file = folder / "copy" / "episode-000000001-4.npz"
    change, text = NPZ_FAULTS[what]
    rewritten(file, change)
    found = faults("copy")
    assert any(text in line and file.name in line for line in found), found


def test_a_truncated_file_a_foreign_one_and_a_missing_episode_are_named(folder):
    convert(held(KINDS["vector"][0], made(KINDS["vector"][0], (3, 3, 3))), "npz:copy")
    file = folder / "copy" / "episode-000000000-4.npz"
    file.write_bytes(file.read_bytes()[:-40])
    (folder / "copy" / "episode-000000001-4.npz").unlink()
    (folder / "copy" / "foreign.npz").write_text("hello")
    found = faults("copy")
    assert "copy: 1 of 3 episodes are missing: 1" in found
    assert sum("is not an npz file, or is cut short" in line for line in found) == 2


def test_damage_inside_of_a_file_is_named(folder):
    convert(held(KINDS["image"][0], made(KINDS["image"][0], (9, 9, 9))), "npz:copy")
    file = folder / "copy" / "episode-000000001-10.npz"
    whole = bytearray(file.read_bytes())
    whole[120:200] = bytes(80)
    file.write_bytes(whole)
    assert any("is cut short or damaged" in line and file.name in line for line in faults("copy"))


# --- run directories --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    tiny_runs = pytest.importorskip("tiny_runs")
    return tiny_runs.trained(tmp_path_factory)


def test_a_run_directory_is_read_and_exported_to_minari(run):
    data = open_data(run)
    assert data.format == "run" and data.spec.obs
    read = list(data.read())
    assert sum(one.rows for one in read) == data.rows > 90
    done = convert(data, "minari:runs/tiny-v0")
    again = open_data("minari:runs/tiny-v0")
    assert again.spec.action == data.spec.action
    whole = [one for one in read if one.whole]
    assert done.episodes == len(whole) > 0 and done.left_out == len(read) - len(whole)
    for one, other in zip(again.read(), whole, strict=True):
        same(one, other, atol=1e-6)
    convert(data, "npz:all")
    for one, other in zip(open_data("all").read(), read, strict=True):
        same(one, other)


def write_rows(run_dir, number: int, parts: list[tuple[int, int, Episode, slice]]) -> Seal:
    """Writes a file of rows as a run does. parts: (stream, number of its first row, episode, which rows of it)."""
    spans, blocks = [], []
    for stream, start, episode, kept in parts:
        columns = {f"obs/{key}": array[kept] for key, array in episode.obs.items()}
        columns |= {key: array[kept] for key, array in zip(Episode._fields[2:], episode[2:], strict=True)}
        columns["latent/stoch"] = np.zeros((len(columns["reward"]), 2), np.uint8)
        blocks.append(columns)
        spans.append([stream, start, start + len(columns["reward"])])
    joined = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    return sealed.write(run_dir / "rows" / f"rows-{number:09d}.dreamer", {"run": "a" * 32, "spans": spans}, joined)


@pytest.fixture
def written(folder):
    """A run directory whose two streams go over the borders of three files, and what it holds."""
    spec = KINDS["many"][0]
    one, two, three = made(spec)
    run_dir = folder / "written"
    (run_dir / "rows").mkdir(parents=True)
    (run_dir / "config.yaml").write_text("env: my_lab.envs:make\n")
    seals = (
        write_rows(run_dir, 0, [(0, 0, one, slice(0, 2)), (1, 0, three, slice(0, 3))]),
        write_rows(run_dir, 1, [(0, 2, one, slice(2, 4)), (1, 3, three, slice(3, 5))]),
        write_rows(run_dir, 2, [(0, 4, two, slice(0, 1)), (1, 5, three, slice(5, 6))]),
    )
    files = Files("a" * 32, seals, (), Seal("state-1.dreamer", 1, 1), (0, 0), 100)
    meta = Manifest(12, 1, FORMAT, files, (0, 0), json.loads(forms.to_json(spec))).to_json()
    (run_dir / "checkpoints" / "12" / "meta").mkdir(parents=True)
    content = json.dumps(checkpoint_files.seal({"meta": meta, "leaf_crc32": {}}))
    (run_dir / "checkpoints" / "12" / "meta" / "metadata").write_text(content)
    return run_dir, spec, (one, three, two)


def test_the_streams_of_a_run_are_joined_over_its_files(written):
    run_dir, spec, episodes = written
    data = open_data(run_dir)
    one, three, part = data.read()
    assert data.spec == spec and data.rows == 11 and not data.faults
    same(one, episodes[0])
    same(three, episodes[1])
    assert part.rows == 1 and not part.whole and part.name == "rows 4 to 4 of stream 0"
    np.testing.assert_array_equal(part.action, episodes[2].action[:1])


def test_without_a_checkpoint_the_spaces_of_a_run_are_inferred_and_said(written, folder):
    run_dir, spec, _ = written
    shutil.rmtree(run_dir / "checkpoints")
    data = open_data(run_dir)
    assert "no checkpoint describes the spaces" in data.notes
    assert data.spec.action_width == spec.action_width and set(data.spec.obs) == set(spec.obs)


def flipped(path):
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)


RUN_FAULTS = {
    "a flipped bit": (lambda rows: flipped(rows / "rows-000000001.dreamer"), "is damaged: its checksum differs"),
    "a missing file": (lambda rows: (rows / "rows-000000001.dreamer").unlink(),
                       "rows-000000002.dreamer: begins at row 4 of stream 0, but row 2 should come next"),
    "a truncated file": (lambda rows: (rows / "rows-000000002.dreamer").write_bytes(
        (rows / "rows-000000002.dreamer").read_bytes()[:-5]), "is cut short or too long"),
    "a file of another run": (lambda rows: sealed.write(
        rows / "rows-000000003.dreamer", {"run": "b" * 32, "spans": [[0, 5, 6]]}, {}), "belongs to another run"),
    "a foreign file": (lambda rows: (rows / "rows-000000003.dreamer").write_text("hello"),
                       "is not a file of this program"),
}  # fmt: skip


@pytest.mark.parametrize("what", RUN_FAULTS)
def test_a_fault_in_the_rows_of_a_run_is_named(written, what):
    change, text = RUN_FAULTS[what]
    change(written[0] / "rows")
    found = faults(written[0])
    assert any(text in line for line in found), found


def test_a_run_without_rows_is_refused(written):
    shutil.rmtree(written[0] / "rows")
    assert "has no rows on the disk" in faults(written[0])[0]


# --- replay -----------------------------------------------------------------------------------------


def replay_for(spec: Spec, streams: int = 2, rows: int = 12) -> Replay:
    config = Config(capacity_steps=streams * rows, batch_size=2, batch_length=3)
    return Replay(spec, {"stoch": Space((2,), "uint8")}, config, streams=streams, seed=0, env_steps=streams * rows)


def test_a_replay_holds_the_rows_of_a_dataset_with_the_initial_latent():
    spec = KINDS["many"][0]
    one, two, three = made(spec)
    part = Episode("part", {key: x[1:] for key, x in three.obs.items()}, *(x[1:] for x in three[2:]))
    replay, latent = replay_for(spec), {"stoch": np.array([3, 4], np.uint8)}
    assert fill(replay, held(spec, [one, two, part]), latent) == one.rows + two.rows + part.rows
    assert replay.counts.tolist() == [4, 7]
    for stream, rows in ((0, [one]), (1, [two, part])):
        for key in spec.obs:
            expected = np.concatenate([episode.obs[key] for episode in rows])
            np.testing.assert_array_equal(replay.columns[f"obs/{key}"][stream, : len(expected)], expected)
    assert replay.columns["is_first"][1, :7].tolist() == [True, False, True, False, False, False, False]
    assert (replay.columns["latent/stoch"][1, :7] == [3, 4]).all()
    batch, rows = replay.sample(2)
    assert batch.action.shape == (2, 4, spec.action_width) and len(replay) > 0


def test_rows_that_do_not_fit_into_a_replay_are_refused():
    spec, latent = KINDS["vector"][0], {"stoch": np.zeros(2, np.uint8)}
    with pytest.raises(UserError, match="episode 2 has 6 rows, and 0 are free; raise replay.capacity_steps"):
        fill(replay_for(spec, 1, 6), held(spec, made(spec)), latent)
    other = KINDS["image"][0]
    with pytest.raises(UserError, match="unknown column 'obs/vector'; did you mean|column 'obs/image' is missing"):
        fill(replay_for(other), held(spec, made(spec)), latent)


# --- conversion and command -------------------------------------------------------------------------


def test_spaces_that_differ_are_named_key_by_key():
    spec = KINDS["many"][0]
    data = held(spec, made(spec))
    check_spec(data, spec, "the run")
    obs = {**spec.obs, "arm/grip": Space((), "int64", 4), "new": Space((1,), "float32")}
    with pytest.raises(UserError) as caught:
        check_spec(data, Spec({key: obs[key] for key in obs if key != "depth"}, Action((2,))), "env 'mine'")
    assert str(caught.value) == (
        "made does not fit env 'mine': observation 'arm/grip' is int64 [], 3 classes, there int64 [], 4 classes; "
        "observation 'depth' is float32 [6, 6, 1], from 0 to 1, there missing; observation 'new' is missing, there "
        "float32 [1]; the action is one of 2, one of 3, 1 number, there one of 2"
    )


@pytest.mark.parametrize("target", TARGETS)
def test_a_conversion_holds_one_episode_at_a_time(target):
    spec = KINDS["vector"][0]
    alive = []

    def scan():
        for seed in range(4):
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1
            (episode,) = made(spec, (4,), seed, (True,))
            alive.append(weakref.ref(episode.reward))
            yield Found(episode)
            del episode

    convert(held(spec, [])._replace(scan=scan), target)
    assert len(alive) == 4


KILLED = """
import os, signal
import test_data as t
spec = t.KINDS["vector"][0]
one, *_ = t.made(spec)

def scan():
    yield t.Found(one)
    os.kill(os.getpid(), signal.SIGKILL)

t.convert(t.held(spec, [])._replace(scan=scan), {target!r})
"""


@pytest.mark.parametrize("target", TARGETS)
def test_a_killed_conversion_leaves_no_file_that_looks_whole(target, folder):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    run = subprocess.run([sys.executable, "-c", KILLED.format(target=target)], env={**os.environ, "PYTHONPATH": paths})
    assert run.returncode == -9
    assert not minari.list_local_datasets() and not (folder / "copy").exists() and not (folder / "copy.hdf5").exists()
    spec = KINDS["vector"][0]
    convert(held(spec, made(spec)), target)  # what is left is in nobody's way
    assert not [path for path in folder.rglob("*.unfinished")]

@pytest.mark.parametrize("target", TARGETS)
def test_a_conversion_that_fails_leaves_nothing_and_nothing_is_overwritten(target, folder):
    spec = KINDS["vector"][0]
    episodes = made(spec)

    def broken():
        yield Found(episodes[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(held(spec, episodes)._replace(scan=broken), target)
    assert not [path for path in folder.rglob("*copy*")]
    convert(held(spec, episodes), target)
    with pytest.raises(UserError, match="already exists, and nothing is overwritten"):
        convert(held(spec, episodes), target)


@pytest.mark.parametrize("target", ["npz:copy", "minari:made/copy-v0"])
def test_what_a_killed_conversion_has_left_is_no_dataset_and_in_nobodys_way(target, folder):
    spec = KINDS["vector"][0]
    place = folder / "minari" / "made" / ".copy-v0.unfinished" if "minari" in target else folder / ".copy.unfinished"
    (place / "data").mkdir(parents=True)
    (place / "data" / "junk").touch()
    assert not minari.list_local_datasets()
    convert(held(spec, made(spec)), target)
    assert not place.exists()


def test_what_a_format_cannot_hold_is_refused_or_left_out():
    spec = KINDS["vector"][0]
    one, two, three = made(spec)
    early = three._replace(reward=three.reward + 1)
    with pytest.raises(UserError, match="has the reward 1 with its first observation"):
        convert(held(spec, [early]), "hdf5:a.hdf5")
    part = Episode("part", {"vector": one.obs["vector"][1:]}, *(array[1:] for array in one[2:]))
    assert convert(held(spec, [part, two]), "hdf5:b.hdf5").left_out == 1
    with pytest.raises(UserError, match="no episode has both a beginning and an end"):
        convert(held(spec, [part]), "minari:a-v0")


@pytest.mark.parametrize("target", ["npz", "zarr:x", "hdf5:x.txt", "minari:no version", "npz:"])
def test_a_wrong_target_is_refused(target):
    spec = KINDS["vector"][0]
    with pytest.raises(UserError):
        convert(held(spec, made(spec)), target)


def test_the_command_describes_converts_and_ends_with_the_code_of_what_it_found(folder, capsys):
    spec = KINDS["image"][0]
    convert(held(spec, made(spec)), "npz:copy")
    assert cli.main(["data", "copy", "--to", "hdf5:copy.hdf5", "--json", "out.json", "--picture", "out.png"]) == 0
    out = capsys.readouterr().out
    assert "episodes    3; 12 rows" in out and "one of 4" in out and "wrote 3 episodes" in out and "sound" in out
    told = json.loads((folder / "out.json").read_text())
    assert told["episodes"] == 3 and told["terminal_share"] == pytest.approx(2 / 3) and told["sound"]
    assert (folder / "out.png").read_bytes()[:4] == b"\x89PNG"
    rewritten(folder / "copy" / "episode-000000000-4.npz", lambda a: a["reward"].__setitem__(0, np.nan))
    assert cli.main(["data", "copy"]) == 1
    assert "FAULT  episode 0 in episode-000000000-4.npz, row 0, reward: is nan" in capsys.readouterr().out
    assert cli.main(["data", "copy", "--to", "npz:other"]) == 2
    assert "is not converted, because it has faults" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nothing"], "there is no such file or folder; a dataset is minari:NAME"), ([], "takes one dataset, not 0"),
        (["."], "is no dataset"), (["x", "--action-range", "1", "-1"], "1 is not below -1"),
        (["x", "--missing-last", "guess"], "refuse"),
    ],
)  # fmt: skip
def test_a_wrong_command_ends_with_one_line_and_code_2(words, text, capsys):
    assert cli.main(["data", *words]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """{name: what to open} of small files of all formats, below a folder."""
    folder = tmp_path_factory.mktemp("small")
    spec = KINDS["many"][0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        patch.chdir(folder)
        for target in TARGETS:
            convert(held(spec, made(spec)), target)
        d4rl("plain.hdf5")
    data = "minari/made/copy-v0/data"
    return folder, {
        "copy.hdf5": "copy.hdf5", "plain.hdf5": "plain.hdf5", "copy/episode-000000000-4.npz": "copy",
        "copy/spec.json": "copy", f"{data}/main_data.hdf5": data, f"{data}/metadata.json": data,
    }  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 5), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
       st.floats(0, 1) | st.none())  # fmt: skip
def test_a_damaged_file_gives_faults_or_one_line_and_no_other_error(small, which, changes, cut):
    folder, files = small
    name = list(files)[which]
    whole = (folder / name).read_bytes()
    damaged = bytearray(whole)
    for place, byte in changes:
        damaged[int(place * len(damaged))] = byte
    try:
        (folder / name).write_bytes(damaged[: None if cut is None else int(cut * len(damaged))])
        for line in faults(folder / files[name]):
            assert line and "\n" not in line
    finally:
        (folder / name).write_bytes(whole)


def test_a_file_of_another_program_is_refused(folder):
    (folder / "notes.txt").write_text("hello")
    (folder / "robots" / "meta").mkdir(parents=True)
    (folder / "robots" / "meta" / "info.json").write_text("{}")
    assert "is no dataset" in faults("notes.txt")[0]
    assert "is not of LeRobot: it has no codebase_version" in faults("robots")[0]


def test_a_missing_package_names_the_extra(monkeypatch):
    d4rl("a.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert 'pip install "dreamer-jax[data]"' in faults("a.hdf5")[0]


def test_a_long_episode_is_given_in_pieces_that_fit_the_memory(monkeypatch):
    monkeypatch.setattr("dreamer.data.pieces.MOST_BYTES", 40)
    pieces = Pieces()
    flags = {"is_first": np.eye(1, 9, 0, dtype=bool)[0], "is_last": np.eye(1, 9, 8, dtype=bool)[0]}
    blocks = [{key: value[n : n + 3] for key, value in flags.items()} | {"x": np.arange(n, n + 3)} for n in (0, 3, 6)]
    found = [piece for block in blocks for piece in pieces.add(block)]
    assert [piece["x"].tolist() for piece in found] == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
    assert found[0]["is_first"][0] and not found[0]["is_last"].any() and found[1]["is_last"][-1]


def test_numbers_that_are_missing_are_listed():
    (fault,) = npz.missing_numbers([0, 2, 5], "x", 6)
    assert str(fault) == "x: 3 of 6 episodes are missing: 1, 3, 4"
