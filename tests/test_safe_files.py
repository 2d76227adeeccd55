"""Reading untrusted files."""

from __future__ import annotations

import os
import socket

import pytest

from dreamer.apps.report import references
from dreamer.errors import UserError
from dreamer.runtime.files.safe_files import check_inside, check_links, json_value, open_regular, read_text, special


@pytest.fixture
def odd(tmp_path):
    """Makes one of each kind of irregular file."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        yield tmp_path


@pytest.mark.parametrize(
    ("name", "why"),
    [("link", "it is a link"), ("folder", "not a regular"), ("pipe", "not a regular"), ("socket", "not a regular")],
)
def test_irregular_files_are_not_opened(odd, name, why):
    with pytest.raises(UserError, match=why):
        open_regular(odd / name)


def test_a_link_is_followed_on_demand(odd):
    with open_regular(odd / "link", follow=True) as file:
        assert file.read() == b"text"


def test_irregular_files_in_a_folder_are_listed(odd):
    assert sorted(special(odd)) == ["link", "pipe", "socket"]


def test_a_text_is_read_up_to_a_bound(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"a" * 11)
    assert read_text(path, 11) == "a" * 11
    with pytest.raises(UserError, match="larger than 10 bytes"):
        read_text(path, 10)
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        read_text(path)
    with pytest.raises(UserError, match="is missing"):
        read_text(tmp_path / "none")


def test_a_link_may_lead_around_in_a_run_but_not_out_of_it(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "run-2"
    run.mkdir(), outside.mkdir(), (run / "inner").mkdir()
    (run / "around").symlink_to(run / "inner")
    check_inside(run / "around" / "file", run)
    check_links(run)
    (run / "out").symlink_to(outside)
    for check in (lambda: check_inside(run / "out" / "file", run), lambda: check_links(run)):
        with pytest.raises(UserError, match="leads out of the run directory"):
            check()


@pytest.mark.parametrize("text", ["[" * 100_000, "NaN", "1" * 5000, "", b"\xff\xfe\xfa"])
def test_odd_json_is_a_value_error(text):
    with pytest.raises(ValueError):
        json_value(text)


def test_references_that_are_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "scores.csv")
    with pytest.raises(UserError, match="not a regular file"):
        references.read(tmp_path)
