"""The scorers of fairseq-generate."""
