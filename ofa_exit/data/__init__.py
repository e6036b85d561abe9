"""TSV files, image and text transforms, and one file per kind of example."""
