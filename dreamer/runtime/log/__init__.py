"""Metrics, terminal, pictures and videos of a run. No jax."""
