"""OFA's TSV files from the official releases of captioning, entailment, VQA and dialogue data."""
