"""GPUs that `--dry-run --on NAME` can estimate times for, by their data sheets. Nothing here was measured.

The speeds are those of NVIDIA's data sheets (SXM versions): dense bf16 products with fp32 accumulation, and fp32 products
without TF32. Decoding runs in fp32.
"""

from dataclasses import dataclass

from dmlm.sweep.sizes import Size

TRAINING_SHARE = 0.3  # of that speed, in training; assumed until docs/gpu.md has a measured one
DECODING_SHARE = 0.1  # in reading prompts and writing transcripts; assumed
LAUNCHES_S = {"train": 5e-4, "decode": 1.5e-4}  # at least so long for a layer in a step: launching its kernels; assumed
DECODED_ROWS = 256  # transcripts that are written together
PEAKS = {  # operations a second: of bf16 products, of fp32 ones
    "a100": (312e12, 19.5e12),
    "h100": (989e12, 67e12),
    "h200": (989e12, 67e12),
    "l40s": (362e12, 91.6e12),
    "rtx4090": (165e12, 82.6e12),
}
ASSUMPTIONS = (
    f"a share of {TRAINING_SHARE:g} in training and {DECODING_SHARE:g} in decoding, and {1e3 * LAUNCHES_S['train']:g} and"
    f" {1e3 * LAUNCHES_S['decode']:g} ms a layer and step at least: assumed, not measured"
)


@dataclass(frozen=True)
class Estimate:
    """Estimated seconds of a cell on a device."""

    train_s: float
    test_s: float  # of one condition


def estimate(size: Size, steps: int, precision: str, device: str) -> Estimate | None:
    """Estimate the time of a cell on a device; None if the lengths of its sequences are not known."""
    if size.lengths is None:
        return None
    cost, (half, full) = size.cost, PEAKS[device]
    peak = full if precision == "fp32" else half
    train_s = max(size.train_operations / peak / TRAINING_SHARE, steps * cost.layers * LAUNCHES_S["train"])
    writes = -(-size.lengths.test_utterances // DECODED_ROWS) * size.lengths.text
    test_s = size.test_operations / full / DECODING_SHARE + writes * cost.layers * LAUNCHES_S["decode"]
    return Estimate(train_s, test_s)
