"""Turns an environment into rows: converts its observations and actions, and saves its state. Imports no jax."""
