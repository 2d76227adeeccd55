"""Crafted run directories with correct checksums are refused with one line, and nothing else happens.

The tests draw arbitrary JSON and small changes to real files. An audit hook records which files are opened.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import tensorstore as ts
from crafting import change_file, change_meta, change_state, seal_file, seal_text
from hypothesis import strategies as st
from test_resume import ENV, stopped
from tiny_runs import tiny

import dreamer
from dreamer.apps import verify
from dreamer.apps.report import media
from dreamer.apps.report.runs import read_lines
from dreamer.errors import UserError
from dreamer.runtime.files import checkpoint_files, manifest, sealed
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.log import sinks
from dreamer.runtime.run import resume, verifying

pytestmark = pytest.mark.usefixtures("quick")

FEW = 60
NUMBERS = st.integers() | st.sampled_from([-1, 0, 1, 2**31, 2**53, 2**63, 10**30]) | st.floats()
NAMES = st.text(max_size=8) | st.sampled_from(
    ["..", "../../etc/passwd", "/etc/passwd", "a/b", "\0", "rows-1.dreamer", "rows-000000000.dreamer", "a" * 300]
)
LEAVES = st.none() | st.booleans() | NUMBERS | NAMES
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4))
KINDS = st.sampled_from(["uint8", "float32", "bfloat16", "object", "O", "str", "U8", "f8,i4", "void", "datetime64[s]"])
SHAPES = st.lists(st.sampled_from([-1, 0, 1, 2, 3, 2**31, 2**32, 2**62, 2**70]) | JSON, max_size=5)
FORMS = st.lists(st.tuples(NAMES, KINDS | JSON, SHAPES | JSON) | JSON, max_size=3) | JSON
HEADS = st.fixed_dictionaries({"head": st.dictionaries(NAMES, JSON, max_size=3) | JSON, "arrays": FORMS}) | JSON
DEEP = b"[" * 100_000

opened: list[str] | None = None  # files recorded by the audit hook while `watching`


def _note(event: str, arguments: tuple) -> None:
    if opened is not None and event == "open" and isinstance(arguments[0], str | bytes):
        opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_note)


@contextlib.contextmanager
def watching(*folders: Path) -> Iterator[None]:
    """Fails if a file is opened that is neither in these folders nor part of Python."""
    global opened
    opened = []
    try:
        yield
    finally:
        seen, opened = opened, None
    allowed = (*map(os.path.realpath, folders), sys.prefix, sys.base_prefix, os.path.realpath(os.curdir), "/proc")
    strange = [path for path in seen if not os.path.realpath(path).startswith(allowed)]
    assert not strange, strange


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """A context that allows no error except a UserError of one line."""
    try:
        yield
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A lockstep run that was stopped in the middle."""
    return stopped(tmp_path_factory.mktemp("crafted") / "run", 20)


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return shutil.copytree(run, tmp_path / "run")


def refused(run_dir: Path, match: str) -> None:
    """Fails unless a resume is refused for this reason and changes nothing."""
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=match) as error:
        dreamer.train(tiny(run_dir, **ENV), resume="yes")
    assert "\n" not in str(error.value)
    after = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert before == after


# Sealed files ---------------------------------------------------------------------------------------------------------


def try_sealed(folder: Path, whole: Any, data: bytes) -> None:
    path = folder / "rows-000000000.dreamer"
    seal = seal_file(path, whole, data)
    for given in (None, seal):
        with one_line():
            head, arrays = sealed.read(path, given)
            assert isinstance(head, dict)
            assert sum(array.nbytes for array in arrays.values()) == len(data)


@hypothesis.settings(max_examples=FEW)
@hypothesis.given(HEADS, st.binary(max_size=24))
def test_a_sealed_file_with_any_head_is_read_or_refused(tmp_path_factory, whole, data):
    try_sealed(tmp_path_factory.getbasetemp(), whole, data)


@pytest.mark.slow
@hypothesis.settings(max_examples=5000, deadline=None)
@hypothesis.given(HEADS, st.binary(max_size=24))
def test_many_sealed_files(tmp_path_factory, whole, data):
    try_sealed(tmp_path_factory.getbasetemp(), whole, data)


