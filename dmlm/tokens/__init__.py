"""From media to discrete IDs: the tokenizer interface, k-means, the token cache, the one ID space."""
