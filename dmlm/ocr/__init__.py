"""Lines that an OCR engine recognised, and their spelling."""
