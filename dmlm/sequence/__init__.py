"""Templates, packing of token streams into one sequence, and batches of sequences."""
