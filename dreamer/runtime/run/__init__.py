"""A training run from start to end: how it is built, trains, evaluates, is saved and resumed."""
