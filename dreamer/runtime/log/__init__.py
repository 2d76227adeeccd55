"""Metrics, terminal, images and videos of a run. No jax."""
