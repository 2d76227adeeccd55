"""A population: runs that train together in one program, each in a directory of its own."""
