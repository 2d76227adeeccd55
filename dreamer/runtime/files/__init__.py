"""Writes and reads the files of a run directory: atomically, sealed with checksums, locked, and checked before use."""
