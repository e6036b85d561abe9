"""Supported image formats, separate from ``images`` so that no import of torch is needed."""

# Pillow's names. Raster formats only: other plugins start external programs or read drawings.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 50_000_000
