"""Sweep files: the cells that they ask for, and the identity of a cell."""
