"""Published weights: where they come from, reading them without running them, opening a network frozen."""
