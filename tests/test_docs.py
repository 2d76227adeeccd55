"""README and docs: every code block runs or is marked as shown only, every command parses, every link resolves.

A block is marked by a comment above it, `<!-- shown only: REASON -->`. The Python blocks of a page run in order and
share their names. Both kinds run in a folder with a tiny trained run and the environment of the README.
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
import string
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import markdown_it
import numpy as np
import pytest
import tiny_runs
import yaml

import dreamer
from docs import extension
from docs.extension import configuration, docstrings
from dreamer.apps import cli
from dreamer.apps.sweep import spec
from dreamer.apps.sweep.trials import trials_of
from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.fields import keys

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"<!-- shown only: \S.* -->")
SHELL, PYTHON, DATA = ("sh", ""), ("python",), ("text", "bibtex")
DOERS = {  # what a command does once its words are understood
    "dreamer.runtime.train.train": None,
    "dreamer.apps.sweep.command.sweep": 0,
    "dreamer.apps.evaluate.evaluate_run": None,
    "dreamer.apps.evaluate.rank_run": None,
    "dreamer.apps.report.command.report_runs": None,
    "dreamer.apps.verify.verify_run": 0,
    "dreamer.apps.check.command.check_env": 0,
    "dreamer.apps.data.describe_data": 0,
    "dreamer.apps.imagine.command.imagine_run": None,
}
MAZE = '''
import gymnasium
import numpy as np

class MyMaze(gymnasium.Env):
    def __init__(self, size):
        self.observation_space = gymnasium.spaces.Box(0, size - 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.full(2, int(action), np.float32), float(action), False, self.time >= 10, {}
'''


class Block(NamedTuple):
    """A code block. line: of its first line of code | language: "" for an indented block | shown: whether marked."""

    page: Path
    line: int
    language: str
    text: str
    shown: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@functools.cache
def tokens(page: Path) -> list[Any]:
    return markdown_it.MarkdownIt("commonmark").enable("table").parse(page.read_text())


def blocks(page: Path) -> Iterator[Block]:
    """The code blocks of a page, without directives of the site such as {toctree}."""
    last = None
    for token in tokens(page):
        if token.type in ("fence", "code_block") and not token.info.startswith("{"):
            shown = last is not None and last.type == "html_block" and bool(MARK.fullmatch(last.content.strip()))
            yield Block(page, token.map[0] + 1 + (token.type == "fence"), token.info.strip(), token.content, shown)
        last = token


BLOCKS = [block for page in PAGES for block in blocks(page)]


def commands(block: Block) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of each `dreamer ...` command of a shell block, with the block's own variables filled in."""
    variables: dict[str, str] = {}
    lines = iter(enumerate(block.text.splitlines(), block.line))
    for number, text in lines:
        while text.endswith("\\"):
            text = text[:-1] + next(lines)[1]
        text = string.Template(text).safe_substitute(variables)
        if assigned := re.fullmatch(r"([A-Z]+)=(.*)", text):
            variables[assigned[1]] = " ".join(shlex.split(assigned[2]))
        for part in re.split(r"&&|\|", text):
            words = shlex.split(part, comments=True)
            words = words[words[:1] == ["exec"] :]
            if words and Path(words[0]).name == "dreamer":
                yield number, words[1:]


