"""Training criterions, one file each."""
