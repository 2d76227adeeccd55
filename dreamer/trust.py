"""Decides whether files may make this process run code: only if this user made them here or trusts them.

A run directory or a preset names objects: an environment, a world model, a behavior, an encoder. Gymnasium ids, the
names of suites and those of dreamer's own modules are safe. Other names may be anybody's code. They are imported only

    when the command names them itself                          --env, make_env=, --agent.world-model.name
    when this user made the run on this machine                 proven by a seal: an HMAC with this user's key
    when the user trusts the file                               --trust, trust=True

and never from a run directory (`plugins`). Every config that comes from a file passes `check`. Pickled states of
environments have a seal, too. docs/threat-model.md lists what this prevents, and what it does not. Imports no jax.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dreamer.errors import UserError

KEY_BYTES = 32
_BEGINS = "# dreamer run "
_LINE = re.compile(r"# dreamer run ([0-9a-f]{32}) sha256 ([0-9a-f]{64}) seal ([0-9a-f]{64}|-)\n")
# Registered gymnasium ids that import what their options name.
IMPORTING = ("GymV21Environment", "GymV26Environment")
# A module of dreamer, or one attribute of it: a longer chain would reach other modules that it imports.
_OURS = re.compile(r"dreamer\.(world_models|behaviors|nets)(\.[a-z]\w*)+(:[A-Za-z]\w*)?", re.ASCII)
# The process at an address sends objects that are unpickled (Ray), or takes part in the learning.
ADDRESSES = {"workers.address": ("", "auto", "local"), "devices.coordinator": ("", "auto")}
_TASK = re.compile(r"[\w-][\w .-]*(/[\w-][\w .-]*)*", re.ASCII)  # a suite compares it with its own list
_FILE = re.compile(r"[/\\\0]|^[~.]|\.[^\W\d]")  # a path, or a name with an extension such as .xml
_NUMBERS = re.compile(r"[\d:. -]*", re.ASCII)  # 4:3, 12:30
# Fields of a config that name code, by dotted key.
PLUGIN_KEYS = ("agent.world_model.name", "agent.behavior.name")


# The key of this user -------------------------------------------------------------------------------------------------


def key_file() -> Path:
    """Returns the path of this user's secret key, a file outside all run directories that only the user can read."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "dreamer" / "key"


def seal(data: bytes) -> str:
    """Returns an HMAC that proves later that this user wrote `data` on this machine; "" if no key can be stored."""
    key = _key(make=True)
    return hmac.new(key, data, hashlib.sha256).hexdigest() if key else ""


def sealed_here(data: bytes, mac: str) -> bool:
    """Whether `mac` is the seal of `data` with this user's key, as returned by `seal`."""
    key = _key(make=False)
    if not key or not mac.isascii():
        return False
    return hmac.compare_digest(hmac.new(key, data, hashlib.sha256).hexdigest(), mac)


