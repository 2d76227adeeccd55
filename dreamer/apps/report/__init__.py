"""`dreamer report`: draws runs on one page. No jax."""
