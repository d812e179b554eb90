"""Recognised text: the lines of a page that an OCR engine found, and their spelling."""
