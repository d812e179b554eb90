"""From recordings as people keep them to a corpus: clips, splits, media at 16 kHz, manifest and card."""