COMMANDS = [(block, *found) for block in BLOCKS if block.language in SHELL for found in commands(block)]
TINY = {key: value for key, value in tiny_runs.flat(tiny_runs.TINY).items() if key != "env"}
OWN = {"--agent.world-model.name": "agent.world_model.", "--agent.behavior.name": "agent.behavior."}
TINY |= {"log.tensorboard": False, "eval.video": "off"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that looks to a reader's commands as the page says: my_lab, docs and runs/my-run."""
    made = tmp_path_factory.mktemp("reader")
    (made / "my_lab").mkdir()
    own = next(block.text for block in BLOCKS if block.page.name == "README.md" and "my_lab/envs.py" in block.text)
    (made / "my_lab" / "envs.py").write_text(MAZE + own)
    (made / "docs").symlink_to(ROOT / "docs")
    trained = {"env": "CartPole-v1", "run_dir": str(made / "runs" / "my-run"), **TINY}
    dreamer.train(dreamer.load_config(overrides=trained))
    return made


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(folder)
    return folder


# --- code -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_says_what_it_is(block):
    assert block.language in (*SHELL, *PYTHON, *DATA, "yaml"), f"{block}: no test knows {block.language!r}"


@pytest.mark.parametrize(("block", "line", "words"), COMMANDS, ids=lambda x: str(x) if isinstance(x, Block) else None)
def test_a_command_is_understood(block, line, words, here, monkeypatch):
    """Every word of it, whether the block is run or shown only."""
    asked = []
    for doer, answer in DOERS.items():
        monkeypatch.setattr(doer, lambda *args, answer=answer, **kwargs: asked.append(args) or answer)
    place = f"{block.page.relative_to(ROOT)}:{line}"
    try:
        assert cli._command([re.sub(r"^experiments/", f"{ROOT}/experiments/", word) for word in words]) == 0, place
    except UserError as error:
        pytest.fail(f"{place}: dreamer {shlex.join(words)}: {error}", pytrace=False)
    assert asked or words[0] in ("presets", "metrics", "envs") or "--print-config" in words, place


def preset_commands() -> Iterator[Any]:
    """The commands in the comments of the files in experiments/, with a name for each."""
    for path in sorted((ROOT / "experiments").rglob("*.yaml")):
        text = re.sub(r"\\\n# *", "", path.read_text())
        for number, found in enumerate(re.findall(r"^#   dreamer (.*)$", text, re.MULTILINE)):
            yield pytest.param(shlex.split(found, comments=True), id=f"{path.relative_to(ROOT)}-{number}")


@pytest.mark.parametrize("words", list(preset_commands()))
def test_a_command_in_the_comment_of_a_preset_is_understood(words, here, monkeypatch):
    for doer, answer in DOERS.items():
        monkeypatch.setattr(doer, lambda *args, answer=answer, **kwargs: answer)
    assert cli._command([re.sub(r"^experiments/", f"{ROOT}/experiments/", word) for word in words]) == 0


def small(command: list[str]) -> list[str]:
    """A command that ends in seconds: the smallest agent, few episodes."""
    if command[0] == "train" and "--resume" not in command:
        others = [key for name, key in OWN.items() if name in command]  # a part of one's own has other sizes
        flags = {key: value for key, value in TINY.items() if not key.startswith(tuple(others))}
        return [*command, *(word for key, value in flags.items() for word in flag(key, value))]
    if command[0] == "eval":
        return [word if word != "100" else "3" for word in command]
    if command[0] == "check":
        return [*command, "--steps", "200"]
    return command


def flag(key: str, value: Any) -> list[str]:
    words = value if isinstance(value, list) else [str(value).lower() if isinstance(value, bool) else value]
    return [f"--{key.replace('_', '-')}", *map(str, words)]


def runnable() -> list[Any]:
    """Returns the shell blocks that can be run; those that compile for a minute are marked slow."""
    blocks = [b for b in BLOCKS if b.language in SHELL and not b.shown]
    return [pytest.param(b, id=str(b), marks=[pytest.mark.slow] * (b.page.stem == "on-device")) for b in blocks]


@pytest.mark.parametrize("block", runnable())
def test_a_shell_block_runs(block, here, monkeypatch):
    other = [line for line in filter(None, block.text.splitlines()) if not line.startswith(("dreamer ", "#"))]
    assert not other, f"{block}: only dreamer's commands are run; mark the block as shown only: {other[0]!r}"
    for line, words in commands(block):
        place = f"{block.page.relative_to(ROOT)}:{line}"
        if words[0] == "train" and "--resume" not in words and "--run-dir" in words:
            words = [*words, "--run-dir", f"runs/{block.page.stem}-{line}"]
        assert cli.main(small(words)) == 0, f"{place}: dreamer {shlex.join(words)}"


@pytest.mark.parametrize("page", dict.fromkeys(b.page for b in BLOCKS if b.language in PYTHON), ids=lambda p: p.stem)
def test_the_python_of_a_page_runs(page, here, monkeypatch):
    load = dreamer.load_config

    def tiny(*presets: Any, overrides: Any = None) -> Config:
        return load(*presets, overrides={**TINY, **(overrides or {})})

    monkeypatch.setattr(dreamer, "load_config", tiny)
    names: dict[str, Any] = {"obs": np.zeros(4, np.float32), "MyMaze": None}
    for block in blocks(page):
        if block.language in PYTHON and not block.shown:
            tree = ast.increment_lineno(ast.parse(block.text, str(page)), block.line - 1)
            try:
                exec(compile(tree, str(page), "exec"), names)
            except Exception as error:
                line = next(at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == str(page))
                pytest.fail(f"{page.relative_to(ROOT)}:{line}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_a_yaml_block_is_a_preset_or_a_sweep(block, tmp_path):
    (tmp_path / "block.yaml").write_text(block.text)
    if "axes" in yaml.safe_load(block.text):
        sweep = spec.read(str(tmp_path / "block.yaml"))
        assert trials_of(sweep, spec.base_config(sweep)) or sweep.search == "tpe"
        return
    loaded = dreamer.load_config(tmp_path / "block.yaml")
    assert yaml.safe_load(block.text).keys() <= vars(loaded).keys()


# --- links ------------------------------------------------------------------------------------------


def links(page: Path) -> Iterator[tuple[int, str]]:
    """(line, target) of the links and images of a page that lead to other files or places of it."""
    line = 0
    for token in tokens(page):
        line = token.map[0] + 1 if token.map else line
        for child in token.children or ():
            target = child.attrs.get("href") or child.attrs.get("src")
            if target and "://" not in target:
                yield line, target
    for match in re.finditer(r"^```\{literalinclude\} (\S+)$", page.read_text(), re.MULTILINE):
        yield page.read_text()[: match.start()].count("\n") + 1, match[1]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site and the usual viewers of a repository make them."""
    found, heading = set(), False
    for token in tokens(page):
        if heading and token.type == "inline":
            found.add(re.sub(r"[^\w\- ]", "", token.content.lower()).replace(" ", "-"))
        heading = token.type == "heading_open"
    return found


LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "experiments" / "README.md", ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    wrong = []
    for line, target in links(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            wrong.append(f"{page.relative_to(ROOT)}:{line}: {target}")
    assert not wrong


# --- what is generated, and sizes -------------------------------------------------------------------


def test_every_field_of_the_configuration_has_an_entry_with_a_meaning():
    page = configuration.page()
    for key in keys(Config()):
        (entry,) = re.findall(rf"^`{re.escape(key)}`\n: (.*)$", page, re.MULTILINE)
        assert len(entry) > 10, key


def test_a_page_is_filled_from_the_code():
    page = ROOT / "docs" / "configuration.md"
    filled = extension.fill(page.read_text(), page)
    assert "| `quickstart` |" in filled and "`replay.capacity_steps`" in filled and "generated:" not in filled


def test_columns_and_raises_of_a_docstring_keep_their_lines():
    assert docstrings.to_rst(["key    value"]) == [".. code-block:: text", "", "    key    value", ""]
    assert docstrings.to_rst(["size: int", "Raises UserError."]) == ["| size: int", "| Raises UserError.", ""]


def test_every_mark_of_a_page_is_known():
    for page in PAGES:
        for kind, name in extension.MARK.findall(page.read_text()):
            assert kind == "included" or name in extension.GENERATED, f"{page}: {name}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
