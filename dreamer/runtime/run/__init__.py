"""A training run and its threads: start, collect, learn, evaluate, save and resume."""
