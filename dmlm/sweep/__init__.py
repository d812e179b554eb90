"""Run a grid, from its cells to results on disk: materials, trials, search, schedule and status."""
