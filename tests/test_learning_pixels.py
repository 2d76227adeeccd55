"""The probe that shows pictures is solved by the whole program. A file of its own: it takes longer than any other."""

from __future__ import annotations

from probe_runs import check_solved


def test_probe_of_pictures_is_solved():
    check_solved("pixel")
