"""Encoders without published weights, for the conformance suite."""

SMALL = {
    "audio_mfcc": lambda: {"clusters": 50},
    "lips_dct": lambda: {"clusters": 30},
    "image_patches": lambda: {"clusters": 40},
    "ocr_rapidocr": dict,
    "ocr_tesseract": dict,
    "ocr_oracle": dict,
}
