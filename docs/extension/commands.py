"""The help of every command as Markdown."""

from __future__ import annotations

import os
import re
import subprocess
import sys

WIDTH = "88"  # characters, the width of a page


def page() -> str:
    """A section for each command, in the order in which `dreamer --help` lists them."""
    overview = _help()
    names = dict.fromkeys(re.findall(r"^[ a-z:]*dreamer ([a-z]+)\b", overview, re.MULTILINE))
    sections = [f"## dreamer {name}\n\n{_block(_help(name))}" for name in names]
    return "\n\n".join([_block(overview), *sections])


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def _help(*command: str) -> str:
    """What `dreamer COMMAND --help` prints. CalledProcessError when it fails."""
    environment = {**os.environ, "COLUMNS": WIDTH, "NO_COLOR": "1"}
    words = [sys.executable, "-m", "dreamer", *command, "--help"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
