"""Constants of the file formats. They are separate because importing them needs no torch."""

SEPARATOR = "&&"  # between the texts of one field
# Columns of uniq-id, image and caption in OFA's captioning files, which have uniq-id, image-id,
# caption, predicted objects, image.
CAPTION_COLS = "0,4,2"
# Pillow's names. Raster formats only: other plugins start external programs or read drawings.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
# Of files in FORMATS, in lower case.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Of images in other formats: of phones, of raw files, and others. They are named, not overlooked.
UNSUPPORTED_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".ico", ".tga", ".exr"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".raw"),
)
MAX_PIXELS = 50_000_000
