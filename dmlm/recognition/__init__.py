"""Decoding, the errors of each utterance, and the recogniser: a trained model that transcribes new clips."""
