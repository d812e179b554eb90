"""Encoders without weights that have to be fetched, for the conformance suite."""

SMALL = {
    "audio_mfcc": lambda: {"clusters": 50},
    "audio_encoder_kmeans": lambda: {
        "clusters": 20,
        "width": 16,
        "layers": 2,
        "layer": 1,
        "targets": (8, 8),
        "steps": 4,
    },
    "lips_dct": lambda: {"clusters": 30},
    "image_patches": lambda: {"clusters": 40},
    "audio_phones": lambda: {"longest_s": 5},
    "image_efficientnet_kmeans": lambda: {"clusters": 40, "side_px": 96},
}
