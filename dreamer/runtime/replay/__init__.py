"""The replay: rings of rows in memory and on the disk, and the sampling of sequences from them. Imports no jax."""
