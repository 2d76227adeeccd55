"""Mesh, shardings, compiled programs and their errors. Only this package uses them directly."""
