"""Mesh, shardings, compiled programs and their errors: the only room that names them."""
