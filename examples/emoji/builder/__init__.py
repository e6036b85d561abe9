"""Captioning and entailment data made from published emoji artwork and its names."""
