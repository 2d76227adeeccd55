"""The ring of threads: how a run starts, collects, learns, evaluates, saves and goes on."""
