"""Datasets: every format gives the same rows, a conversion is complete or not there, and every fault is named."""

from __future__ import annotations

import gc
import json
import os
import pathlib
import shutil
import subprocess
import sys
import weakref

import minari
import numpy as np
import pytest
from any_spaces import action_spaces
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_data import KINDS, TARGETS, d4rl, faults, held, made, rewritten, same

from dreamer.apps import cli
from dreamer.data import npz
from dreamer.data.converting import convert
from dreamer.data.episodes import Episode, Found
from dreamer.data.filling import fill
from dreamer.data.matching import check_spec
from dreamer.data.opening import open_data
from dreamer.data.pieces import Pieces
from dreamer.data.vectors import to_vectors
from dreamer.errors import UserError
from dreamer.runtime.env.actions import action_reader
from dreamer.runtime.replay.config import Config
from dreamer.runtime.replay.replay import Replay
from dreamer.spaces import Action, Space, Spec

pytestmark = pytest.mark.usefixtures("folder")
ROOT = pathlib.Path(__file__).parents[1]

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
        (["."], "is not a dataset"), (["x", "--action-range", "1", "-1"], "1 is not below -1"),
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


def test_a_damaged_list_of_arrays_is_a_fault_and_the_file_is_closed(small):
    folder, _ = small
    path = folder / "copy" / "episode-000000000-4.npz"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole.replace(b"PK\x01\x02", b"PK\x01\x03"))
        assert "is cut short or damaged" in faults(folder / "copy")[0]
        gc.collect()  # pytest makes an error of a file that nothing closed
    finally:
        path.write_bytes(whole)


def test_a_file_of_another_program_is_refused(folder):
    (folder / "notes.txt").write_text("hello")
    (folder / "robots" / "meta").mkdir(parents=True)
    (folder / "robots" / "meta" / "info.json").write_text("{}")
    assert "is not a dataset" in faults("notes.txt")[0]
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
