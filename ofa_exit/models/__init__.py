"""How layers are skipped: OFA with its stem, positions, attention, encoder, decoder and caches."""
