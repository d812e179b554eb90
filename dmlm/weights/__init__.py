"""Published weights: download and verify them, read them without executing code, open a network frozen."""
