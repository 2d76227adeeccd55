"""`dreamer report`: shows the results of several runs on one HTML page. Imports no jax."""
