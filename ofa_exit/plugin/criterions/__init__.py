"""The training criterions that fairseq knows, one file each."""
