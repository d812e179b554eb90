"""Sweep files: reading them, the cells they define, and the identity of a cell."""
