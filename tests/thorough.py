"""What the quick set of tests leaves to .ci/run. Every room keeps tests in the quick set; these take the most time.

A file by its name, a test as "file:test". Whatever is marked slow is in neither.
"""

from __future__ import annotations

FILES = {
    "test_learning", "test_learning_pixels", "test_devices", "test_ray_workers", "test_any_spaces", "test_step_cost",
    "test_golden_agent", "test_flipped_bits", "test_crafted_files", "test_killed_runs",
}  # fmt: skip
TESTS: set[str] = set()


def is_thorough(file: str, test: str) -> bool:
    """Whether a test, without its parameters, is not in the quick set."""
    return file in FILES or f"{file}:{test}" in TESTS
