"""Reads and writes datasets of episodes: Minari, HDF5 as in D4RL, npz as in Dreamer, and the rows of runs. No jax."""
