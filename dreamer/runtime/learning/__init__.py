"""Collecting and learning: the parts that pass rows, batches and parameters around while a run goes on."""
