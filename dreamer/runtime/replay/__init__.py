"""The rows of all streams: rings in memory and on the disk, and how sequences are drawn from them. No jax."""
