"""What `dreamer check` looks at, a subject a file. None of it imports jax."""
