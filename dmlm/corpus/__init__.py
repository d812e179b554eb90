"""What an utterance is, how its media are read, how noise is mixed in, how a synthetic corpus is made."""
