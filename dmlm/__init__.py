"""dmlm: discrete-token multimodal language models for speech recognition, under noise.

Packages in the order of the data flow, listed in docs/architecture.md; each imports only those before it.
"""

import os

# Idle threads of a parallel region sleep instead of spinning: on a machine that also does something else, spinning
# makes small training steps several times slower. Read when PyTorch loads its thread pool, hence set here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
