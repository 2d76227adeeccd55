"""What the quick set of tests leaves to .ci/run. Every room keeps tests in the quick set; these take the most time.

A file by its name, a test as "file:test". Whatever is marked slow is in neither.
"""

from __future__ import annotations

FILES = {
    "test_learning", "test_learning_pixels", "test_ray_workers", "test_devices", "test_loop", "test_bad_input",
    "test_masks", "test_make_env", "test_step_cost", "test_any_spaces", "test_safe_start", "test_priorities",
    "test_wheel", "test_convolutions", "test_worker_faults", "test_killed_runs", "test_device_rows",
    "test_flipped_bits", "test_sizes", "test_init_statistics", "test_haiku", "test_rows_on_disk", "test_golden_agent",
    "test_scan", "test_gaussian_latents", "test_crafted_files", "test_uninvited_pickles", "test_check",
}  # fmt: skip
TESTS: set[str] = set()


def is_thorough(file: str, test: str) -> bool:
    """Whether a test, without its parameters, is not in the quick set."""
    return file in FILES or f"{file}:{test}" in TESTS
