"""The files of a run directory: written atomically, sealed, locked, and checked before use."""
