"""The training loop: objectives, gradients, data parallelism, checkpoints, stop requests and loggers."""
