"""Decoding, errors of each utterance, and a trained model that reads a new clip."""
