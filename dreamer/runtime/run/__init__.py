"""The run and its threads: starts, collects, learns, evaluates, saves and resumes."""
