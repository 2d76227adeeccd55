"""Writes and reads the files of a run directory: atomically, with checksums, under a lock, and checked before use."""
