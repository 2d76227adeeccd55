"""The whole program solves the probe with images. It is in a separate file because it takes longest."""

from __future__ import annotations

import pytest
from probe_runs import check_solved


@pytest.mark.slow
def test_probe_of_pictures_is_solved():
    check_solved("pixel")
