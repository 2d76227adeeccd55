"""`dreamer imagine`: films that a world model dreams, compared with the true future."""
