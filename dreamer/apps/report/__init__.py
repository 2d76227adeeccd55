"""`dreamer report`: runs drawn on one page. No jax."""
