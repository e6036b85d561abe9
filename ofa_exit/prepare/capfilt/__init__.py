"""CapFilt: rank sampled captions by image-text similarity, keep the best (BLIPEE Section 3.4)."""
