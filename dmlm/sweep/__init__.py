"""Which cells a grid has, their identity, their folders, where they run, and how their results are read back."""
