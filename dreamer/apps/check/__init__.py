"""The checks of `dreamer check`, one subject per file. None of them imports jax."""
