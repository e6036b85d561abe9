"""OFA as in its paper; `cpu.py` holds the CPU fast paths."""
