"""Benchmarks: this package against plain OFA, and against the arithmetic alone."""
