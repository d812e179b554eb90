"""Measures with intervals, computed from counts: word error rate, relative benefit, perceptual score. NumPy only."""
