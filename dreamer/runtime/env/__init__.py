"""One environment becomes rows: its observations, its actions, its state. No jax."""
