"""Datasets of LeRobot: both layouts give the same rows, and what is missing, damaged or outside is named."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import lines, tiny

import dreamer
from benchmarks import robots
from dreamer.apps import cli
from dreamer.config import NO_ENV
from dreamer.data import films as films_of
from dreamer.data import pieces
from dreamer.data.describing import describe
from dreamer.data.episodes import Reading
from dreamer.data.films import Film, listed
from dreamer.data.opening import AS_IS, open_data
from dreamer.data.tables import File, as_array
from dreamer.errors import UserError
from dreamer.spaces import Action, Space, Spec

VERSIONS = ("v2.0", "v2.1", "v3.0")
DROP = Reading(missing_last="drop", missing_reward="zeros")
LENGTHS = (4, 3, 6)
TOP = "observation.images.top"
STATE = "observation.state"
VECTOR = "observation.vector"


def made(lengths=LENGTHS, side: int = 32, reward: bool = True) -> list[dict[str, np.ndarray]]:
    """Episodes of random numbers, and frames of one color with a bright square that moves."""
    rng, episodes = np.random.default_rng(0), []
    for count in lengths:
        frames = np.repeat(rng.integers(256, size=(count, 1, 1, 3)), side, 1).repeat(side, 2).astype(np.uint8)
        for row in range(count):
            frames[row, row : row + 4, :4] = 255
        done = np.arange(count) == count - 1
        episodes.append({
            TOP: frames, STATE: rng.normal(size=(count, 3)).astype(np.float32),
            "observation.grid": rng.normal(size=(count, 2, 2)).astype(np.float32),
            "observation.tick": np.arange(count), "action": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
            **({"next.reward": rng.normal(size=count).astype(np.float32), "next.done": done} if reward else {}),
        })  # fmt: skip
    return episodes


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    """A folder with the same episodes in each version."""
    folder = tmp_path_factory.mktemp("robots")
    for version in VERSIONS:
        robots.write(folder / version, version, made())
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


@pytest.fixture(params=("v2.1", "v3.0"))
def copy(request, whole, folder) -> pathlib.Path:
    """A dataset that a test may damage, in both layouts."""
    return shutil.copytree(whole / request.param, folder / request.param)


def faults(path, reading: Reading = DROP) -> list[str]:
    """Everything that is wrong with a dataset, as lines; what cannot be opened is one line."""
    try:
        return [str(fault) for fault in describe(open_data(path, reading)).faults]
    except UserError as error:
        return [str(error)]


def check_fault(copy: pathlib.Path, change: Callable[[pathlib.Path], object], text: str) -> None:
    """Changes a dataset, and fails unless one of its faults, each one line, has this text."""
    change(copy)
    found = faults(copy)
    assert any(text in line for line in found), found
    assert all("\n" not in line for line in found)


def data_file(root: pathlib.Path) -> pathlib.Path:
    """The first file of rows."""
    return sorted(root.glob("data/*/*.parquet"))[0]


def film_file(root: pathlib.Path) -> pathlib.Path:
    """The first film."""
    return sorted(root.glob("videos/**/*.mp4"))[0]


def said(root: pathlib.Path, **changes) -> None:
    """Changes meta/info.json; features {name: change} are merged into it, None takes one out."""
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    for name, change in changes.pop("features", {}).items():
        if change is None:
            del info["features"][name]
        else:
            info["features"].setdefault(name, {}).update(change)
    path.write_text(json.dumps(info | changes))


def changed(path: pathlib.Path, **columns) -> None:
    """Writes a file of parquet anew with other columns; a function gets the old values as a list; None: left out."""
    table = pq.read_table(path)
    for name, change in columns.items():
        place = table.schema.names.index(name)
        if change is None:
            table = table.remove_column(place)
        else:
            values = change(table.column(name).to_pylist()) if callable(change) else change
            array = values if isinstance(values, pa.Array) else pa.array(values, table.schema.field(name).type)
            table = table.set_column(place, name, array)
    pq.write_table(table, path)


# --- rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_frames_become_rows_without_the_last_transition(whole, version):
    data = open_data(whole / version, DROP)
    assert data.format == "lerobot"
    assert data.spec == Spec(
        {"grid": Space((2, 2), "float32"), "images/top": Space((32, 32, 3), "uint8"), "state": Space((3,), "float32"),
         "tick": Space((1,), "int64")}, Action((), 2),
    )  # fmt: skip
    assert (data.episodes, data.rows) == (3, sum(LENGTHS))
    episodes = list(data.read())
    for number, (one, told) in enumerate(zip(episodes, made(), strict=True)):
        assert (one.name, one.rows) == (f"episode {number}", LENGTHS[number])
        np.testing.assert_array_equal(one.obs["images/top"], told[TOP])
        np.testing.assert_array_equal(one.obs["state"], told[STATE])
        np.testing.assert_array_equal(one.obs["grid"], told["observation.grid"])
        np.testing.assert_array_equal(one.obs["tick"][:, 0], told["observation.tick"])
        np.testing.assert_allclose(one.action[:-1], told["action"][:-1], atol=1e-6)
        np.testing.assert_array_equal(one.reward, [0, *told["next.reward"][:-1]])
        assert not one.action[-1].any() and one.is_first[0] and one.is_last[-1] and one.whole
        assert not one.is_terminal.any()
    assert {one.obs["state"].dtype.name for one in episodes} == {"float32"}


def test_a_missing_last_observation_and_missing_rewards_are_refused_by_name_and_nothing_is_guessed(folder):
    robots.write(folder / "bare", "v3.0", made(reward=False))
    found = faults("bare", AS_IS)
    assert len(found) == 2
    assert "3 episodes have no true last observation" in found[0] and "--missing-last drop" in found[0]
    assert "meta/info.json, next.reward: there are no rewards; --missing-reward zeros" in found[1]
    data = open_data("bare", DROP)
    assert not any(one.reward.any() for one in data.read())
    assert any("all rewards are zeros" in note for note in data.notes)
    assert any("left out, with its reward" in note for note in data.notes)


def test_what_is_inferred_or_left_out_is_said(whole, folder):
    shutil.copytree(whole / "v3.0", "noted")
    said(folder / "noted", total_tasks=2, features={"observation.words": {"dtype": "string", "shape": [1]},
                                                    "observation.depth": {"dtype": "video", "shape": [8, 8, 1],
                                                                          "info": {"video.is_depth_map": True}},
                                                    "force": {"dtype": "float32", "shape": [3]}})  # fmt: skip
    with pytest.raises(UserError, match="has no column 'videos/observation.depth/chunk_index'"):
        open_data("noted", DROP)
    said(folder / "noted", features={"observation.depth": {"dtype": "image"}})
    notes = "\n".join(open_data("noted", DROP).notes)
    for text in (
        "observation.words (string), observation.depth (a depth map), force",
        "assumed: actions are 2 numbers from -1 to 1",
        "next.done does not distinguish a true end from a time limit", "films are compressed", "2 tasks",
    ):  # fmt: skip
        assert text in notes


def test_numbers_of_actions_out_of_range_are_faults_and_the_note_tells_the_range_of_the_data(folder):
    episodes = made(reward=False)
    episodes[1]["action"][1, 0] = -40
    robots.write(folder / "wide", "v2.1", episodes)
    assert any("episode 1, row 1, action: is [-40." in line for line in faults("wide"))
    assert any("those of the data go from -40 to " in note for note in open_data("wide", DROP).notes)
    one = list(open_data("wide", dataclasses.replace(DROP, action_range=(-50, 50))).read())[1]
    assert one.action[1, 0] == pytest.approx(-0.8)


def test_integers_are_discrete_actions(folder):
    episodes = [{STATE: np.zeros((3, 2), np.float32), "action": np.array([0, 2, 1])} for _ in range(2)]
    episodes[1][STATE] += 1
    robots.write(folder / "a", "v3.0", episodes)
    data = open_data("a", DROP)
    assert data.spec.action == Action((3,))
    assert next(data.read()).action.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_pictures_inside_of_tables_are_read(folder, version):
    robots.write(folder / "a", version, made(), embedded=True)
    for one, told in zip(open_data("a", DROP).read(), made(), strict=True):
        np.testing.assert_array_equal(one.obs["images/top"], told[TOP])


def test_channels_may_come_first_in_the_shape_of_a_film(copy):
    said(copy, features={TOP: {"shape": [3, 32, 32]}})
    assert open_data(copy, DROP).spec.obs["images/top"].shape == (32, 32, 3) and faults(copy) == []


def test_float64_is_converted_to_the_dtype_of_info_with_a_note(copy):
    changed(data_file(copy), **{STATE: lambda old: pa.array(old, pa.list_(pa.float64()))})
    found = describe(open_data(copy, DROP))
    assert found.sound and "observation 'state' is converted from float64 to float32" in found.notes


@pytest.mark.parametrize("codec", ["libx264 -bf 2 -g 4 -crf 10", "libaom-av1 -cpu-used 8 -g 2 -crf 20"])
def test_every_row_has_its_own_frame_with_the_codecs_of_cameras(folder, codec):
    episodes = made()
    for one in episodes:
        one[TOP] = np.broadcast_to(np.linspace(20, 230, len(one[TOP]))[:, None, None, None].astype(np.uint8),
                                   one[TOP].shape)  # fmt: skip
    robots.write(folder / "a", "v3.0", episodes, codec=["-c:v", *codec.split(), "-pix_fmt", "yuv420p"])
    for one, told in zip(open_data("a", DROP).read(), episodes, strict=True):
        np.testing.assert_allclose(one.obs["images/top"].mean((1, 2, 3)), told[TOP].mean((1, 2, 3)), atol=6)


def test_a_film_may_have_more_frames_than_the_rows_of_its_episode(whole, folder):
    root = shutil.copytree(whole / "v2.1", folder / "a")
    frames = made()[0][TOP]
    robots.film(film_file(root), np.concatenate([frames, frames]))
    assert faults(root) == []


def test_a_long_episode_is_given_in_parts_that_fit_the_memory(whole, monkeypatch):
    monkeypatch.setattr(pieces, "MOST_BYTES", 2 * 3200)
    for version in ("v2.1", "v3.0"):
        *_, one, two, three = open_data(whole / version, DROP).read()
        told = made()[2]
        assert [part.rows for part in (one, two, three)] == [2, 2, 2] and one.name == "part of episode 2"
        assert one.is_first[0] and not one.is_last.any() and not two.is_first.any() and three.is_last[-1]
        np.testing.assert_array_equal(np.concatenate([one.obs["images/top"], two.obs["images/top"]]), told[TOP][:4])
        np.testing.assert_array_equal(two.reward, told["next.reward"][1:3])
        np.testing.assert_allclose(two.action, told["action"][2:4], atol=1e-6)


def test_one_film_of_many_episodes_is_decoded_once(whole, monkeypatch):
    opened = []
    monkeypatch.setattr(films_of, "Film", lambda *args: opened.append(args) or Film(*args))
    assert len(list(open_data(whole / "v3.0", DROP).read())) == 3
    assert len(opened) == 1


def test_reading_ends_the_processes_that_decode(whole):
    ended = []
    close = Film.close
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Film, "close", lambda film: (close(film), ended.append(film._process.returncode)))
        scan = open_data(whole / "v2.1", DROP).scan()
        next(scan)
        scan.close()
    assert len(ended) == 1 and ended[0] is not None


# --- faults -----------------------------------------------------------------------------------------


def test_a_missing_file_of_rows_and_a_missing_film_are_named(copy):
    data, film = data_file(copy), film_file(copy)
    os.remove(film)
    assert faults(copy)[0] == f"episode 0, observation 'images/top': {film.relative_to(copy)} is missing"
    os.remove(data)
    assert f"{data.relative_to(copy)} is missing" in faults(copy)[0]


def test_a_pointer_of_git_lfs_is_named(copy):
    for path in (film_file(copy), data_file(copy), copy / "meta/info.json"):
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        assert f"{path.relative_to(copy)} is a pointer of Git LFS" in faults(copy)[0]


def test_a_film_with_fewer_frames_than_rows_is_named(copy):
    frames = np.concatenate([one[TOP] for one in made()])[:3 if copy.name == "v2.1" else 11]
    robots.film(film_file(copy), frames)
    found = faults(copy)
    assert len(found) == 1
    number = 0 if copy.name == "v2.1" else 2
    assert found[0].startswith(f"episode {number}, observation 'images/top': ") and "has no frame at " in found[0]


def test_a_part_of_a_film_that_is_shorter_than_its_episode_is_named(whole, folder):
    root = shutil.copytree(whole / "v3.0", folder / "a")
    changed(root / "meta/episodes/chunk-000/file-000.parquet", **{f"videos/{TOP}/to_timestamp": [0.3, 0.7, 1.3]})
    assert "has the episode from 0.000 to 0.300 s only, fewer frames than rows" in faults(root)[0]


def test_a_film_that_cannot_be_decoded_is_named_and_the_other_episodes_are_read(whole, folder):
    root = shutil.copytree(whole / "v2.1", folder / "a")
    path = film_file(root)
    path.write_bytes(path.read_bytes()[:600])
    found = describe(open_data(root, DROP))
    assert found.episodes == 2 and "episode_000000.mp4 cannot be decoded" in str(found.faults[0])


def test_a_film_that_is_damaged_inside_is_named(folder):
    frames = np.random.default_rng(0).integers(256, size=(12, 32, 32, 3)).astype(np.uint8)
    robots.film(folder / "a.mp4", frames, ("-c:v", "libx264", "-g", "2", "-pix_fmt", "yuv420p"))
    data = bytearray((folder / "a.mp4").read_bytes())
    half = len(data) // 2
    data[half : half + 2000] = bytes(value ^ 0x5A for value in data[half : half + 2000])
    (folder / "a.mp4").write_bytes(data)
    film = Film(File("a.mp4", folder / "a.mp4"), (32, 32, 3))
    with pytest.raises(UserError, match="a.mp4 cannot be decoded at frame "):
        film.take(np.arange(12))
    film.close()


def test_a_film_is_no_way_to_read_another_file(folder):
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    robots.film(folder / "other.mp4", made()[0][TOP])
    with pytest.raises(UserError, match="list.mp4 cannot be decoded"):
        listed(File("list.mp4", folder / "list.mp4"))


@pytest.mark.parametrize("version", ["v1.6", "v4.0", 3, None])
def test_an_unknown_version_is_refused(copy, version):
    said(copy, codebase_version=version)
    (line,) = faults(copy)
    assert line.startswith(f"{copy}/meta/info.json: codebase_version is '{version}'; dreamer reads v2.0, v2.1, v3.0")


INFO = {
    "no version": (lambda root: (root / "meta/info.json").write_text("{}"), "is not of LeRobot: it has no codebase_"),
    "cut short": (lambda root: (root / "meta/info.json").write_text('{"codebase'), "info.json is cut short or damaged"),
    "no action": (lambda root: said(root, features={"action": None}), "there is no feature 'action'; it has "),
    "no frames per second": (lambda root: said(root, fps=0), "fps is not a number above 0"),
    "no count": (lambda root: said(root, total_frames=-1), "total_frames is not a count"),
    "no template": (lambda root: said(root, data_path=None), "it has no data_path"),
    "a broken template": (lambda root: said(root, data_path="data/{0.a}"), "data_path is not a template of a path"),
    "an unknown field": (lambda root: said(root, data_path="{robot}"), "has an unknown field '{robot}'; known: "),
    "other frames": (lambda root: said(root, total_frames=99), "total_frames: is 99, but the episodes have 13"),
    "fewer episodes": (lambda root: said(root, total_episodes=1), "total_episodes: is 1, but the episodes have 3"),
    "missing episodes": (lambda root: said(root, total_episodes=5), "2 of 5 episodes are missing: 3, 4"),
    "another dtype": (lambda root: said(root, features={STATE: {"dtype": "int64"}}),
                      f"{STATE}: is fixed_size_list<element: float>[3], info.json says int64 [3]"),
    "another shape": (lambda root: said(root, features={STATE: {"shape": [4]}}), "info.json says float32 [4]"),
    "a strange shape": (lambda root: said(root, features={STATE: {"shape": ["x"]}}), "it must be whole numbers"),
    "a strange picture": (lambda root: said(root, features={TOP: {"shape": [32, 32]}}), "a picture is [H, W, C]"),
    "a giant picture": (lambda root: said(root, features={TOP: {"shape": [1 << 20, 9, 3]}}), "a picture is [H, W, C]"),
    "another size": (lambda root: said(root, features={TOP: {"shape": [16, 32, 3]}}),
                     "has frames of 32 x 32, info.json says 16 x 32"),
    "the same key twice": (lambda root: said(root, features={"observation.images/top": {"dtype": "bool", "shape": []}}),
                           "would have the same key 'images/top'"),
    "a missing column": (lambda root: said(root, features={"observation.new": {"dtype": "float32", "shape": [1]}}),
                         "has no column 'observation.new'"),
}  # fmt: skip


@pytest.mark.parametrize("what", INFO)
def test_a_fault_in_info_is_named(copy, what):
    check_fault(copy, *INFO[what])


@pytest.mark.parametrize("template", ["../{episode_index}{chunk_index}.parquet", "/etc/passwd", "data/../../x.parquet"])
@pytest.mark.parametrize("name", ["data_path", "video_path"])
def test_a_path_that_leaves_the_folder_is_refused(copy, name, template):
    field = "chunk_index" if copy.name == "v3.0" else "episode_index"
    said(copy, **{name: template.replace("{episode_index}{chunk_index}", f"{{{field}}}")})
    with pytest.raises(UserError, match="a path leads out of the dataset: '"):
        open_data(copy, DROP)


def test_the_name_of_a_camera_does_not_leave_the_folder(whole, folder):
    root = shutil.copytree(whole / "v2.1", folder / "a")
    said(root, features={TOP: None, "observation./../../../x": {"dtype": "video", "shape": [32, 32, 3]}})
    with pytest.raises(UserError, match="a path leads out of the dataset"):
        open_data(root, DROP)


def test_a_link_out_of_the_folder_is_refused_but_not_that_of_a_cache_to_its_blobs(copy, folder):
    path = data_file(copy)
    outside = folder / "cache/blobs/1234"
    outside.parent.mkdir(parents=True)
    shutil.move(path, outside)
    path.symlink_to(outside)
    with pytest.raises(UserError, match="leads out of the dataset, to .*; replace the link by its target"):
        open_data(copy, DROP)
    shutil.move(copy, folder / "cache/snapshots/abc")
    assert faults(folder / "cache/snapshots/abc") == []


def listing(rows: list) -> pa.Array:
    return pa.array(rows, pa.list_(pa.float32()))


def cut_short(root: pathlib.Path) -> None:
    path = data_file(root)
    path.write_bytes(path.read_bytes()[:-300])


ROWS = {
    "cut short": (cut_short, ".parquet cannot be read, it is cut short or damaged"),
    "a row that is missing": (lambda root: changed(data_file(root), frame_index=lambda old: [0, 1, 3, *old[3:]]),
                              "episode 0, row 2, frame_index: is 3, so that rows are missing or not in order"),
    "an episode that is elsewhere": (
        lambda root: changed(data_file(root), episode_index=lambda old: [7] * 4 + old[4:]),
        "has rows of an episode 7, which meta does not list for it"),
    "an episode without rows": (
        lambda root: changed(data_file(root), episode_index=lambda old: [7] * 4 + old[4:]),
        "episode 0: has 0 rows in data/chunk-000/"),
    "lists of different lengths": (
        lambda root: changed(data_file(root), **{STATE: lambda old: listing([[1.0], *old[1:]])}),
        "episode 0, observation 'state': has lists of 1 and of 3 values in its rows"),
    "a value that is missing": (
        lambda root: changed(data_file(root), **{"next.reward": lambda old: [None, *old[1:]]}),
        "episode 0, next.reward: has rows without a value"),
    "a nan": (lambda root: changed(data_file(root), **{STATE: lambda old: [[float("nan")] * 3, *old[1:]]}),
              "episode 0, row 0, observation 'state': at [0] is nan"),
    "an end in the middle": (lambda root: changed(data_file(root), **{"next.done": lambda old: [True, *old[1:]]}),
                             "episode 0, row 0, next.done: ends the episode, which has rows after it"),
    "a strange time": (lambda root: changed(data_file(root), timestamp=lambda old: [0.0, 0.0, *old[2:]]),
                       "has one frame for rows 0 and 1"),
    "texts": (lambda root: changed(data_file(root), **{STATE: lambda old: pa.array(["x"] * len(old))}),
              "is string, info.json says float32 [3]"),
}  # fmt: skip


@pytest.mark.parametrize("what", ROWS)
def test_a_fault_in_the_rows_is_named(copy, what):
    check_fault(copy, *ROWS[what])


LISTED = "meta/episodes/chunk-000/file-000.parquet"


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"dataset_from_index": [0, 5, 7]}, "episode 1 has the length 3, but the indices 5 to 7"),
        ({"dataset_from_index": [0, 5, 8], "dataset_to_index": [4, 8, 14]},
         "dataset_from_index: episode 1 begins at index 5, the one before ends at 4"),
        ({"episode_index": [0, 1, 1]}, "meta/episodes: lists episode 1 twice"),
        ({"episode_index": [0, 1, 3]}, "1 of 4 episodes are missing: 2"),
        ({"length": None}, "has no column 'length'"),
        ({"length": [-4, 3, 6]}, "length has values that are not counts or times"),
        ({"data/file_index": [0, 0, 1]}, "episode 2: data/chunk-000/file-001.parquet is missing"),
    ],
)  # fmt: skip
def test_a_fault_in_the_list_of_episodes_of_v3_is_named(whole, folder, columns, text):
    root = shutil.copytree(whole / "v3.0", folder / "a")
    changed(root / LISTED, **columns)
    found = faults(root)
    assert any(text in line for line in found), found


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (['{"episode_index": 0, "length": 4}', '{"episode_index": 2, "length": 6}'], "1 of 3 episodes are missing: 1"),
        (['{"episode_index": 0, "length": 4', ""], "episodes.jsonl, line 1 is cut short or damaged"),
        (['{"episode_index": -1, "length": 4}'], "episode_index and length must be counts"),
        (['{"episode_index": 0, "length": 5}', '{"episode_index": 1, "length": 3}'],
         "episode 0: has 4 rows in data/chunk-000/episode_000000.parquet, meta says 5"),
        ([""], "has no episodes"),
        (['{"episode_index": 1000000000000, "length": 4}'], "1000000000000 of 1000000000001 episodes are missing"),
    ],
)  # fmt: skip
def test_a_fault_in_the_list_of_episodes_of_v2_is_named(whole, folder, lines, text):
    root = shutil.copytree(whole / "v2.1", folder / "a")
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    found = faults(root)
    assert any(text in line for line in found), found


PNG = {"a path": {"bytes": None, "path": "a.png"}, "no picture": {"bytes": b"x", "path": None},
       "another size": {"bytes": robots.png(np.zeros((8, 8, 3), np.uint8)), "path": None}}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "text"),
    [("a path", "row 0 has no picture embedded"), ("no picture", "row 0 is not a whole PNG or JPEG"),
     ("another size", "row 0 is a picture of 8 x 8, info.json says 32 x 32")],
)  # fmt: skip
def test_a_picture_that_cannot_be_read_is_named(folder, what, text):
    root = robots.write(folder / "a", "v3.0", made(), embedded=True)
    changed(data_file(root), **{TOP: lambda old: [PNG[what], *old[1:]]})
    assert text in faults(root)[0]


def test_lists_of_lists_become_arrays_also_from_the_middle():
    values = np.arange(24.0).reshape(4, 3, 2)
    column = pa.chunked_array([values.tolist()])
    np.testing.assert_array_equal(as_array(column), values)
    np.testing.assert_array_equal(as_array(column.slice(1, 2)), values[1:3])
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 6)
    np.testing.assert_array_equal(as_array(fixed.slice(2, 2)), values.reshape(4, 6)[2:])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(VERSIONS[1:]), st.integers(0, 3), st.floats(0, 1) | st.none(),
       st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4))  # fmt: skip
def test_a_damaged_file_gives_faults_or_one_line_and_no_other_error(whole, version, which, cut, changes):
    paths = sorted(path for path in (whole / version).rglob("*") if path.is_file())
    path = paths[which * len(paths) // 4]
    before = path.read_bytes()
    damaged = bytearray(before)
    for place, byte in changes:
        damaged[int(place * len(damaged))] = byte
    try:
        path.write_bytes(damaged[: None if cut is None else int(cut * len(damaged))])
        for line in faults(whole / version):
            assert line and "\n" not in line
    finally:
        path.write_bytes(before)


# --- use --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["npz:copy", "hdf5:copy.hdf5", "minari:made/copy-v0"])
def test_the_command_describes_and_converts(whole, folder, target, capsys):
    words = ["data", str(whole / "v3.0")]
    assert cli.main(words) == 1
    assert "--missing-last drop leaves out" in capsys.readouterr().out
    assert cli.main([*words, "--missing-last", "drop", "--to", target]) == 0
    out = capsys.readouterr().out
    assert "lerobot  " in out and "observation images/top   uint8 [32, 32, 3], image" in out
    assert "episodes    3; 13 rows" in out and "wrote 3 episodes" in out and "sound" in out
    before = list(open_data(whole / "v3.0", DROP).read())
    after = list(open_data(target if target.startswith("minari") else target.partition(":")[2]).read())
    for one, other in zip(before, after, strict=True):
        assert one.obs.keys() == other.obs.keys()
        for key in one.obs:
            np.testing.assert_array_equal(one.obs[key], other.obs[key])
        np.testing.assert_allclose(one.action, other.action, atol=1e-6)
        np.testing.assert_array_equal(one.reward, other.reward)


@pytest.mark.usefixtures("quick")
def test_a_run_learns_from_it_as_its_settings_say_how_it_is_read(folder):
    episodes = [{VECTOR: one[STATE], "action": one["action"]} for one in made(lengths=(20, 12))]
    robots.write(folder / "robots", "v3.0", episodes)
    settings = {"env": NO_ENV, "data": ["robots"], "updates": 3, "eval__episodes": 0, "log__tensorboard": False}
    with pytest.raises(UserError, match="--reading.missing-last drop leaves out"):
        dreamer.train(tiny(folder / "run", **settings))
    settings |= {"reading__missing_last": "drop", "reading__missing_reward": "zeros"}
    done = dreamer.train(tiny(folder / "run", **settings))
    line = lines(done)[-1]
    assert (line["updates"], line["data/rows"], line["data/return_best"]) == (3, 32, 0)
    ours = np.concatenate([one.obs["vector"] for one in open_data(done).read()])
    np.testing.assert_array_equal(np.sort(ours, 0), np.sort(np.concatenate([one[VECTOR] for one in episodes]), 0))


def test_a_missing_package_names_the_extra(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert 'need pyarrow.parquet, which is not installed: pip install "dreamer-jax[data]"' in faults(whole / "v3.0")[0]
