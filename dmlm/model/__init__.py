"""OPT and Mamba from `transformers`, and the loss that weighs modalities."""
