"""Synthetic corpora: speech, talking mouths, pages, noise files."""