def _key(make: bool) -> bytes | None:
    """Returns this user's secret key, or None when there is no key. make: whether to make a key if there is none."""
    path = key_file()
    with contextlib.suppress(OSError):
        return _read_key(path)
    if not make:
        return None
    half = path.with_name(f"key.{secrets.token_hex(8)}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was faster: its key is used
            os.link(half, path)
        half.unlink()
        return _read_key(path)
    with contextlib.suppress(OSError):
        half.unlink()
    return None


def _read_key(path: Path) -> bytes | None:
    """Returns the key in a file that this user owns and nobody else can read or write; None for any other file.

    Raises OSError if the file is missing or is a symbolic link.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        key = file.read(KEY_BYTES + 1)
    private = status.st_uid == os.getuid() and not status.st_mode & 0o077
    return key if private and len(key) == KEY_BYTES else None


# Texts that are sealed ------------------------------------------------------------------------------------------------


class Unsealed(NamedTuple):
    """The result of `unsealed`: a text without its seal line, and what that line says.

    run: the ID of the text's run; None: there is no seal line | ours: whether this user wrote the text on this machine
    """

    text: str
    run: str | None
    ours: bool


def sealed_text(text: str, run: str) -> str:
    """Adds a seal line in front of a YAML text: the ID of its run, the text's sha256, and this user's seal of both."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{_BEGINS}{run} sha256 {digest} seal {seal(_about(run, digest)) or '-'}\n{text}"


def unsealed(text: str) -> Unsealed:
    """Removes and checks the seal line, if the text has one. Raises ValueError if the text was edited."""
    if not text.startswith(_BEGINS):
        return Unsealed(text, None, False)
    first, newline, rest = text.partition("\n")
    match = _LINE.fullmatch(first + newline)
    if not match or hashlib.sha256(rest.encode()).hexdigest() != match[2]:
        raise ValueError("it was changed after it was written: its checksum differs")
    return Unsealed(rest, match[1], sealed_here(_about(match[1], match[2]), match[3]))


def _about(run: str, digest: str) -> bytes:
    return f"dreamer config {run} {digest}".encode()


# Names ----------------------------------------------------------------------------------------------------------------


def check(
    values: Any, where: str, suites: Collection[str], *, given: Mapping[str, Any], trust: bool = False
) -> None:  # fmt: skip
    """Raises UserError unless each name of code in a config file is safe, given by the command itself, or trusted.

    values: the nested mapping of the file. where: the file's name. suites: names of the suites that come with dreamer.
    given: the settings of the command itself, by dotted key. trust: whether the user trusts the file.
    """
    if trust or not isinstance(values, Mapping):
        return
    for key, name in foreign(values, suites):
        # A world model or behavior is imported for its settings even if a later layer names another.
        if key in given and (given[key] == name or key not in PLUGIN_KEYS):
            continue
        flag = f"--{key.replace('_', '-')} {name}"
        raise UserError(
            f"{where} names code that is not dreamer's, and was not made by you on this machine: {key} is {name!r}. "
            f"Name it yourself, {flag}, or add --trust (trust=True in Python) if you trust who made the file"
        )


def foreign(values: Mapping[str, Any], suites: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yields (dotted key, name) of each text in a config that may name code outside dreamer, gymnasium and the suites.

    The address of another process is such a text, too, because that process may send code.
    """
    env = values.get("env")
    if isinstance(env, str) and not safe_env(env, suites):
        yield "env", env
    for path, text in _texts(values.get("env_options"), "env_options"):
        if not safe_text(text):
            yield path, text
    agent = values.get("agent")
    if isinstance(agent, Mapping):  # prefixes of parameters' names, with numbers: never code
        agent = {name: value for name, value in agent.items() if name != "optimizers"}
    for path, text in _texts(agent, "agent"):
        if any(mark in text for mark in ".:/") and not _OURS.fullmatch(text):
            yield path, text
    for key, known in ADDRESSES.items():
        group, _, name = key.partition(".")
        settings = values.get(group)
        address = settings.get(name) if isinstance(settings, Mapping) else None
        if isinstance(address, str) and address not in known:
            yield key, address


def safe_env(name: str, suites: Collection[str]) -> bool:
    """Whether a name can only mean a registered gymnasium environment or a suite of dreamer, not other code."""
    suite, colon, task = name.partition(":")
    if colon:
        return suite in suites and bool(_TASK.fullmatch(task))
    return not name.rpartition("/")[2].startswith(IMPORTING)


def safe_text(text: str) -> bool:
    """Whether a text in the options of an environment is safe: it names no module, no address and no file.

    A file in the current folder, such as "level.xml", is not safe either: a stranger may have made the file, and it
    may name more files.
    """
    return not _FILE.search(text) and (":" not in text or bool(_NUMBERS.fullmatch(text)))


def _texts(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yields (dotted key, text) of all texts in nested mappings and lists, and of keys that are not `safe_text`.

    path: the dotted key of `value` | depth: the number of mappings and lists around it
    """
    if isinstance(value, str):
        yield path, value
    elif depth > 50:
        yield path, "..."  # no real config nests this deeply
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if not safe_text(str(name)):
                yield path, str(name)
            yield from _texts(inner, f"{path}.{name}", depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, path, depth + 1)
