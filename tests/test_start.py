"""`dreamer train` restarts itself if the C library needs an environment variable to use huge pages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from dreamer.apps import start

MADVISE = "always [madvise] never\n"


def test_the_tunable_is_added_to_the_environment():
    assert start.asking_for_huge_pages({"A": "b"}, MADVISE, "glibc 2.36") == {
        "A": "b", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }  # fmt: skip


def test_other_tunables_stay():
    environment = start.asking_for_huge_pages({"GLIBC_TUNABLES": "glibc.malloc.check=1"}, MADVISE, "glibc 2.35")
    assert environment == {"GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize(
    "environment, policy, library",
    [
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, MADVISE, "glibc 2.36"),
        ({}, "[always] madvise never\n", "glibc 2.36"),
        ({}, "always madvise [never]\n", "glibc 2.36"),
        ({}, "", "glibc 2.36"),
        ({}, MADVISE, "glibc 2.34"),
        ({}, MADVISE, ""),
    ],
)
def test_nothing_is_asked_for_where_that_is_needless_or_of_no_use(
    environment: Mapping[str, str], policy: str, library: str
):
    assert start.asking_for_huge_pages(environment, policy, library) is None


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch, tmp_path) -> list[tuple]:
    """Records the program that would replace the process; the commands themselves do nothing."""
    calls: list[tuple] = []
    (tmp_path / "enabled").write_text(MADVISE)
    monkeypatch.setattr(start, "HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setattr(start, "c_library", lambda: "glibc 2.36")
    monkeypatch.setattr(start.cli, "main", lambda: 0)
    monkeypatch.setattr(os, "execve", lambda *args: calls.append(args))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


def test_train_is_started_again_with_its_own_words(restarts: list[tuple], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["dreamer", "train", "--env", "a b"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", "dreamer", "train", "--env", "a b"])
    start.main()
    ((program, words, environment),) = restarts
    assert (program, words) == (sys.executable, [sys.executable, "-X", "dev", "-m", "dreamer", "train", "--env", "a b"])
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("words", [[], ["eval", "train"], ["--version"]])
def test_other_commands_are_not(words: list[str], restarts: list[tuple], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["dreamer", *words])
    assert start.main() == 0 and not restarts


def test_the_command_answers_as_ever():
    for words in ([sys.executable, "-m", "dreamer"], [os.path.join(os.path.dirname(sys.executable), "dreamer")]):
        done = subprocess.run([*words, "train", "--no-such-flag", "1"], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("dreamer: error:") and not done.stdout
