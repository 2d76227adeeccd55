"""The notebook of the documentation, run from its first cell to its last."""

from __future__ import annotations

import os
import pathlib

import pytest

NOTEBOOK = pathlib.Path(__file__).parent.parent / "docs" / "quickstart.ipynb"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client|zmq|nbclient")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after a shorter run in an empty folder, in a kernel that compiles as a user's does."""
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (training,) = [cell for cell in notebook.cells if '"env_steps": 2500' in cell.source]
    training.source = training.source.replace("2500", "700")
    folder = tmp_path_factory.mktemp("notebook")
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}})
    ours = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    plain = {name: value for name, value in os.environ.items() if name not in ours}
    client.execute(env=plain)
    return notebook


def outputs(notebook, kind):
    """The outputs of a MIME type, in order."""
    return [one.data[kind] for cell in notebook.cells for one in cell.get("outputs", []) if kind in one.get("data", {})]


def test_the_notebook_plots_the_return_and_the_dream(executed):
    assert len(outputs(executed, "image/png")) == 2


def test_the_notebook_shows_a_video_of_the_agent(executed):
    assert any("<video" in html for html in outputs(executed, "text/html"))


def test_the_notebook_prints_actions_of_the_environment(executed):
    shown = [one for cell in executed.cells for one in cell.get("outputs", []) if one.output_type == "stream"]
    text = "".join(one.text for one in shown)
    assert text.count("action 0") + text.count("action 1") == 2
