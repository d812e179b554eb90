"""dmlm: discrete-token multimodal language models for speech recognition, under noise.

Rooms in the order of the data flow; each imports only rooms above it:
errors, places, recipes, progress, workers -> corpus -> tokens -> sequence -> model -> run -> score -> sweep -> cli.
"""

__version__ = "0.1.0"
