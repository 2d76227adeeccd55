"""Several processes that train one run together, each with its share of the environments and of the replay."""
