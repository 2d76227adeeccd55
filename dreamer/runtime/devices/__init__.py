"""Mesh, shardings, compiled programs and their errors: the only package that names them."""
