"""`dreamer imagine`: films that a world model dreams, held against the true future."""
