"""What the framework costs: milliseconds, operations, memory. See README.md for each benchmark in a line."""
