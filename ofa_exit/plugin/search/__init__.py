"""Beam search and candidate search around fairseq's generators."""
