"""Exit settings with a guarantee: Learn-then-Test over losses per sentence."""