@pytest.mark.parametrize(
    "form",
    [
        ["a", "uint8", [-1]], ["a", "uint8", [-2, -2]], ["a", "uint8", [2**32, 2**32]], ["a", "uint8", [2**64, 0]],
        ["a", "uint8", [4.0]], ["a", "uint8", [True, 4]], ["a", "uint8", 4], ["a", "object", [0]], ["a", "str", [1]],
        [1, "uint8", [4]], ["a", "uint8", [1] * 70 + [4]], ["a", "uint8"], ["a", "f8,i4", [0]],
    ],
    ids=str,
)  # fmt: skip
def test_an_array_that_is_described_oddly_is_refused(tmp_path, form):
    seal_file(tmp_path / "x", {"head": {}, "arrays": [form]}, bytes(4))
    with pytest.raises(UserError, match="its head is invalid|cut short or too long"):
        sealed.read(tmp_path / "x")


def test_two_arrays_of_one_name_are_refused(tmp_path):
    seal_file(tmp_path / "x", {"head": {}, "arrays": [["a", "uint8", [2]], ["a", "uint8", [2]]]}, bytes(4))
    with pytest.raises(UserError, match="two arrays have the same name"):
        sealed.read(tmp_path / "x")


@pytest.mark.parametrize("text", [DEEP, b'{"a":' * 100_000, b"1" * 10_000, b"NaN", b"\xff", b""], ids=range(6))
def test_a_head_that_is_not_valid_json_is_refused(tmp_path, text):
    seal_text(tmp_path / "x", text)
    with pytest.raises(UserError, match="its head is invalid"):
        sealed.read(tmp_path / "x")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 1000])
def test_a_head_with_a_declared_length_beyond_the_file_is_refused(tmp_path, length):
    seal_text(tmp_path / "x", b"{}", length=length)
    with pytest.raises(UserError, match="cut short or too long"):
        sealed.read(tmp_path / "x")


# Manifests and heads --------------------------------------------------------------------------------------------------


@st.composite
def changed(draw: st.DrawFn, value: Any, names: tuple[str, ...] = ()) -> Any:
    """Draws a JSON value in which one place, or the whole value, is replaced or removed."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        name = draw(st.sampled_from(names or sorted(value)))
        if not draw(st.integers(0, 9)):
            return {key: inner for key, inner in value.items() if key != name}
        return {**value, name: draw(changed(value[name]))}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(changed(value[at])), *value[at + 1 :]]
    return draw(JSON)


def finite(value: Any) -> Any:
    """Returns a JSON value without nan and infinity, which the writer refuses."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return value if not isinstance(value, float) or math.isfinite(value) else 1e300


def try_meta(run: Path, data: st.DataObject) -> None:
    """Tries a crafted manifest: it must be found and verified, or refused in one line."""
    step = checkpoint_files.steps(run)[-1]
    path = run / "checkpoints" / str(step) / checkpoint_files.META
    before = path.read_bytes()
    try:
        change_meta(run, lambda meta: data.draw(changed(meta)))
        with watching(run):
            with one_line():
                resume.find(run)
            assert all("\n" not in fault for fault in verifying.checkpoint_faults(run, step))
    finally:
        path.write_bytes(before)


HEALTH = {"suppress_health_check": [hypothesis.HealthCheck.function_scoped_fixture], "deadline": None}


@hypothesis.settings(max_examples=FEW, **HEALTH)
@hypothesis.given(data=st.data())
def test_a_crafted_manifest_is_sound_or_refused(run, data):
    try_meta(run, data)


@pytest.mark.slow
@hypothesis.settings(max_examples=2000, **HEALTH)
@hypothesis.given(data=st.data())
def test_many_crafted_manifests(run, data):
    try_meta(run, data)


