"""The files of a run directory: written whole, sealed, locked, and checked before use."""
