"""The tasks that fairseq knows, one file each."""