def try_head(run: Path, data: st.DataObject) -> None:
    """Tries a crafted head of the host's state: it must be accepted, or refused in one line."""
    meta = checkpoint_files.read_meta(run, checkpoint_files.steps(run)[-1])["meta"]
    where = run / "rows" / meta["state"][0]
    head, _ = sealed.read(where)
    with one_line():
        manifest.head(finite(data.draw(changed(head).filter(lambda head: isinstance(head, dict)))), where)


@hypothesis.settings(max_examples=FEW, **HEALTH)
@hypothesis.given(data=st.data())
def test_a_crafted_head_is_sound_or_refused(run, data):
    try_head(run, data)


@pytest.mark.slow
@hypothesis.settings(max_examples=5000, **HEALTH)
@hypothesis.given(data=st.data())
def test_many_crafted_heads(run, data):
    try_head(run, data)


@pytest.mark.slow
@hypothesis.settings(max_examples=500, **HEALTH)
@hypothesis.given(data=st.data())
def test_a_run_with_a_crafted_state_continues_or_is_refused(run, tmp_path_factory, data):
    copy = shutil.copytree(run, tmp_path_factory.mktemp("copy") / "run")

    def change(head, arrays):
        if data.draw(st.booleans()):
            new = finite(data.draw(changed(head, tuple(sorted(set(head) - {"run"})))))
            head.clear()
            head.update(new if isinstance(new, dict) else {})
        else:
            name = data.draw(st.sampled_from(sorted(arrays)))
            shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
            kind = data.draw(st.sampled_from(["uint8", "int64", "float32", "float64", "bool"]))
            arrays[name] = np.full(shape, data.draw(st.sampled_from([-1, 0, 1, 7, 2**40]))).astype(kind)

    change_state(copy, change)
    with one_line():
        dreamer.train(tiny(copy, **ENV), resume="yes")
    shutil.rmtree(copy.parent)


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta["rows"][0].__setitem__(0, "../../../etc/passwd"),
        lambda meta: meta["state"].__setitem__(0, "/etc/passwd"),
        lambda meta: meta["rows"].append(meta["rows"][0]),
        lambda meta: meta["state"].__setitem__(1, -1),
        lambda meta: meta.update(oldest=["0", 0]),
        lambda meta: meta.update(rows_per_stream=0),
        lambda meta: meta.update(updates=True),
        lambda meta: meta.update(spec=[]),
        lambda meta: meta.update(metrics=[-1, 0]),
        lambda meta: meta.pop("latents"),
    ],
    ids=range(10),
)
def test_a_manifest_that_no_run_writes_is_refused(copy, change):
    change_meta(copy, change)
    with pytest.raises(UserError, match="was not written by this program"):
        resume.find(copy)


@pytest.mark.parametrize(
    "spans", [[[0, 5, 2]], [[0, -3, 2]], [[9, 0, 2]], [[0, 0, 1], [0, 1, 2]], [[0, 0, 2**70]], [[0, 0]], "spans", None]
)
def test_rows_of_odd_places_are_refused(copy, spans):
    change_file(copy, "rows", lambda head, arrays: head.update(spans=spans))
    refused(copy, "'?spans'?")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda head, arrays: head["replay"]["queue"].append([0, 10**9]), "'replay' is not what a run saves"),
        (lambda head, arrays: head["replay"]["rng"]["state"].update(state=-1), "'replay' is not what a run saves"),
        (lambda head, arrays: head["replay"]["counts"].append(7), "belongs to other rows"),
        (lambda head, arrays: head.update(limiter="1/0"), "'limiter' is not what a run saves"),
        (lambda head, arrays: head["loop"].update(eval_due="soon"), "'loop' is not what a run saves"),
        (lambda head, arrays: head["logger"].update(bytes=-1), "'logger' is not what a run saves"),
        (lambda head, arrays: head["envs"].append(None), "its environments are not those of the run"),
        (lambda head, arrays: arrays.update({"envs/ready": np.array([0, 10**6])}), "its environments are not those"),
        (lambda head, arrays: arrays.pop("envs/row/reward"), "envs/row/reward is not what a run saves"),
        (lambda head, arrays: arrays.update({"tracker/returns": np.zeros(9)}), "tracker/returns is not what a run"),
        (lambda head, arrays: arrays.pop("collector/count"), "collector/count is not what a run saves"),
        (lambda head, arrays: arrays.update({"sampler/priority/rows": np.zeros(2)}), "sampler belongs to another"),
    ],
    ids=range(12),
)
def test_a_state_that_no_run_writes_is_refused(copy, change, why):
    change_state(copy, change)
    refused(copy, why)


