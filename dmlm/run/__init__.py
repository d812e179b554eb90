"""The training loop, what survives a crash, the decoder, and the scores of one model under one condition."""
