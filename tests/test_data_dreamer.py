"""Datasets that Dreamers have written: npz files of versions 2 and 3, and the rows of run directories."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from made_data import KINDS, faults, held, made, rewritten, same

from dreamer.data import forms
from dreamer.data.converting import convert
from dreamer.data.episodes import Episode, Reading
from dreamer.data.opening import open_data
from dreamer.errors import UserError
from dreamer.runtime.files import checkpoint_files, sealed
from dreamer.runtime.files.manifest import FORMAT, Files, Manifest
from dreamer.runtime.files.sealed import Seal
from dreamer.spaces import Action

pytestmark = pytest.mark.usefixtures("folder")

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
    assert any("inferred: actions led to the observation of their row" in note for note in data.notes)


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
    "a class that is none": (lambda a: a.update(action=np.full((4, 2), 0.5, np.float64) * np.nan), "not an action of"),
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
