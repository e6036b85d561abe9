"""What a layer can answer with before the last."""
