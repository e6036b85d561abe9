"""CapFilt: sampled captions ranked by image-text similarity, the best kept (BLIPEE Section 3.4)."""
