"""Layers, FLOPs and time of a generation."""
