"""TSV files, image and text transforms, and one file per data set."""
