"""OPT and Mamba models of `transformers` with fast forward passes, and the loss weighted by modality."""
