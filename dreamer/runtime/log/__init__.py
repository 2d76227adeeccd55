"""Shows and stores what a run reports: metrics, terminal output, images and videos. Imports no jax."""
