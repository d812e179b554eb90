"""Counts in, measures with intervals out: word error rate, relative benefit, perceptual score. NumPy only."""
