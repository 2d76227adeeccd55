"""Mesh, shardings, compiled programs and device errors. Other packages handle devices only through this package."""
