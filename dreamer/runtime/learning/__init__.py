"""Collecting and learning: the parts of a run that pass rows, batches and parameters on to each other."""
