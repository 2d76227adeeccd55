"""Acting, stepping, storing and learning as one compiled program, for environments written in JAX."""
