"""Turns one environment into rows: its observations, its actions, its state. No jax."""
