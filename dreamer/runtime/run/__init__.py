"""A training run from start to end: how it is built, goes on, evaluates, is saved and resumed."""
