"""Which pictures are read; apart from ``images`` so that torch is not needed to know."""

# Pillow's names. Raster formats only: others start foreign programs or describe a drawing.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 50_000_000
