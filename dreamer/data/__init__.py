"""Datasets of episodes: Minari, HDF5 as in D4RL, npz as in Dreamer; read only: LeRobot and the rows of runs. No jax."""
