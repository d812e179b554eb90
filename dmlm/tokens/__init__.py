"""From media to discrete IDs: encoder interfaces, k-means codebooks, the token cache, the shared ID space."""
