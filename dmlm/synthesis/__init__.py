"""Make the media of synthetic corpora: speech, talking mouths, pages, noise files."""
