"""Metrics, terminal, images and videos of a run. Imports no jax."""