# Files that are not regular -------------------------------------------------------------------------------------------


def replace(path: Path, kind: str, elsewhere: Path) -> None:
    """Replaces a file or folder by a pipe, a link to a copy elsewhere, or a folder."""
    target = elsewhere / path.name
    os.rename(path, target)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(target)
    else:
        path.mkdir()


PLACES = {
    "rows": lambda run: run / "rows",
    "rows file": lambda run: min((run / "rows").glob("rows-*")),
    "state file": lambda run: max((run / "rows").glob("state-*")),
    "manifest": lambda run: run / "checkpoints" / str(checkpoint_files.steps(run)[-1]) / checkpoint_files.META,
    "checksums": lambda run: run / "checkpoints" / str(checkpoint_files.steps(run)[-1]) / "state" / "crc32.json",
    "checkpoint": lambda run: run / "checkpoints" / str(checkpoint_files.steps(run)[-1]),
    "checkpoints": lambda run: run / "checkpoints",
    "metrics": lambda run: run / "metrics.jsonl",
}


FOLDERS = ("rows", "checkpoint", "checkpoints")  # a pipe in place of one is a folder that is missing
ODD = [*((place, "link") for place in PLACES), *((place, "pipe") for place in PLACES if place not in FOLDERS)]


@pytest.mark.parametrize("place, kind", ODD)
def test_an_irregular_file_in_a_run_is_refused(copy, tmp_path, place, kind):
    (tmp_path / "elsewhere").mkdir()
    path = PLACES[place](copy)
    replace(path, kind, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="not a regular file|is a link|leads out|neither a file nor a folder"):
        dreamer.train(tiny(copy, **ENV), resume="yes")
    assert not verify.verify(copy, deep=False).whole


def test_a_picture_that_is_a_link_or_a_pipe_is_not_in_the_report(tmp_path, copy):
    pictures = copy / "pictures"
    pictures.mkdir(exist_ok=True)
    (tmp_path / "secret").write_bytes(b"secret" * 99)
    (pictures / "openloop-999999999999.png").symlink_to(tmp_path / "secret")
    os.mkfifo(pictures / "openloop-999999999998.png")
    assert not any(media.own(path, copy) for path in pictures.glob("openloop-99999999999?.png"))


@pytest.mark.parametrize("line", [DEEP, b"1" * 10_000, b'{"env_steps": 1e999}', b'{"env_steps": ' + b"9" * 999 + b"}"])
def test_a_crafted_line_of_metrics_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b"\n")
    rows, (note,) = read_lines(path)
    assert rows == [] and "metrics.jsonl:1: " in note
    assert sinks.tail_of(path, 0, 10**6).keep == 0


def test_metrics_that_are_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    for read in (read_lines, lambda path: sinks.tail_of(path, 0, 9), lambda path: sinks.lines_damage(path, 0, 0)):
        with pytest.raises(UserError, match="not a regular file"):
            read(tmp_path / "metrics.jsonl")


def test_arrays_declared_larger_than_their_files_are_refused(copy):
    step = checkpoint_files.steps(copy)[-1]
    folder = copy / "checkpoints" / str(step) / "state"
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/"}).result()
    name = min(key for key in store.list().result() if key.endswith(b".zarray"))
    form = json.loads(store[name])
    store[name] = json.dumps({**form, "shape": [2**40] * len(form["shape"])}).encode()
    (folder / checkpoint_files.LIST).unlink()
    checkpoint_files.write_list(folder)
    with pytest.raises(UserError, match="its arrays are larger than its files"), Checkpoints(copy) as checkpoints:
        checkpoints.leaves(step)
