"""Beam search and scoring of candidates, around fairseq's generators."""
