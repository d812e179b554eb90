"""From token streams to a training batch, and back."""
