"""The files that people expect at the top of a repository agree with the package and with each other."""

from __future__ import annotations

import json
import pathlib
import re
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_citation_names_the_version_and_the_license_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])


def test_the_changelog_has_an_unreleased_section_and_only_the_kinds_of_change_of_its_format():
    text = (ROOT / "CHANGELOG.md").read_text()
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert "## [Unreleased]" in text and set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds


def test_the_image_copies_all_that_the_package_is_built_from():
    copied = set(re.findall(r"\S+", " ".join(re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE))))
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    needed = {"pyproject.toml", "setup.cfg", "README.md", "LICENSE", "dreamer", "envs", "experiments"}
    assert copied == allowed == needed
    assert all((ROOT / name).exists() for name in copied)


def test_the_extras_of_the_image_are_extras_of_the_package():
    named = ",".join(re.findall(r"EXTRAS=([\w,-]+)", DOCKERFILE)).split(",")
    assert set(named) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_what_a_form_needs(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in form["body"])


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path):
    """jupyter nbconvert --clear-output --inplace FILE removes them."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells and not [cell for cell in cells if cell["outputs"] or cell["execution_count"]]


def test_every_link_of_the_guide_for_contributors_leads_to_a_file():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "CONTRIBUTING.md").read_text())
    assert links and not [link for link in links if not (ROOT / link).exists()]
